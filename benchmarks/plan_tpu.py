"""What would pretraining BERT take on TPUs that are not here?

    python -m benchmarks.plan_tpu [--output RESULT.json] [--search N] [--only NAME ...] [--again]

Plans base and large at lengths 128 and 512 on four slices, bfloat16 products, as `flaxbert plan` does: the real step is
compiled ahead of time by libtpu (extra `tpu`), on a machine without TPUs, with attention written out: what kernels save
is the question of `benchmarks.attention_tpu`. A batch is the paper's 256 rows where that leaves each chip a few; every
schedule sees the paper's 256 million rows. Writes the key figures as JSON, and beside it the same as a table in
Markdown; what the file already holds is not planned again, and several processes may write to one
(`benchmarks.ahead_of_time`).
"""

import argparse
import dataclasses
import functools
from typing import Any

from benchmarks import ahead_of_time
from flaxbert.config import PRESETS, Experiment, MeshConfig, TrainConfig

ROWS = 256_000_000  # 1,000,000 steps of 256 in the paper
VOCABULARY = 30_522

# (preset, length) → rows in a batch, on each slice. Large at 512 keeps 4 to 8 rows on a chip, or its activations
# outgrow the memory; on v5e its state is divided too.
BATCHES = {
    "v5e:4x4": {("base", 128): 256, ("base", 512): 256, ("large", 128): 256, ("large", 512): 64},
    "v5e:16x16": {("base", 128): 4096, ("base", 512): 4096, ("large", 128): 4096, ("large", 512): 1024},
    "v5p:4x4x4": {("base", 128): 256, ("base", 512): 256, ("large", 128): 256, ("large", 512): 256},
    "v6e:2x4": {("base", 128): 256, ("base", 512): 256, ("large", 128): 256, ("large", 512): 64},
}
DIVIDED = {("v5e:4x4", "large", 512): 16, ("v5e:16x16", "large", 512): 16}
SEARCHED = {("v5e:4x4", "base", 128): 8}  # compilations for the largest batch: minutes each, so not of every plan


def experiment_of(topology: str, preset: str, length: int) -> Experiment:
    """The paper's recipe with this slice's batch and layout."""
    from data_pipeline.config import DataConfig

    rows = BATCHES[topology][preset, length]
    return Experiment(
        model=dataclasses.replace(PRESETS[preset], vocab_size=VOCABULARY),
        data=DataConfig(sequence_length=length),
        mesh=MeshConfig(fsdp=DIVIDED.get((topology, preset, length), 1)),
        train=TrainConfig(steps=ROWS // rows, batch_size=rows, compute_dtype="bfloat16", attention="xla"),
    )


def key_figures(topology: str, preset: str, length: int, search: int) -> dict[str, Any]:
    """A plan without its settings."""
    from flaxbert.tools.plan import plan

    experiment = experiment_of(topology, preset, length)
    found, = plan(experiment, topology, search=search)
    found.pop("settings")
    return {
        "topology": topology, "preset": preset, "length": length, "batch_size": experiment.train.batch_size, **found,
    }  # fmt: skip


def _line(_: str, found: dict[str, Any]) -> str:
    devices, flops, speed, memory = found["devices"], found["flops"], found["speed"], found["memory"]
    needed = "more than it has" if found["memory_needed"] is None else f"{found['memory_needed'] / 1e9:.1f}"
    kinds = "" if memory is None else ", ".join(
        f"{memory[kind] / 1e9:.2f}" for kind in ("weights", "moments", "activations and temporaries")
    )
    sent = "" if memory is None else "; ".join(
        f"{kind} {traffic['bytes'] / 1e9:.2f} in {traffic['count']:,}"
        for kind, traffic in found["collectives"]["kinds"].items()
    )
    mesh = " x ".join(f"{name} {size}" for name, size in devices["mesh"].items() if size > 1)
    return (
        f"| {found['topology']} | {found['preset']} | {found['length']} | {found['batch_size']:,}, {mesh} "
        f"| {needed} ({devices['memory'] / 1e9:.1f}){'' if found['fits'] else ': does not fit'} "
        f"| {kinds} | {_largest(found)} "
        f"| {flops['model'] / 1e12:.1f} ({flops['counted'] / 1e12:.1f}) | {sent} | {speed['rows_per_second']:,.0f} "
        f"| {speed['seconds'] / 86400:.2f} | {speed['device_hours']:,.0f} |"
    )


def _largest(found: dict[str, Any]) -> str:
    search = found["largest_batch"]
    if search is None:
        return "not searched"
    return f"{search['rows']:,} rows" + (f" ({search['refused']:,} do not fit)" if search["refused"] else "")


PAGE = ahead_of_time.Page(
    "Plans for TPUs, compiled ahead of time",
    "plan_tpu",
    """GB are 10^9 bytes. Products in bfloat16, a vocabulary of 30,522, the paper's 256 million rows whatever the
batch. TFLOP are model FLOPs; XLA's count is of the step as it is written, norms and softmax included. Rates
and hours are what 50 % of the peak would give: no measurement. Memory is the compiler's own account.
""",
    "| slice | model | length | rows, mesh | GB a chip (of) | weights, moments, activations "
    "| largest batch found | TFLOP a step (XLA's count) | sent a step, GB a chip | rows/s at 50 % | days "
    "| chip hours |\n|---|---|---|---|---|---|---|---|---|---|---|---|",
    _line,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [(topology, *size) for topology, sizes in BATCHES.items() for size in sizes]
    named = {f"{topology} {preset} {length}": (topology, preset, length) for topology, preset, length in every}
    ahead_of_time.add_flags(parser, PAGE, list(named))
    parser.add_argument("--search", type=int, help="compilations for the largest batch of each plan; else of SEARCHED")
    options = parser.parse_args()
    cases = {
        name: functools.partial(key_figures, *case, SEARCHED.get(case, 0) if options.search is None else options.search)
        for name, case in named.items()
    }
    ahead_of_time.compile_all(options.output, cases, options.only, PAGE, options.again)


if __name__ == "__main__":
    main()
