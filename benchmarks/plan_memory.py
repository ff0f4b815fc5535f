"""How near is a plan's memory to what a run takes? On this machine's CPU, in a process without TensorFlow.

    python -m benchmarks.plan_memory [--runs bert_mini:64x128 ...] [--output RESULT.json]

Each run is a process of its own. It plans the step, then makes the state and takes three steps. What the process holds
once everything is compiled, and before an array is made, is subtracted from the most it ever holds after that. What the
compilers have freed is given back to the system first, or the arrays would be laid into it unseen.
"""

import argparse
import ctypes
import dataclasses
import gc
import json
import multiprocessing
import platform
import re
import sys
from pathlib import Path
from typing import Any


RUNS = ["bert_mini:64x128", "bert_mini:16x512", "bert_small:32x128"]


def measure(run: str) -> dict[str, Any]:
    """Bytes as planned and as taken by one device of the CPU, of EXPERIMENT:ROWSxLENGTH."""
    import jax
    import numpy as np

    from flaxbert.flags import load_experiment
    from flaxbert.sharding import make_mesh
    from flaxbert.tools.plan import plan
    from flaxbert.training.step import abstract_batch, build_functions

    name, rows, length = re.fullmatch(r"(\w+):(\d+)x(\d+)", run).groups()  # type: ignore[union-attr]
    found = load_experiment(name)
    experiment = dataclasses.replace(
        found, model=dataclasses.replace(found.model, vocab_size=30_522),
        data=dataclasses.replace(found.data, sequence_length=int(length)),
        train=dataclasses.replace(found.train, batch_size=int(rows)),
    )  # fmt: skip
    planned, = plan(experiment, search=0)
    mesh = make_mesh(experiment.mesh)
    with jax.set_mesh(mesh):
        functions = build_functions(experiment, mesh)
        batch = {key: np.zeros(leaf.shape, leaf.dtype) for key, leaf in abstract_batch(experiment).items()}
        init = functions.init.lower().compile()  # type: ignore[attr-defined]
        step = functions.train.lower(functions.abstract_state, abstract_batch(experiment)).compile()
        before = _begin()
        state = init()
        for _ in range(3):
            state, outcome = step(state, functions.put(batch))
        jax.block_until_ready((state, outcome))
        taken = _status("VmHWM") - before
    assert "tensorflow" not in sys.modules
    return {
        "run": run, "planned": planned["memory_needed"], "taken": taken,
        "taken_by_planned": taken / planned["memory_needed"], "memory": planned["memory"],
        "versions": planned["versions"],
    }  # fmt: skip


def _begin() -> int:
    """Resident bytes, with free memory given back; the peak is counted from here."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", default=RUNS, metavar="EXPERIMENT:ROWSxLENGTH")
    parser.add_argument("--output", help="a JSON file for the results")
    options = parser.parse_args()
    results = []
    for run in options.runs:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            result = pool.apply(measure, (run,))
        results.append(result)
        print(
            f"{run}: planned {result['planned'] / 1e9:.3f} GB, taken {result['taken'] / 1e9:.3f} GB, "
            f"{result['taken_by_planned']:.1%} of it", flush=True,
        )  # fmt: skip
    if options.output:
        machine = {"system": f"{platform.system()} {platform.machine()}", "python": platform.python_version()}
        Path(options.output).write_text(json.dumps({"machine": machine, "runs": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
