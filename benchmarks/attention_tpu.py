"""What do fused and splash attention save on a TPU that is not here?

    python -m benchmarks.attention_tpu --output benchmarks/results/attention_tpu.json [--search N] [--rows N]
        [--only NAME ...]

Compiles the train step of base at length 512 in bfloat16 ahead of time for one v5e chip (extra `tpu`), on a machine
without TPUs: by each backend of attention, packed and not. Splash has no dropout, so it is held against fused and plain
attention without dropout too. What is read and written the compiler counts once for a loop over layers: it is that of a
step of two layers, which has no loop, and ten times what a third one adds, written out too. With `--search`, at most so
many further compilations of each look for the largest batch that fits. Writes the compiler's figures as JSON, beside it
a table in Markdown; what the file already holds is not compiled again, and several processes may write to one, which
libtpu allows where ALLOW_MULTIPLE_LIBTPU_LOAD is 1.
"""

import argparse
import dataclasses
import json
import os
import platform
import time
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from filelock import FileLock

from flaxbert.config import PRESETS, Experiment, TrainConfig
from flaxbert.training.files import write_atomically

TOPOLOGY = "v5e:1x1"
VOCABULARY = 30_522
LENGTH = 512
PACKING = 4  # sequences in a row, at most: more predictions and more [CLS]


class Case(NamedTuple):
    """A step to compile."""

    attention: str
    attention_dropout: float
    packing: int

    @property
    def name(self) -> str:
        packed = f"packed, {self.packing} to a row" if self.packing > 1 else "not packed"
        return f"{self.attention}, attention dropout {self.attention_dropout:g}, {packed}"


# The dearest question first: a compilation takes minutes.
CASES = [
    Case(attention, dropout, packing)
    for packing in (1, PACKING)
    for attention, dropout in (("xla", 0.1), ("fused", 0.1), ("splash", 0.0), ("fused", 0.0), ("xla", 0.0))
]


def experiment_of(case: Case, rows: int) -> Experiment:
    from data_pipeline.config import DataConfig

    return Experiment(
        model=dataclasses.replace(PRESETS["base"], vocab_size=VOCABULARY, attention_dropout=case.attention_dropout),
        data=DataConfig(sequence_length=LENGTH, packing=case.packing),
        train=TrainConfig(batch_size=rows, compute_dtype="bfloat16", attention=case.attention),
    )


def key_figures(case: Case, rows: int, search: int) -> dict[str, Any]:
    """What the compiler says of a step, and the largest batch that fits."""
    from flaxbert.sharding import make_mesh
    from flaxbert.tools.largest_batch import bounds, find_largest_batch, try_step
    from flaxbert.tools.topologies import device_memory, open_topology

    begin, experiment = time.perf_counter(), experiment_of(case, rows)
    devices = open_topology(TOPOLOGY)
    mesh, memory = make_mesh(experiment.mesh, devices), device_memory(devices[0], 1)
    assert memory is not None
    step, first = try_step(experiment, mesh, memory.bytes)
    tried = find_largest_batch(experiment, mesh, memory.bytes, first, search) if search else [first]
    fits, refused = bounds(tried)
    return {
        "rows": rows, "needed": first.bytes, "fits": first.fits,
        "temporary": None if step is None else step.memory["activations and temporaries"],
        "bytes_accessed": bytes_accessed(experiment, mesh),
        "largest_batch": {"rows": fits, "refused": refused, "tried": [each._asdict() for each in tried]},
        "seconds_to_compile": round(time.perf_counter() - begin, 1),
    }  # fmt: skip


def bytes_accessed(experiment: Experiment, mesh: Any) -> float | None:
    """What a step reads and writes, all of its layers counted."""
    from flaxbert.model import encoder
    from flaxbert.tools.compiled_step import compile_step

    found = []
    with mock.patch.dict(encoder.UNROLLED_LAYERS, tpu=2):
        for layers in (2, 3):
            shallow = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, num_layers=layers))
            found.append(compile_step(shallow, mesh).bytes_accessed)
    two, three = found
    return None if two is None or three is None else two + (experiment.model.num_layers - 2) * (three - two)


def table(cases: dict[str, dict[str, Any]]) -> str:
    """A line for each case."""
    lines = [
        "| attention | rows | temporaries, GB | needed in all, GB | read and written, GB "
        "| most rows that fit (refused) |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join(lines + [_line(name, found) for name, found in cases.items()]) + "\n"


def _line(name: str, found: dict[str, Any]) -> str:
    kinds = ("temporary", "needed", "bytes_accessed")
    sizes = " | ".join("" if found[kind] is None else f"{found[kind] / 1e9:.2f}" for kind in kinds)
    best = found["largest_batch"]
    refused = best["refused"] if best["refused"] is not None else "not sought"
    return f"| {name} | {found['rows']} | {sizes} | {best['rows']} ({refused}) |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="benchmarks/results/attention_tpu.json", help="a JSON file for the results")
    parser.add_argument("--search", type=int, default=0, help="compilations for the largest batch of each case")
    parser.add_argument("--rows", type=int, default=16, help="rows of the step whose figures are given")
    parser.add_argument("--only", nargs="+", choices=[case.name for case in CASES], metavar="NAME",
                        default=[case.name for case in CASES], help="cases, as the table names them")
    options = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    output = Path(options.output)
    for case in CASES:
        if case.name in options.only and case.name not in _kept(output):
            found = key_figures(case, options.rows, options.search)
            print(_line(case.name, found), f"{found['seconds_to_compile']} s", flush=True)
            with FileLock(f"{output}.lock"):  # another process may have written others meanwhile
                _write(output, _kept(output) | {case.name: found})


def _kept(output: Path) -> dict[str, dict[str, Any]]:
    cases: dict[str, dict[str, Any]] = json.loads(output.read_text())["cases"] if output.exists() else {}
    return cases


def _write(output: Path, cases: dict[str, dict[str, Any]]) -> None:
    from flaxbert.tools.topologies import compiler_version

    versions = compiler_version()
    machine = {"system": f"{platform.system()} {platform.machine()}", "python": platform.python_version()}
    order = [case.name for case in CASES]
    cases = dict(sorted(cases.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))
    write_atomically(output, json.dumps({"machine": machine, "versions": versions, "cases": cases}, indent=1) + "\n")
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    heading = (
        "# Attention backends on one v5e chip, compiled ahead of time\n\n`python -m benchmarks.attention_tpu`, on a "
        f"machine without TPUs; {named}.\n\n"
        "The whole train step of base at 512, products in bfloat16, dropout 0.1 elsewhere, a vocabulary of 30,522. GB\n"
        "are 10^9 bytes; the chip gives a program 16.9 (15.75 GiB). What is read and written is the compiler's count,\n"
        "of a kernel that of its arrays. Nothing was run: no times.\n\n"
    )
    output.with_suffix(".md").write_text(heading + table(cases))


if __name__ == "__main__":
    main()
