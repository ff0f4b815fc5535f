"""One case: contenders started from equal parameters, their losses compared, their steps timed in turns."""

import contextlib
import os
import statistics
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks.train_step import turns
from benchmarks.train_step.case import Case, batches_of, without_dropout
from flaxbert.training.metrics import flops_per_row, peak_flops

OURS, OUR_CLASS = "flaxbert", "benchmarks.train_step.ours:Ours"
PEER_CLASS = "benchmarks.train_step.peers:Peer"
UNDROPPED = "undropped"  # our own step without dropout
LEAD_IN = 2  # steps of a turn that are not timed: caches, clocks and freed memory come back in them

# Of the first loss, relative. In float32 the order of summation differs, and our mean has 1e-5 more in its denominator:
# 3e-7 was seen. In bfloat16 two roundings of a logit differ by 2e-3 of it, which the mean over predictions takes down:
# 1e-6 was seen of 640, 5e-5 of 160. An untrained model says so little that logits at wrong places move its loss by 1e-3
# alone.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-4}

Record = dict[str, Any]


def compare(
    case: Case, device_kind: str, forms: list[str], checkouts: dict[str, str], rounds: int, steps: int,
    deadline: float = float("inf"),
) -> Record:
    """What was measured of ours, of ours in other checkouts (name → folder), of ours without dropout and of torch's
    forms; one that cannot run has its error in place of numbers. After `deadline`, of `time.perf_counter`, the second
    round is the last.

    Raises ValueError where the first losses differ, and Failure where ours fails.
    """
    with contextlib.ExitStack() as stack:
        failed: dict[str, str] = {}
        contenders, first = _start_all(stack, case, forms, checkouts, failed)
        check_losses(case, first)
        attention, said = turns.ask(contenders[OURS], "attention_used")
        seconds, product = _take_turns(contenders, failed, rounds, steps, deadline)
        found: dict[str, Record] = {}
        for name in seconds:
            ask = contenders[name]
            found[name] = {
                **numbers(case, device_kind, seconds[name], seconds[OURS], statistics.median(product)),
                "first_loss": first[name], "last_loss": turns.ask(ask, "loss"),
                "peak_memory_bytes": turns.ask(ask, "peak_memory"), "idle_share_of_a_core": turns.ask(ask, "idle"),
            }  # fmt: skip
        # What a peer's library makes of the machine: a step is slow by that too.
        torch_product = _product_of_torch([contenders[name] for name in forms if name in seconds and name != UNDROPPED])
        failures = {name: {"failed": reason} for name, reason in failed.items()}
    peak = peak_flops(device_kind)
    return describe(case) | {
        "attention": attention, "choice_of_attention": said, "peak_flops": peak,
        "measured_peak_flops": statistics.median(product), "torch_measured_peak_flops": torch_product,
        "contenders": found | failures,
    }  # fmt: skip


def _start_all(
    stack: contextlib.ExitStack, case: Case, forms: list[str], checkouts: dict[str, str], failed: dict[str, str]
) -> tuple[dict[str, turns.Contender], dict[str, float]]:
    """(contenders, the first loss of each): ours, which writes the parameters that torch's forms begin with, first."""
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    weights = os.path.join(folder, "model.safetensors")
    contenders: dict[str, turns.Contender] = {}
    first: dict[str, float] = {}
    for name in [OURS, *checkouts, *forms]:
        with _noted(failed, name):
            if name in (OURS, UNDROPPED, *checkouts):
                own = without_dropout(case) if name == UNDROPPED else case
                written = weights if name == OURS else os.path.join(folder, f"{name}.safetensors")
                contenders[name] = _start(stack, case, OUR_CLASS, (own, written), checkouts.get(name))
            else:
                contenders[name] = _start(stack, case, PEER_CLASS, (case, weights, name))
            first[name] = turns.ask(contenders[name], "loss")
    return contenders, first


def _start(
    stack: contextlib.ExitStack, case: Case, contender: str, arguments: tuple[Any, ...], checkout: str | None = None
) -> turns.Contender:
    """A contender that waits for its first turn; it ends with the stack."""
    # Contenders share the device's memory, of which jax would take three fourths at once.
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    cores = None
    if case.device == "cpu":
        environment["OMP_NUM_THREADS"], cores = str(case.cores), case.cores
    started = turns.start(contender, arguments, cores, environment, checkout)
    stack.callback(turns.stop, started)
    return started


