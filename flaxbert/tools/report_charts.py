"""Which curves of a run are drawn, in what unit, beside what, and how a stranger reads them."""

import math
from collections.abc import Callable
from typing import NamedTuple

from flaxbert.tools.report_metrics import History, Record, label_entropy, majority, value

Stretch = tuple[list[float], list[float]]


class Curve(NamedTuple):
    """Numbers over steps."""

    label: str
    stretches: list[Stretch]
    """Steps and values of each phase: what changes at a border is not joined across it."""
    look: str
    """The name of a style."""


class Chart(NamedTuple):
    """Curves in one unit."""

    title: str
    unit: str
    curves: list[Curve]
    reading: str
    """How to read it, in a sentence or two."""
    level: tuple[str, float] | None = None
    """A line across all steps, with its name."""
    from_zero: bool = True
    counts: bool = False
    """Whether what is counted is whole."""


def charts(history: History, pairs: str, floor: float | None) -> list[Chart]:
    """Those that have a finite number. `floor` is the unigram entropy of the held-out text in nats, `pairs` what the
    labels of the pairs tell.
    """
    found = [*_masked(history, floor), *_pairs(history, pairs), *_course(history), *_troubles(history)]
    drawn = [chart._replace(curves=[curve for curve in chart.curves if _is_there(curve)]) for chart in found]
    return [chart for chart in drawn if chart.curves]


def _masked(history: History, floor: float | None) -> list[Chart]:
    reading = "Lower is better: e to this power is the perplexity, between how many tokens the model wavers."
    if floor is not None:
        reading += " Above the dotted line the model does worse than guessing from how often each token comes; " \
                   "only below it does it use the context."
    level = None if floor is None else (f"unigram entropy, {floor:.2f}", floor)
    return [
        Chart("Masked tokens: loss", "nats a token", _both(history, "mlm_loss"), reading, level, from_zero=False),
        Chart(
            "Masked tokens: accuracy", "% guessed right", _both(history, "mlm_accuracy", 100),
            "Higher is better: how often the likeliest token is the one that was masked.",
        ),
    ]  # fmt: skip


def _pairs(history: History, pairs: str) -> list[Chart]:
    told = history.held_out if history.all_held_out else history.train  # before the first evaluation

    def level(label: str, number: Callable[[Record], float]) -> Curve:
        return Curve(label, _stretches(told, number), "level")

    guessed = level("entropy of the labels", label_entropy)
    common = level("always the commoner label", lambda record: 100 * majority(record))
    reading = "At the dotted line nothing has been learnt of pairs."
    return [
        Chart(f"{pairs}: loss", "nats a pair", [*_both(history, "nsp_loss"), guessed], f"Lower is better. {reading}",
              from_zero=False),
        Chart(f"{pairs}: accuracy", "% told right", [*_both(history, "nsp_accuracy", 100), common],
              f"Higher is better. {reading}", from_zero=False),
    ]  # fmt: skip


def _course(history: History) -> list[Chart]:
    def train(label: str, name: str, scale: float = 1) -> list[Curve]:
        return [Curve(label, _stretches(history.train, lambda record: scale * value(record, name)), "train")]

    return [
        Chart("Learning rate", "learning rate (no unit)", train("learning rate", "learning_rate"),
              "As the schedule has it."),
        Chart("Gradient norm", "norm (no unit)", train("before clipping", "gradient_norm"),
              "Mean over the steps between two lines. A sudden rise comes before trouble."),
        Chart("Throughput", "tokens a second", train("tokens, padding not counted", "tokens_per_second"),
              "Higher is faster. Evaluations and waits for saves are not counted."),
        Chart("MFU", "% of the devices' peak", train("model FLOPs utilization", "mfu", 100),
              "The share of the devices' peak that is spent on products of the model."),
        Chart("Fill", "% of positions", train("positions that hold a token", "fill", 100),
              "The rest is padding: it is computed, and teaches nothing."),
    ]  # fmt: skip


def _troubles(history: History) -> list[Chart]:
    def bars(label: str, name: str, look: str) -> Curve:
        return Curve(label, _stretches(history.train, lambda record: value(record, name) or math.nan), look)

    skipped = [
        bars("not finite", "skipped_not_finite", "bars"), bars("spikes", "skipped_spikes", "other bars"),
    ]  # fmt: skip
    return [
        Chart(
            "Skipped updates", "updates since the last line", skipped,
            "Steps whose gradients were not finite, or lay far beyond the usual, and changed nothing.", counts=True,
        ),
        Chart("Waits for saves", "seconds since the last line", [bars("seconds waited", "save_seconds", "bars")],
              "How long the steps stood still for checkpoints; that at the end of a phase or a launch is not counted."),
    ]  # fmt: skip


def _both(history: History, name: str, scale: float = 1) -> list[Curve]:
    def number(record: Record) -> float:
        return scale * value(record, name)

    return [
        Curve("training", _stretches(history.train, number), "train"),
        Curve("held-out", _stretches(history.held_out, number), "held-out"),
    ]


def _stretches(records: list[list[Record]], number: Callable[[Record], float]) -> list[Stretch]:
    return [([float(record["step"]) for record in part], [number(record) for record in part]) for part in records]


def _is_there(curve: Curve) -> bool:
    return any(math.isfinite(number) for _, numbers in curve.stretches for number in numbers)
