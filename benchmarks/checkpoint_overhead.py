"""What does a checkpoint every 20 steps cost a run?

    python -m benchmarks.checkpoint_overhead [--blocks N] [--every STEPS] [--json RESULT.json]

bert_mini (11 million parameters, 134 MB with its two moments) trains in float32 on synthetic batches of 32 x 128 on the
devices of this machine. Blocks of `--every` steps take turns: one without a checkpoint, one that begins with a save,
which ends in the background while the block's steps run; what of it is left when they are done is waited for, inside
of the block. So the whole cost of a save is in its block: the copy that the next step waits for, and the cores that
writing and hashing take from the steps. Medians over the blocks are compared, and those of pairs of neighbours, which a
machine that grows slower or faster meanwhile does not bend. Processor time is compared too: other programs leave it
alone, and where the steps keep every core busy it is what a save costs.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_pipeline.memory import keep_memory_of_steps
from experiments.bert_mini import EXPERIMENT
from flaxbert.accelerators import accelerator
from flaxbert.config import Experiment, with_vocabulary
from flaxbert.sharding import make_mesh
from flaxbert.training.checkpoint import Checkpoints, open_checkpoints
from flaxbert.training.step import Functions, TrainState, build_functions

BATCH_SIZE, LENGTH, VOCABULARY = 32, 128, 30_522


def make_experiment() -> Experiment:
    """The recipe with the batch and the sums of the question."""
    experiment = with_vocabulary(EXPERIMENT, VOCABULARY)
    train = dataclasses.replace(experiment.train, batch_size=BATCH_SIZE, compute_dtype="float32")
    return dataclasses.replace(experiment, train=train)


def make_batch(predictions: int) -> dict[str, np.ndarray]:
    """Full rows of random tokens, the last `predictions` of them masked."""
    generator = np.random.default_rng(0)
    places = np.arange(LENGTH, dtype=np.int32)[None].repeat(BATCH_SIZE, 0)
    return {
        "input_ids": generator.integers(5, VOCABULARY, (BATCH_SIZE, LENGTH), np.int32),
        "segment_ids": (places >= LENGTH // 2).astype(np.int32),
        "sequence_ids": np.ones_like(places),
        "position_ids": places,
        "masked_positions": places[:, -predictions:],
        "masked_ids": generator.integers(5, VOCABULARY, (BATCH_SIZE, predictions), np.int32),
        "masked_weights": np.ones((BATCH_SIZE, predictions), np.float32),
        "cls_positions": np.zeros((BATCH_SIZE, 1), np.int32),
        "next_sentence_labels": generator.integers(0, 2, (BATCH_SIZE, 1), np.int32),
        "next_sentence_weights": np.ones((BATCH_SIZE, 1), np.float32),
    }


def run_block(
    step: Any, state: TrainState, batch: dict[str, jax.Array], every: int, checkpoints: Checkpoints | None
) -> tuple[TrainState, tuple[float, float, float]]:
    """`every` steps, after the beginning of a save where there are checkpoints: the state, the block's seconds by the
    clock and by the processor, and those that the save kept the next step waiting.
    """
    began, used, waited = time.perf_counter(), time.process_time(), 0.0
    if checkpoints is not None:
        waited = checkpoints.save(state, int(state.step), {}, {}, None)
    for _ in range(every):
        state, outcome = step(state, batch)
        jax.block_until_ready(outcome)
    if checkpoints is not None:
        checkpoints.wait()
    return state, (time.perf_counter() - began, time.process_time() - used, waited)


def measure(functions: Functions, batch: dict[str, np.ndarray], blocks: int, every: int, folder: str) -> dict[str, Any]:
    """Seconds of each block by the clock and by the processor, and of waiting in its save."""
    placed, state = functions.put(batch), functions.init()
    step = functions.train.lower(state, placed).compile()
    without, saving = list[tuple[float, ...]](), list[tuple[float, ...]]()
    with open_checkpoints(folder, keep=2) as checkpoints:
        for number in range(blocks + 1):
            state, bare = run_block(step, state, placed, every, None)
            state, full = run_block(step, state, placed, every, checkpoints)
            if number:  # the first pair warms up
                without, saving = [*without, bare], [*saving, full]
    return {"without": without, "with": saving}


def summarize(found: dict[str, Any], every: int) -> dict[str, float]:
    """The medians, and what a save adds to them."""
    (clock, processor, _), (saving, saving_processor, waited) = (
        zip(*found[name], strict=True) for name in ("without", "with")
    )
    return {
        "ratio": statistics.median(saving) / statistics.median(clock),
        "ratio_of_neighbours": statistics.median(full / bare for full, bare in zip(saving, clock, strict=True)),
        "ratio_of_processor_time": statistics.median(saving_processor) / statistics.median(processor),
        "seconds_per_step": statistics.median(clock) / every,
        "processor_seconds_per_step": statistics.median(processor) / every,
        "processor_seconds_per_save": statistics.median(saving_processor) - statistics.median(processor),
        "seconds_waited_per_save": statistics.median(waited),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--every", type=int, default=20, metavar="STEPS")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    if accelerator() is None:
        keep_memory_of_steps()
    experiment = make_experiment()
    mesh = make_mesh(experiment.mesh)
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as folder:
        functions = build_functions(experiment, mesh)
        batch = make_batch(experiment.data.predictions_per_row)
        found = measure(functions, batch, arguments.blocks, arguments.every, folder)
    result = summarize(found, arguments.every)
    for name, value in result.items():
        print(f"{name:25} {value:.4f}")
    if arguments.json:
        machine = {
            "cpus": os.cpu_count(), "load": os.getloadavg()[0], "platform": platform.platform(),
            "device": jax.devices()[0].device_kind, "jax": jax.__version__,
        }  # fmt: skip
        settings = {"blocks": arguments.blocks, "every": arguments.every, "batch": [BATCH_SIZE, LENGTH]}
        text = json.dumps({**result, **settings, "machine": machine, "blocks_seconds": found}, indent=1)
        Path(arguments.json).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
