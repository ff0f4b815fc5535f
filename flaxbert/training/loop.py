"""The training loop: the only place with time, files, signals and logging."""

import concurrent.futures
import contextlib
import dataclasses
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from flaxbert.config import Experiment
from flaxbert.phases import Part, named, parts
from flaxbert.sharding import make_mesh
from flaxbert.training.attention_choice import chosen
from flaxbert.training.checkpoint import Checkpoints, open_checkpoints
from flaxbert.training.distributed import ends_on_error
from flaxbert.training.evaluation import any_process, evaluate
from flaxbert.training.flight import Flight, Step
from flaxbert.training.guard import new_guard
from flaxbert.training.metrics import SILENT, Record, Report, open_report
from flaxbert.training.profile import is_missed, open_profile
from flaxbert.training.recovery import saved_steps
from flaxbert.training.schedule import Schedule, run_schedule
from flaxbert.training.signals import stop_requested
from flaxbert.training.step import Functions, TrainState, abstract_batch, build_functions, step_bytes
from flaxbert.training.study import keep_for_study

Batch = dict[str, np.ndarray]
Position = dict[str, int]


class Streams(NamedTuple):
    """The batches of a run: this host's rows of each global batch. Both take the number of a phase."""

    train: Callable[[int, Position | None], Iterator[tuple[Batch, Position]]]
    """Endless, from a position on, which may be the last one of the phase before; gives each batch with the position
    after it."""
    validation: Callable[[int], Iterator[Batch]]
    """One pass over the held-out documents, the same each time."""


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


class _Run(NamedTuple):
    """What the parts of a run share."""

    experiment: Experiment
    workdir: str
    schedule: Schedule
    streams: Streams
    checkpoints: Checkpoints
    report: Report
    stop: Callable[[], bool]


class _Course(NamedTuple):
    """A part of a run, ready to be trained."""

    number: int
    part: Part
    functions: Functions
    flight: Flight


class _Progress(NamedTuple):
    """How far a run has come."""

    step: int
    state: TrainState
    position: Position | None
    """Of the stream, after the last batch used; None before the first step."""


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
            run = _Run(experiment, workdir, schedule, streams, checkpoints, report, stop)
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


def _begun(checkpoints: Checkpoints, functions: Functions, begin_with: Any) -> _Progress:
    """The newest checkpoint, or the beginning."""
    restored = checkpoints.restore(functions.abstract_state)
    if restored is not None:
        return _Progress(int(restored[0].step), *restored)
    state = functions.init()
    if begin_with is not None:
        state = state._replace(params=jax.tree.map(_placed, begin_with, functions.abstract_state.params))
    return _Progress(0, state, None)


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


def _train_parts(run: _Run, mesh: jax.sharding.Mesh, progress: _Progress) -> Outcome:
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
            progress, done = _train_part(run, _Course(number, part, functions, flight), progress)
        if not done:
            return _stopped(run.report, progress.step)
    if progress.step == begun:
        run.report.say(f"nothing to do: the run has reached step {begun:,} of {found[-1].last_step:,}")
    return Outcome(progress.step, False)


def _train_part(run: _Run, course: _Course, progress: _Progress) -> tuple[_Progress, bool]:
    """(the progress, whether the part is done). All of it is saved in either case."""
    config, last = course.part.experiment.train, course.part.last_step
    saved, held_out = progress.step if progress.position is not None else -1, None
    own = course.part.first_step < saved  # the step at a border is the last one of the phase before it
    if own and saved == progress.step and run.report.evaluated < saved and _is_due(config.eval_every, saved, last):
        if not _evaluate_checkpoint(run, course, progress):
            return progress, False
    if progress.step >= last:
        return progress, True
    if any_process(run.stop()):
        return progress, False
    interval = course.flight.interval
    for progress in (steps := _steps(run, course, progress)):
        evaluates = _is_due(config.eval_every, progress.step, last)
        saves = _is_due(config.checkpoint_every, progress.step, last)
        if evaluates or saves:
            course.flight.land()
            _check_hope(run, course, progress.state)
        with interval.paused():
            if evaluates:
                held_out = _held_out(run, course, progress)
                if held_out is None:
                    break
                run.report.record(held_out)
            if saves:
                interval.save_seconds += _save(run, run.checkpoints.save, progress, held_out)
                saved = progress.step
    steps.close()
    course.flight.land()
    _check_hope(run, course, progress.state)
    if progress.position is not None:
        _save(run, run.checkpoints.commit, progress, held_out)
    return progress, saved == progress.step == last


