"""Steps that have been given to the devices and are not done: the loop runs ahead of them and learns of them later."""

import collections
import contextlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from flaxbert.config import Experiment
from flaxbert.training.guard import MOST_NOT_FINITE
from flaxbert.training.metrics import Record, Report, flops_per_row, peak_flops
from flaxbert.training.objective import SUMS, Sums, summarize
from flaxbert.training.step import StepOutcome

IN_FLIGHT = 2  # enough to hide the host's work; few enough that a signal is answered within a step or two


class Step(NamedTuple):
    """A step under way."""

    number: int
    outcome: StepOutcome
    sums: Sums | None
    """Those that a line of metrics is due of; None where none is."""
    batch: dict[str, np.ndarray]
    """This host's rows."""


class Interval:
    """Wall time spent on training steps since the last line of metrics."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Another line begins."""
        self.began, self.steps, self.save_seconds = time.perf_counter(), 0, 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What is done within is no training."""
        left = time.perf_counter()
        yield
        self.began += time.perf_counter() - left


class Flight:
    """The steps under way of one part of a run, and what is said of those that are done."""

    def __init__(self, experiment: Experiment, report: Report, phase: int | None):
        self._experiment, self._report, self._phase = experiment, report, phase
        self._steps: collections.deque[Step] = collections.deque()
        self.interval = Interval()
        self.stop = False
        """A process was asked to stop when a step that is done was begun."""
        self.hopeless: Step | None = None
        """The step at which too many in a row were not finite."""
        self.step_bytes: int | None = None
        """What the compiled step takes of a device, once the compiler has said so."""

    def add(self, step: Step) -> None:
        """A step has been given to the devices. Blocks until few are under way: every one holds a batch in memory."""
        self._steps.append(step)
        self.land(IN_FLIGHT)

    def land(self, left: int = 0) -> None:
        """Blocks until at most `left` steps are under way, and reports those that are done."""
        while len(self._steps) > left:
            self._land_one(self._steps.popleft())

    def _land_one(self, step: Step) -> None:
        outcome = jax.device_get(step.outcome)  # blocks until it is done
        self.interval.steps += 1
        self.stop = self.stop or bool(outcome.stop)
        if self.hopeless is not None:
            return
        if not outcome.finite:
            self._report.say(
                f"step {step.number:,}: loss {outcome.loss:.4g}, gradient norm {outcome.gradient_norm:.4g}: "
                f"not finite, so its update was skipped, {outcome.not_finite} in a row"
            )
        elif outcome.spike:
            self._report.say(
                f"step {step.number:,}: loss {outcome.loss:.4g}, gradient norm {outcome.gradient_norm:.4g}: a spike, "
                "so its update was skipped"
            )
        if outcome.not_finite >= MOST_NOT_FINITE:
            self.hopeless = step
        if step.sums is not None:
            line = self._line(step.number, outcome, jax.device_get(step.sums))
            self.interval.restart()  # the next steps run while the line is written
            self._report.record(line)

    def _line(self, number: int, outcome: StepOutcome, sums: dict[str, Any]) -> Record:
        """A line of training metrics. Losses and counts are those since the last line, across a restart too; the times
        are those of the steps that this process ran. Numpy alone: a computation of JAX's own would wait for the steps
        under way.
        """
        config, data, model = self._experiment.train, self._experiment.data, self._experiment.model
        seconds = time.perf_counter() - self.interval.began
        rows_per_second = self.interval.steps * config.batch_size / seconds
        rows = float(sums["steps"]) * config.batch_size
        fill = float(sums["tokens"]) / (rows * data.sequence_length)
        flops = flops_per_row(model, data.sequence_length, data.predictions_per_row, data.packing)
        peak = peak_flops(jax.devices()[0].device_kind)
        return {
            "step": number,
            "split": "train",
            **({} if self._phase is None else {"phase": self._phase}),
            **summarize({name: sums[name] for name in SUMS}),
            "learning_rate": float(outcome.learning_rate),
            "gradient_norm": float(sums["gradient_norm"]) / max(float(sums["steps"] - sums["not_finite"]), 1.0),
            "skipped_not_finite": int(sums["not_finite"]),
            "skipped_spikes": int(sums["spikes"]),
            "fill": fill,
            "seconds": seconds,
            "save_seconds": self.interval.save_seconds,
            "sequences_per_second": rows_per_second * float(sums["sequences"]) / rows,
            "tokens_per_second": rows_per_second * data.sequence_length * fill,
            "mfu": None if peak is None else rows_per_second * flops / (peak * jax.device_count()),
        }