@contextlib.contextmanager
def _noted(failed: dict[str, str], name: str) -> Any:
    """A peer that fails is named with its error, and the others go on."""
    try:
        yield
    except turns.Failure as error:
        if name == OURS:
            raise
        failed[name] = str(error)


def check_losses(case: Case, losses: dict[str, float]) -> None:
    """Raises ValueError where a loss of the same parameters and batch, without dropout, is not ours."""
    tolerance = TOLERANCE[case.experiment.train.compute_dtype]
    for name, loss in losses.items():
        if not abs(loss - losses[OURS]) <= tolerance * abs(losses[OURS]):
            raise ValueError(
                f"case {case.name}: the first loss of {name} is {loss:.7g} and ours is {losses[OURS]:.7g}, which "
                f"differ by more than {tolerance:.2g} of it: they do not compute the same"
            )


def _take_turns(
    contenders: dict[str, turns.Contender], failed: dict[str, str], rounds: int, steps: int, deadline: float
) -> tuple[dict[str, list[float]], list[float]]:
    """(seconds of a step in each round; FLOP/s of a large product in each round). The first round is not kept."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders if name not in failed}
    product = []
    for number in range(rounds + 1):
        if number > 1 and time.perf_counter() > deadline:
            break
        product.append(turns.ask(contenders[OURS], "product"))
        for name in list(seconds):
            with _noted(failed, name):
                seconds[name].append(turns.ask(contenders[name], "block", LEAD_IN, steps))
        seconds = {name: found for name, found in seconds.items() if name not in failed}
    return {name: found[1:] for name, found in seconds.items()}, product[1:]


def _product_of_torch(peers: list[turns.Contender]) -> float | None:
    """FLOP/s of a large product by the first peer's library; None where no peer is there, or it has no memory left."""
    try:
        return statistics.median(turns.ask(peers[0], "product") for _ in range(3)) if peers else None
    except turns.Failure:
        return None


def describe(case: Case) -> Record:
    """The sizes of a case; FLOPs are what a step needs, padding included (flaxbert/training/metrics.py), whatever a
    contender computes beside it.
    """
    experiment = case.experiment
    model, length, predictions = experiment.model, experiment.data.sequence_length, experiment.data.predictions_per_row
    rows = experiment.train.batch_size
    return {
        "batch_size": rows, "length": length, "predictions": predictions, "vocab_size": model.vocab_size,
        "dropout": model.dropout, "attention_dropout": model.attention_dropout,
        "compute_dtype": experiment.train.compute_dtype, "full_rows": case.full_rows, "fill": fill(case),
        "distinct_batches": len(batches_of(case)),
        "flops_per_step": rows * flops_per_row(model, length, predictions, experiment.data.packing),
    }  # fmt: skip


def fill(case: Case) -> float:
    """Share of the tokens of a step that are no padding."""
    return float(np.mean([(batch["sequence_ids"] > 0).mean() for batch in batches_of(case)]))


def numbers(case: Case, device_kind: str, seconds: list[float], ours: list[float], product: float) -> Record:
    """Speeds of one contender from the seconds of a step in each round, and how many times faster ours was."""
    sizes, peak = describe(case), peak_flops(device_kind)
    step = statistics.median(seconds)
    flops, tokens = sizes["flops_per_step"] / step, sizes["batch_size"] * sizes["length"] / step
    each = [theirs / mine for theirs, mine in zip(seconds, ours, strict=True)]
    return {
        "step_milliseconds": 1e3 * step, "milliseconds_of_each_round": [1e3 * found for found in seconds],
        "sequences_per_second": sizes["batch_size"] / step,
        "tokens_per_second": tokens * sizes["fill"], "tokens_per_second_with_padding": tokens,
        "teraflops": flops / 1e12, "mfu": None if peak is None else flops / peak,
        "share_of_measured_peak": flops / product,
        "flaxbert_is_faster_by": {"medians": step / statistics.median(ours), "least": min(each), "most": max(each)},
    }  # fmt: skip
