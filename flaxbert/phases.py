"""Parts of a run with settings of their own, as the paper's: most steps at length 128, the last ones at 512."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

_DATA = ("sequence_length", "max_predictions")
_TRAIN = ("batch_size", "microbatches")
_CURVE = ("learning_rate", "warmup_steps")


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of a run. What is None is as the experiment has it."""

    steps: int | None = None
    """None, in the last phase alone: what the phases before it leave of `train.steps`."""
    sequence_length: int | None = None
    max_predictions: int | None = None
    batch_size: int | None = None
    microbatches: int | None = None
    learning_rate: float | None = None
    """The peak of a curve that begins with this phase. None, as `warmup_steps` too: the curve before it goes on."""
    warmup_steps: int | None = None
    """The warm-up of a curve that begins with this phase."""

    @property
    def has_curve(self) -> bool:
        """Whether the learning rate begins anew."""
        return any(getattr(self, name) is not None for name in _CURVE)


class Part(NamedTuple):
    """A phase with its place in the run."""

    first_step: int
    last_step: int
    """The number of steps done at its end: the part's own are (first_step, last_step]."""
    experiment: Any
    """The experiment with the phase's settings and the peak and warm-up of its curve."""


class Curve(NamedTuple):
    """A stretch of the run with a learning-rate curve of its own."""

    first_step: int
    last_step: int
    optimizer: Any
    """The optimizer's settings with the curve's peak and warm-up."""


def parts(experiment: Any) -> list[Part]:
    """The phases of an experiment in their order; one part where it names none. Raises ValueError naming the phase
    whose settings contradict the others'.
    """
    if not experiment.phases:
        return [Part(0, experiment.train.steps, experiment)]
    found, first, optimizer = [], 0, experiment.optimizer
    for number, phase in enumerate(experiment.phases):
        last = experiment.train.steps if phase.steps is None else first + phase.steps
        with named(experiment, number):
            data = dataclasses.replace(experiment.data, **_given(phase, _DATA))
            train = dataclasses.replace(experiment.train, **_given(phase, _TRAIN))
            if phase.has_curve:
                optimizer = dataclasses.replace(experiment.optimizer, **_given(phase, _CURVE))
            own = dataclasses.replace(experiment, data=data, optimizer=optimizer, train=train, phases=())
            found.append(Part(first, last, own))
        first = last
    return found


@contextlib.contextmanager
def named(experiment: Any, number: int) -> Iterator[None]:
    """Names the phase in a ValueError that is raised for it; a run without phases has none to name."""
    try:
        yield
    except ValueError as error:
        if not experiment.phases:
            raise
        raise ValueError(f"phases.{number}: {error}") from None


def without_effect(experiment: Any, before: Any) -> list[str]:
    """The settings of `experiment` that differ from those of `before` and that every phase overrides."""
    places = (("data", _DATA), ("train", _TRAIN), ("optimizer", _CURVE))
    found = []
    for section, name in ((section, name) for section, names in places for name in names):
        now, was = getattr(experiment, section), getattr(before, section)
        if getattr(now, name) == getattr(was, name):
            continue
        with contextlib.suppress(ValueError):  # refused with the old value: so the new one has an effect
            other = dataclasses.replace(now, **{name: getattr(was, name)})
            as_before = dataclasses.replace(experiment, **{section: other})
            if (parts(as_before), curves(as_before)) == (parts(experiment), curves(experiment)):
                found.append(f"{section}.{name}")
    return found


def part_of(experiment: Any, step: int) -> Part:
    """The part that a checkpoint of this step belongs to: the first one that ends there or later, else the last."""
    found = parts(experiment)
    return next((part for part in found if step <= part.last_step), found[-1])


def curves(experiment: Any) -> list[Curve]:
    """The learning-rate curves of an experiment in their order; a phase without one of its own prolongs the last."""
    found: list[Curve] = []
    for number, part in enumerate(parts(experiment)):
        phase = experiment.phases[number] if experiment.phases else Phase()
        if found and not phase.has_curve:
            found[-1] = found[-1]._replace(last_step=part.last_step)
            continue
        with named(experiment, number):
            optimizer = dataclasses.replace(experiment.optimizer, **_given(phase, _CURVE))
        found.append(Curve(part.first_step, part.last_step, optimizer))
    return found


def check_phases(experiment: Any) -> None:
    """Raises ValueError naming the phase that does not fit its experiment."""
    steps, last = experiment.train.steps, len(experiment.phases) - 1
    for number, phase in enumerate(experiment.phases):
        if phase.steps is None and number < last:
            raise ValueError(f"phases.{number}.steps is not set: only the last phase can take what is left")
        if phase.steps is not None and phase.steps < 1:
            raise ValueError(f"phases.{number}.steps {phase.steps} is not positive")
    found = parts(experiment)[-1]
    if found.first_step >= steps or found.last_step != steps:
        stated = " + ".join(str(phase.steps or "...") for phase in experiment.phases)
        raise ValueError(f"the steps of the phases, {stated}, do not add up to train.steps {steps}")
    for curve in curves(experiment):
        warmup, length = curve.optimizer.warmup_steps, curve.last_step - curve.first_step
        if warmup > length:
            of = f"the {length} steps of its curve" if experiment.phases else f"train.steps {steps}"
            raise ValueError(f"optimizer.warmup_steps {warmup} exceeds {of}")


def _given(phase: Phase, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(phase, name) for name in names if getattr(phase, name) is not None}
