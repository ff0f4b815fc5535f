"""One part of a run, a phase or all of it: its steps, and what is done between them."""

import concurrent.futures
import dataclasses
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

import jax
import numpy as np

from flaxbert.config import Experiment
from flaxbert.phases import Part
from flaxbert.training.checkpoint import Checkpoints
from flaxbert.training.evaluation import any_process, evaluate
from flaxbert.training.flight import Flight, Step
from flaxbert.training.metrics import Record, Report
from flaxbert.training.profile import open_profile
from flaxbert.training.recovery import saved_steps
from flaxbert.training.schedule import Schedule
from flaxbert.training.step import Functions, TrainState, abstract_batch, step_bytes
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


class Run(NamedTuple):
    """What the parts of a run share."""

    experiment: Experiment
    workdir: str
    schedule: Schedule
    streams: Streams
    checkpoints: Checkpoints
    report: Report
    stop: Callable[[], bool]


class Course(NamedTuple):
    """A part of a run, ready to be trained."""

    number: int
    part: Part
    functions: Functions
    flight: Flight


class Progress(NamedTuple):
    """How far a run has come."""

    step: int
    state: TrainState
    position: Position | None
    """Of the stream, after the last batch used; None before the first step."""


def train_part(run: Run, course: Course, progress: Progress) -> tuple[Progress, bool]:
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


def _steps(run: Run, course: Course, progress: Progress) -> Generator[Progress, None, None]:
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
            yield Progress(step, state, position)
        profile(step, flight.land, flight.interval.paused)


def _check_hope(run: Run, course: Course, state: TrainState) -> None:
    """Raises ValueError once too many steps in a row, of those that are done, were not finite; saves nothing."""
    if course.flight.hopeless is not None:
        raise keep_for_study(run.workdir, state, course.flight.hopeless)


def _held_out(run: Run, course: Course, progress: Progress) -> Record | None:
    """The held-out record of the run as it stands; None where a process was asked to stop."""
    batches, experiment = run.streams.validation(course.number), course.part.experiment
    found = evaluate(experiment, course.functions, batches, progress.state, progress.step, run.stop)
    return found if found is None or not run.experiment.phases else found | {"phase": course.number}


def _evaluate_checkpoint(run: Run, course: Course, progress: Progress) -> bool:
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


def _is_due(every: int, step: int, last: int) -> bool:
    """Whether what happens every so many steps (0: never), and at the last one, happens after this step."""
    return every > 0 and (step % every == 0 or step == last)


def _save(run: Run, save: Callable[..., float], progress: Progress, held_out: Record | None) -> float:
    """Saves the progress; the held-out loss goes along where it is that of this very step. Returns the seconds that it
    kept the steps waiting.
    """
    current = held_out if held_out is not None and held_out["step"] == progress.step else None
    kept = () if current is None else current.items()
    metrics = {name: value for name, value in kept if name == "phase" or isinstance(value, float)} or None
    return save(progress.state, progress.step, progress.position, dataclasses.asdict(run.experiment), metrics)
