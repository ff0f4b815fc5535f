"""How long does a step of training take, beside torch's step of transformers' BERT on the same batches?

    python -m benchmarks.make_batches --corpus CORPUS --output batches.npz
    python -m benchmarks.train_step --batches batches.npz [--cases base-128,large-512] [--batch-size base-128=256]
        [--peers eager,compiled,stock,undropped] [--against before=CHECKOUT ...] [--attention fused] [--rounds N]
        [--minutes N] [--json RESULT.json] [--markdown RESULT.md]

Ours is the training loop's compiled step, its attention chosen by measurement as a run chooses it, the copy of each
batch to the device included. The peers, all in training mode with dropout, clipping and a fused AdamW, their batches on
the device beforehand:

    eager      logits at the masked positions alone, scaled-dot-product attention by the fastest kernel, no mask where
               no row has padding, a vocabulary padded as ours
    compiled   the same under torch.compile
    stock      BertForPreTraining(..., labels, next_sentence_label): logits at every position
    undropped  no peer: our own step without dropout, for what dropout costs

All begin with the same parameters; a case whose first losses, without dropout, are not equal is not measured. A case
that fails is named with its error, and the others go on. Where `--minutes` end in a case, its rounds end.
`--against` adds our own step as another checkout of the project has it, by that checkout's own `benchmarks.train_step`:
what a change brings. Products are float32 on a CPU and bfloat16 on a GPU, or as said. Contenders take turns, each in a
process of its own; a turn is a few steps, and medians over the rounds are compared. On a CPU all are bound to the same
cores. Needs jax, flax and optax, and torch and transformers for the peers; neither TensorFlow nor a corpus.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import shlex
import sys
import time
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.checkouts import add_against, read_against
from benchmarks.train_step import batch_file, turns
from benchmarks.train_step.case import Attention, Case, make_experiment
from benchmarks.train_step.compare import OURS, UNDROPPED, Record, compare
from benchmarks.train_step.tables import markdown, report

# Those that say most come first, for where the minutes end before the cases.
DEFAULT_CASES = {
    "cpu": "mini-128,base-128",
    "gpu": "base-128,large-512,large-512x8,base-128x8,base-512,large-128,base-512x8,large-128x8",
}
DEFAULT_PEERS = {"cpu": "eager,compiled,stock", "gpu": "eager,compiled,stock,undropped"}
DEFAULT_STEPS = {"cpu": 2, "gpu": 10}
DEFAULT_MINUTES = {"cpu": None, "gpu": 7.5}
# Without CUDA graphs, which would keep their memory while others work; a step of 32k tokens is too long to gain by them
DEFAULT_COMPILE_MODE = {"cpu": "default", "gpu": "max-autotune-no-cudagraphs"}
PEERS = ("eager", "compiled", "stock", UNDROPPED)
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", required=True, help="the file of python -m benchmarks.make_batches")
    parser.add_argument("--cases", help="comma-separated, such as base-128; by default those that fit the device")
    parser.add_argument("--peers", help="comma-separated; by default all, on a CPU without undropped")
    add_against(parser)
    parser.add_argument("--batch-size", default="", help="such as mini-128=32,base-128=8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="timed in a turn; 2 on a CPU, 10 on a GPU")
    parser.add_argument("--rows", choices=("all", "full"), default="all", help="full: those without padding")
    parser.add_argument("--dropout", type=float, help="of hidden states and attention alike; 0.1 each by default")
    parser.add_argument("--attention-dropout", type=float, help="of attention alone")
    parser.add_argument("--attention", choices=typing.get_args(Attention), default="auto", help="what computes ours")
    parser.add_argument("--compute-dtype", choices=("float32", "bfloat16"), help="of products")
    parser.add_argument("--vocab-size", type=int, help="of the models, at least that of the batches")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)), help="of a CPU, for each in turn")
    parser.add_argument("--compile-mode", help="of torch.compile; a GPU's default is max-autotune-no-cudagraphs")
    parser.add_argument("--minutes", type=float, help="no case or round is begun after so many; 7.5 on a GPU")
    parser.add_argument("--markdown", type=Path, help="a file for the results as a table, written after each case")
    parser.add_argument("--json", type=Path, help="a file for the results, written after each case")
    options = parser.parse_args(arguments)
    unknown = sorted(set(named(options.peers or "")) - set(PEERS))
    if unknown:
        parser.error(f"--peers {', '.join(unknown)}: expected some of {', '.join(PEERS)}")
    options.against = read_against(parser, options.against, (OURS, *PEERS))
    for name in ("rounds", "steps", "cores"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)} is not positive")
    return options


def named(peers: str) -> list[str]:
    """`eager,stock` as a list."""
    return [name for name in peers.split(",") if name]


def cases_of(options: argparse.Namespace, device: str) -> Iterator[Case]:
    """The cases asked for, or the device's. Raises ValueError for one that cannot be run."""
    names = (options.cases or DEFAULT_CASES[device]).split(",")
    sizes = dict(pair.partition("=")[::2] for pair in options.batch_size.split(",") if pair)
    for name, size in sizes.items():
        if name not in names or not size.isdecimal() or int(size) < 1:
            raise ValueError(f"--batch-size {name}={size}: expected a case of this run, =, and a number of rows")
    for name in names:
        size = int(sizes[name]) if name in sizes else None
        yield Case(
            name,
            make_experiment(
                name, options.batches, options.vocab_size, size, options.dropout, device, options.compute_dtype,
                options.attention, options.attention_dropout,
            ),
            options.batches, options.rows == "full", device, options.cores,
            options.compile_mode or DEFAULT_COMPILE_MODE[device],
        )  # fmt: skip


