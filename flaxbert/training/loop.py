"""The training loop: with `flaxbert.training.part`, the only place with time, files, signals and logging."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from flaxbert.config import Experiment
from flaxbert.phases import named, parts
from flaxbert.sharding import make_mesh
from flaxbert.training.attention_choice import chosen
from flaxbert.training.checkpoint import Checkpoints, open_checkpoints
from flaxbert.training.distributed import ends_on_error
from flaxbert.training.evaluation import evaluate
from flaxbert.training.flight import Flight
from flaxbert.training.guard import new_guard
from flaxbert.training.metrics import SILENT, Report, open_report
from flaxbert.training.part import Course, Progress, Run, Streams, train_part
from flaxbert.training.profile import is_missed
from flaxbert.training.schedule import run_schedule
from flaxbert.training.signals import stop_requested
from flaxbert.training.step import Functions, TrainState, build_functions


class Outcome(NamedTuple):
    """How a call of `train` ended."""

    step: int
    stopped: bool
    """A signal ended it before the last step; its work is saved."""


class DeviceMemoryError(Exception):
    """The devices' memory is exhausted."""

    def __init__(self, experiment: Experiment, phase: int | None, step_bytes: int | None) -> None:
        super().__init__("the devices' memory is exhausted")
        self.experiment, self.phase = experiment, phase
        """Of the phase whose step needs too much; None: the run has no phases."""
        self.step_bytes = step_bytes
        """What the step takes of each device, where it had been compiled."""


def check_devices(experiment: Experiment) -> int:
    """The bytes of a run's state. Raises ValueError where the devices found cannot carry the experiment: its mesh, its
    batches, its sizes.
    """
    mesh = make_mesh(experiment.mesh)
    for number, part in enumerate(parts(experiment)):
        with jax.set_mesh(mesh), named(experiment, number):
            state = build_functions(part.experiment, mesh).abstract_state
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def train(
    experiment: Experiment, workdir: str, streams: Streams, stop: Callable[[], bool] | None = None,
    begin_with: Any = None,
) -> Outcome:  # fmt: skip
    """Trains from the newest checkpoint of `workdir` (or from the start) to the last step, or until `stop` says so.

    Raises DeviceMemoryError where the devices have too little memory, and what `Checkpoints` raises. Without `stop`, a
    SIGTERM or SIGINT does. A run that begins with the parameters `begin_with`, and not with new ones,
    evaluates them first: a line of step 0. Of several processes, the first one speaks and writes.
    """
    mesh, schedule, first = make_mesh(experiment.mesh), run_schedule(experiment), parts(experiment)[0].experiment
    with jax.set_mesh(mesh), open_checkpoints(workdir, experiment.train.keep_checkpoints) as checkpoints:
        functions = build_functions(first, mesh, schedule)
        with _exhaustion_named(first, 0 if experiment.phases else None):
            progress = _begun(checkpoints, functions, begin_with)
        with (
            _report(workdir, progress.step, experiment.train.steps) as report,
            contextlib.nullcontext(stop) if stop else stop_requested() as stop,
            ends_on_error(),
        ):
            checkpoints.say = report.say
            if progress.position is not None:
                report.say(f"resumed at step {progress.step:,}")
                if is_missed(experiment.train.profiled, workdir, progress.step):
                    report.say(f"no profile: the steps {experiment.train.profile_steps} are past")
            elif begin_with is not None and experiment.train.eval_every and report.evaluated != 0:
                with _exhaustion_named(first, 0 if experiment.phases else None):
                    held_out = evaluate(first, functions, streams.validation(0), progress.state, 0, stop)
                if held_out is None:
                    return _stopped(report, 0)
                report.record(held_out | ({"phase": 0} if experiment.phases else {}))
            run = Run(experiment, workdir, schedule, streams, checkpoints, report, stop)
            return _train_parts(run, mesh, progress)


@contextlib.contextmanager
def _exhaustion_named(experiment: Experiment, phase: int | None, flight: Flight | None = None) -> Iterator[None]:
    """XLA's refusal of memory, when a program is compiled or run, as DeviceMemoryError."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DeviceMemoryError(experiment, phase, None if flight is None else flight.step_bytes) from error


def _begun(checkpoints: Checkpoints, functions: Functions, begin_with: Any) -> Progress:
    """The newest checkpoint, or the beginning."""
    restored = checkpoints.restore(functions.abstract_state)
    if restored is not None:
        return Progress(int(restored[0].step), *restored)
    state = functions.init()
    if begin_with is not None:
        state = state._replace(params=jax.tree.map(_placed, begin_with, functions.abstract_state.params))
    return Progress(0, state, None)


def _placed(x: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
    """An array that every process has, laid out as the run's own."""
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: x[index])


@contextlib.contextmanager
def _report(workdir: str, step: int, steps: int) -> Iterator[Report]:
    """The report of the first process; the others say nothing, and know what it has read."""
    with open_report(workdir, step, steps) if jax.process_index() == 0 else contextlib.nullcontext(SILENT) as report:
        if jax.process_count() > 1:
            report = report._replace(evaluated=int(multihost_utils.broadcast_one_to_all(np.int64(report.evaluated))))
        yield report


def _train_parts(run: Run, mesh: jax.sharding.Mesh, progress: Progress) -> Outcome:
    """The phases that are left, one after the other. One that ends where the run stands may lack its held-out line."""
    begun, found = progress.step, parts(run.experiment)
    for number, part in enumerate(found):
        if progress.step > part.last_step:
            continue
        if progress.step < part.last_step:
            part = part._replace(experiment=chosen(part.experiment, mesh, run.report.say, run.workdir))
        functions = build_functions(part.experiment, mesh, run.schedule)
        flight = Flight(part.experiment, run.report, number if run.experiment.phases else None)
        if number and progress.step == part.first_step:
            run.report.say(
                f"phase {number + 1} of {len(found)} from step {progress.step:,} on: "
                f"{part.experiment.train.batch_size:,} rows of {part.experiment.data.sequence_length} tokens"
            )
            progress = progress._replace(state=_forgetful(progress.state, functions))
        with _exhaustion_named(part.experiment, number if run.experiment.phases else None, flight):
            progress, done = train_part(run, Course(number, part, functions, flight), progress)
        if not done:
            return _stopped(run.report, progress.step)
    if progress.step == begun:
        run.report.say(f"nothing to do: the run has reached step {begun:,} of {found[-1].last_step:,}")
    return Outcome(progress.step, False)


def _forgetful(state: TrainState, functions: Functions) -> TrainState:
    """The state as a phase begins: losses of other batches and lengths are no measure of a spike."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, functions.abstract_state.guard)
    fresh = jax.jit(new_guard, out_shardings=shardings)()
    return state._replace(guard=fresh._replace(not_finite=state.guard.not_finite))


def _stopped(report: Report, step: int) -> Outcome:
    done = f"at step {step:,} with its work saved" if step else "before the first step"
    report.say(f"stopped {done}: the same command goes on from here")
    return Outcome(step, True)
