"""What does the training loop add to the step?

    python -m benchmarks.loop_overhead --corpus CORPUS [--experiment bert_tiny] [--batch-size N] [--every STEPS]
        [--blocks N] [--json RESULT.json]

`train` runs the experiment on batches of the corpus as `flaxbert pretrain` does: stream, copy to the device, metrics,
checkpoints. Between its blocks of `--every` steps, while its clock stands still for an evaluation, the same step runs
as often alone: compiled by itself, on one batch that lies on the device. What is compared are the medians of the two,
and each block with the mean of the two that stand around it.
"""

import argparse
import dataclasses
import json
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_pipeline.memory import keep_memory_of_steps
from data_pipeline.store import open_corpus
from flaxbert import joins
from flaxbert.accelerators import accelerator
from flaxbert.config import Experiment, with_vocabulary
from flaxbert.flags import load_experiment
from flaxbert.sharding import make_mesh
from flaxbert.training.loop import train
from flaxbert.training.part import Streams
from flaxbert.training.step import build_functions

LEAD_IN = 2  # steps of a turn that are not timed


class StepAlone:
    """The step of an experiment with a state and a batch of its own."""

    def __init__(self, experiment: Experiment, batch: dict[str, np.ndarray]):
        functions = build_functions(experiment, make_mesh(experiment.mesh))
        self.state, self.batch = functions.init(), functions.put(batch)
        self.step = functions.train.lower(self.state, self.batch).compile()

    def run(self, steps: int) -> float:
        """Seconds of one step."""
        self._run(LEAD_IN)
        began = time.perf_counter()
        self._run(steps)
        return (time.perf_counter() - began) / steps

    def _run(self, steps: int) -> None:
        for _ in range(steps):
            self.state, outcome = self.step(self.state, self.batch)
        jax.block_until_ready((self.state, outcome))


def measure(experiment: Experiment, corpus: Any, folder: str) -> tuple[list[float], list[float]]:
    """Seconds of a step of each block: of the loop; and alone, before the first one and after each."""
    streams, every = joins.streams(corpus, experiment), experiment.train.log_every
    alone: list[float] = []
    first, _ = next(streams.train(0, None))
    own = StepAlone(experiment, first)
    own.run(every)  # warms up
    alone.append(own.run(every))

    def validation(phase: int) -> Iterator[dict[str, np.ndarray]]:
        alone.append(own.run(every))
        yield first

    train(experiment, folder, Streams(streams.train, validation), stop=lambda: False)
    lines = map(json.loads, Path(folder, "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line["seconds"] / every for line in lines if line["split"] == "train"], alone


def summarize(loop: list[float], alone: list[float]) -> dict[str, float]:
    """The medians, and how many times the step's time a step of the loop takes. The loop's first block warms up."""
    around = [(before + after) / 2 for before, after in zip(alone, alone[1:], strict=False)]
    ratios = [each / other for each, other in zip(loop[1:], around[1:], strict=True)]
    return {
        "milliseconds_alone": 1e3 * statistics.median(alone[1:]),
        "milliseconds_in_the_loop": 1e3 * statistics.median(loop[1:]),
        "ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--experiment", default="bert_tiny")
    parser.add_argument("--batch-size", type=int, help="None: the experiment's")
    parser.add_argument("--every", type=int, default=10, metavar="STEPS")
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if accelerator() is None:
        keep_memory_of_steps()
    corpus = open_corpus(arguments.corpus)
    experiment = with_vocabulary(load_experiment(arguments.experiment), corpus.vocab_size)
    settings = dataclasses.replace(
        experiment.train, steps=arguments.every * (arguments.blocks + 1), log_every=arguments.every,
        eval_every=arguments.every, checkpoint_every=arguments.every,
        batch_size=arguments.batch_size or experiment.train.batch_size,
    )  # fmt: skip
    experiment = dataclasses.replace(
        experiment, train=settings, optimizer=dataclasses.replace(experiment.optimizer, warmup_steps=1)
    )
    with jax.set_mesh(make_mesh(experiment.mesh)), tempfile.TemporaryDirectory() as folder:
        loop, alone = measure(experiment, corpus, folder)
    result = summarize(loop, alone)
    for name, value in result.items():
        print(f"{name:26} {value:9.3f}")
    if arguments.json is not None:
        machine = {"platform": platform.platform(), "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0]}
        command = shlex.join(["python", "-m", "benchmarks.loop_overhead", *sys.argv[1:]])
        found = {"command": command, "machine": machine, "jax": jax.__version__, **result}
        blocks = {"seconds_in_the_loop": loop, "seconds_alone": alone}
        arguments.json.write_text(json.dumps(found | blocks, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