def describe_device() -> dict[str, Any]:
    """What jax finds, asked in a process of its own: this one takes no device."""
    child = turns.start("benchmarks.train_step.ours:Device", (), None, {})
    found: dict[str, Any] = turns.ask(child, "describe")
    turns.stop(child)
    return found


def machine(device: dict[str, Any], cores: int) -> Record:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "device": device["kind"], "processor": models[0] if models else platform.machine(), "cores": cores,
        "system": f"{platform.system()} {platform.machine()}", "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }  # fmt: skip


def versions() -> dict[str, str]:
    """Of Python and of those packages that are there: without peers neither torch nor transformers need be."""
    there = [name for name in PACKAGES if importlib.util.find_spec(name) is not None]
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in there}


def write(results: Record, options: argparse.Namespace) -> None:
    """The files that are asked for, as far as the cases have come."""
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(markdown(results), encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    try:
        device = describe_device()
        kind = "cpu" if device["backend"] == "cpu" else "gpu"
        cases = list(cases_of(options, kind))
        results: Record = {
            "command": shlex.join(["python", "-m", "benchmarks.train_step", *(arguments or sys.argv[1:])]),
            "machine": machine(device, options.cores),
            "versions": versions(),
            "batches": batch_file.read_metadata(options.batches),
            "steps_of_a_turn": options.steps or DEFAULT_STEPS[kind],
            "cases": {},
        }
        measure_all(cases, device["kind"], options, results)
    except (ValueError, OSError, turns.Failure) as error:
        raise SystemExit(f"train_step: {error}") from None
    failed = [name for name, found in results["cases"].items() if "failed" in found]
    if failed:
        raise SystemExit(f"train_step: {', '.join(failed)}: not measured, as said above")


def measure_all(cases: list[Case], device_kind: str, options: argparse.Namespace, results: Record) -> None:
    """Adds each case to the results, prints it and writes the files, until the minutes are over."""
    kind = cases[0].device
    peers = named(DEFAULT_PEERS[kind] if options.peers is None else options.peers)
    minutes = DEFAULT_MINUTES[kind] if options.minutes is None else options.minutes
    deadline = float("inf") if minutes is None else time.perf_counter() + 60 * minutes
    for number, case in enumerate(cases):
        if time.perf_counter() > deadline:
            results["left_out"] = [each.name for each in cases[number:]]
            print(f"\n{minutes:g} minutes are over: {', '.join(results['left_out'])} left out")
            write(results, options)
            break
        try:
            found = compare(
                case, device_kind, peers, options.against, options.rounds, results["steps_of_a_turn"], deadline
            )
        except (ValueError, turns.Failure) as error:  # such as memory that a smaller case does not lack
            found = {"failed": str(error)}
        results["cases"][case.name] = found
        report(case.name, found)
        write(results, options)


if __name__ == "__main__":
    main()
