"""What do fused and splash attention save on a TPU that is not here?

    python -m benchmarks.attention_tpu [--output RESULT.json] [--search N] [--rows N]
        [--only NAME ...] [--again]

Compiles the train step of base at length 512 in bfloat16 ahead of time for one v5e chip (extra `tpu`), on a machine
without TPUs: by each backend of attention, packed and not. Splash has no dropout, so it is held against fused and plain
attention without dropout too. What is read and written the compiler counts once for a loop over layers: it is that of a
step of two layers, which has no loop, and ten times what a third one adds, written out too. With `--search`, at most so
many further compilations of each look for the largest batch that fits. Writes the compiler's figures as JSON, beside it
a table in Markdown; what the file already holds is not compiled again, and several processes may write to one
(`benchmarks.ahead_of_time`).
"""

import argparse
import dataclasses
import functools
from typing import Any, Literal, NamedTuple
from unittest import mock

from benchmarks import ahead_of_time
from flaxbert.config import PRESETS, Experiment, TrainConfig

TOPOLOGY = "v5e:1x1"
VOCABULARY = 30_522
LENGTH = 512
PACKING = 4  # sequences in a row, at most: more predictions and more [CLS]


class Case(NamedTuple):
    """A step to compile."""

    attention: Literal["xla", "fused", "splash"]
    attention_dropout: float
    packing: int

    @property
    def name(self) -> str:
        packed = f"packed, {self.packing} to a row" if self.packing > 1 else "not packed"
        return f"{self.attention}, attention dropout {self.attention_dropout:g}, {packed}"


DROPOUTS: list[tuple[Literal["xla", "fused", "splash"], float]] = [
    ("xla", 0.1), ("fused", 0.1), ("splash", 0.0), ("fused", 0.0), ("xla", 0.0),
]
# The dearest question first: a compilation takes minutes.
CASES = [Case(attention, dropout, packing) for packing in (1, PACKING) for attention, dropout in DROPOUTS]


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

    experiment = experiment_of(case, rows)
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


def _line(name: str, found: dict[str, Any]) -> str:
    kinds = ("temporary", "needed", "bytes_accessed")
    sizes = " | ".join("" if found[kind] is None else f"{found[kind] / 1e9:.2f}" for kind in kinds)
    best = found["largest_batch"]
    refused = best["refused"] if best["refused"] is not None else "not sought"
    return f"| {name} | {found['rows']} | {sizes} | {best['rows']} ({refused}) |"


PAGE = ahead_of_time.Page(
    "Attention backends on one v5e chip, compiled ahead of time",
    "attention_tpu",
    """The whole train step of base at 512, products in bfloat16, dropout 0.1 elsewhere, a vocabulary of 30,522. GB
are 10^9 bytes; the chip gives a program 16.9 (15.75 GiB). What is read and written is the compiler's count,
of a kernel that of its arrays. Nothing was run: no times.
""",
    """| attention | rows | temporaries, GB | needed in all, GB | read and written, GB | most rows that fit (refused) |
|---|---|---|---|---|---|""",
    _line,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ahead_of_time.add_flags(parser, PAGE, [case.name for case in CASES])
    parser.add_argument("--search", type=int, default=0, help="compilations for the largest batch of each case")
    parser.add_argument("--rows", type=int, default=16, help="rows of the step whose figures are given")
    options = parser.parse_args()
    cases = {case.name: functools.partial(key_figures, case, options.rows, options.search) for case in CASES}
    ahead_of_time.compile_all(options.output, cases, options.only, PAGE, options.again)


if __name__ == "__main__":
    main()