def _steps(run: _Run, course: _Course, progress: _Progress) -> Generator[_Progress, None, None]:
    """Trains step by step to the end of the part, or until a process is asked to stop; gives the progress after each
    step that has been begun. A state that was given is consumed by the next step.
    """
    config, flight, functions = course.part.experiment.train, course.flight, course.functions
    step, state, _ = progress
    batches = run.streams.train(course.number, progress.position)
    with concurrent.futures.ThreadPoolExecutor(1) as beside:  # a stream's beginning, TensorFlow's import, takes seconds
        first = beside.submit(next, batches)
        train_step = functions.train.lower(functions.abstract_state, abstract_batch(course.part.experiment)).compile()
    batch, after = first.result()
    flight.step_bytes = step_bytes(train_step, jax.local_devices()[0].platform)
    flight.interval.restart()
    with open_profile(config.profiled, run.workdir, run.report.say) as profile:
        # Of one process alone the handler is asked: its answer is there a step or two before that of the devices.
        while step < course.part.last_step and not (flight.stop or (jax.process_count() == 1 and run.stop())):
            profile(step, flight.land, flight.interval.paused)
            state, outcome = train_step(state, functions.put(batch, run.stop()))
            step, sums = step + 1, None
            run.report.step(step)
            if _is_due(config.log_every, step, course.part.last_step):
                sums, state = state.sums, state._replace(sums=functions.zero_sums())
            flight.add(Step(step, outcome, sums, batch))
            _check_hope(run, course, state)
            position = after
            batch, after = next(batches)
            yield _Progress(step, state, position)
        profile(step, flight.land, flight.interval.paused)


def _check_hope(run: _Run, course: _Course, state: TrainState) -> None:
    """Raises ValueError once too many steps in a row, of those that are done, were not finite; saves nothing."""
    if course.flight.hopeless is not None:
        raise keep_for_study(run.workdir, state, course.flight.hopeless)


def _held_out(run: _Run, course: _Course, progress: _Progress) -> Record | None:
    """The held-out record of the run as it stands; None where a process was asked to stop."""
    batches, experiment = run.streams.validation(course.number), course.part.experiment
    found = evaluate(experiment, course.functions, batches, progress.state, progress.step, run.stop)
    return found if found is None or not run.experiment.phases else found | {"phase": course.number}


def _evaluate_checkpoint(run: _Run, course: _Course, progress: _Progress) -> bool:
    """Writes the held-out line of the checkpoint just restored, which a signal had kept from being written, and the
    checkpoint again with its loss; False where another signal came. The only one stays as it is, without its loss.
    """
    held_out = _held_out(run, course, progress)
    if held_out is None:
        return False
    run.report.record(held_out)
    if any_process(len(saved_steps(run.workdir)) > 1):  # all have looked before the first one moves it
        _save(run, run.checkpoints.replace, progress, held_out)
    return True


def _forgetful(state: TrainState, functions: Functions) -> TrainState:
    """The state as a phase begins: losses of other batches and lengths are no measure of a spike."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, functions.abstract_state.guard)
    fresh = jax.jit(new_guard, out_shardings=shardings)()
    return state._replace(guard=fresh._replace(not_finite=state.guard.not_finite))


def _stopped(report: Report, step: int) -> Outcome:
    done = f"at step {step:,} with its work saved" if step else "before the first step"
    report.say(f"stopped {done}: the same command goes on from here")
    return Outcome(step, True)


def _is_due(every: int, step: int, last: int) -> bool:
    """Whether what happens every so many steps (0: never), and at the last one, happens after this step."""
    return every > 0 and (step % every == 0 or step == last)


def _save(run: _Run, save: Callable[..., float], progress: _Progress, held_out: Record | None) -> float:
    """Saves the progress; the held-out loss goes along where it is that of this very step. Returns the seconds that it
    kept the steps waiting.
    """
    current = held_out if held_out is not None and held_out["step"] == progress.step else None
    kept = () if current is None else current.items()
    metrics = {name: value for name, value in kept if name == "phase" or isinstance(value, float)} or None
    return save(progress.state, progress.step, progress.position, dataclasses.asdict(run.experiment), metrics)
