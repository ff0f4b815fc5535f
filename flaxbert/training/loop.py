"""The training loop: the only place with time, files, signals and logging."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from flaxbert.config import Experiment
from flaxbert.sharding import make_mesh
from flaxbert.training import checkpoint
from flaxbert.training.metrics import Record, Report, flops_per_sequence, open_report, peak_flops
from flaxbert.training.objective import summarize, zero_sums
from flaxbert.training.schedule import learning_rate_schedule
from flaxbert.training.signals import stop_requested
from flaxbert.training.step import Functions, TrainState, build_functions

Batch = dict[str, np.ndarray]
Position = dict[str, int]

STEPS_IN_FLIGHT = 2  # enough to hide the host's work; few enough that a signal is answered within a step or two


class Streams(NamedTuple):
    """The batches of a run: this host's rows of each global batch."""

    train: Callable[[Position | None], Iterator[tuple[Batch, Position]]]
    """Endless, from a position on; gives each batch with the position after it."""
    validation: Callable[[], Iterator[Batch]]
    """One pass over the held-out documents, the same each time."""


class Outcome(NamedTuple):
    """How a call of `train` ended."""

    step: int
    stopped: bool
    """A signal ended it before the last step; its work is saved."""


class _Interval:
    """Wall time spent on training steps since the last line of metrics."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.began, self.steps = time.perf_counter(), 0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        left = time.perf_counter()
        yield
        self.began += time.perf_counter() - left


def check_devices(experiment: Experiment) -> None:
    """Raises ValueError where the devices found cannot carry the experiment: its mesh, its batch, its sizes."""
    mesh = make_mesh(experiment.mesh)
    with jax.set_mesh(mesh):
        build_functions(experiment, mesh)


def train(
    experiment: Experiment, workdir: str, streams: Streams, stop: Callable[[], bool] | None = None,
    begin_with: Any = None,
) -> Outcome:  # fmt: skip
    """Trains from the newest checkpoint of `workdir` (or from the start) to the last step, or until `stop` says so.

    Without `stop`, a SIGTERM or SIGINT does. A run that begins with the parameters `begin_with`, and not with new ones,
    evaluates them first: a line of step 0.
    """
    mesh = make_mesh(experiment.mesh)
    with jax.set_mesh(mesh), checkpoint.open_checkpoints(workdir, experiment.train.keep_checkpoints) as manager:
        functions = build_functions(experiment, mesh)
        restored = manager.restore(functions.abstract_state)
        state, position = restored if restored is not None else (functions.init(), None)
        if restored is None and begin_with is not None:
            state = state._replace(params=_placed(begin_with, functions))
        first = int(state.step)
        with (
            open_report(workdir, first, experiment.train.steps) as report,
            contextlib.nullcontext(stop) if stop else stop_requested() as stop,
        ):
            manager.say = report.say
            if restored is not None:
                report.say(f"resumed at step {first:,}")
            elif begin_with is not None and experiment.train.eval_every and report.evaluated != 0:
                held_out = evaluate(experiment, functions, streams, state.params, 0, stop)
                if held_out is None:
                    return _stopped(report, 0)
                report.record(held_out)
            return _loop(experiment, functions, streams, manager, state, position, report, stop)


def _placed(params: Any, functions: Functions) -> Any:
    """Parameters from elsewhere, laid out as the run's own."""
    return jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), params, functions.abstract_state.params)


def evaluate(
    experiment: Experiment, functions: Functions, streams: Streams, params: Any, step: int,
    stop: Callable[[], bool] = lambda: False,
) -> Record | None:  # fmt: skip
    """The held-out record: means over at most `train.eval_batches` batches of the validation stream.

    None where `stop` said so before the end.
    """
    sums = zero_sums()
    for number, batch in enumerate(streams.validation()):
        if number == experiment.train.eval_batches:
            break
        if stop():
            return None
        sums = functions.evaluate(params, sums, functions.put(batch))
    return {"step": step, "split": "validation"} | summarize(jax.device_get(sums))


def _loop(
    experiment: Experiment, functions: Functions, streams: Streams, manager: checkpoint.Checkpoints,
    state: TrainState, position: Position | None, report: Report, stop: Callable[[], bool],
) -> Outcome:  # fmt: skip
    config, step = experiment.train, int(state.step)
    saved, held_out = step if position is not None else -1, None
    if position is not None and report.evaluated != step and _is_due(config.eval_every, step, config.steps):
        if not _evaluate_checkpoint(experiment, functions, streams, manager, state, position, report, stop):
            return _stopped(report, step)
    if step >= config.steps:
        report.say(f"nothing to do: the run has reached step {step:,} of {config.steps:,}")
        return Outcome(step, False)
    if stop():
        return _stopped(report, step)
    in_flight: list[jax.Array] = []
    batch, after = next(batches := streams.train(position))
    train_step = functions.train.lower(state, functions.put(batch)).compile()
    interval = _Interval()
    while step < config.steps and not stop():
        state, loss = train_step(state, functions.put(batch))
        step, position, interval.steps = step + 1, after, interval.steps + 1
        report.step(step)
        batch, after = next(batches)
        in_flight = _wait_for_all_but(STEPS_IN_FLIGHT, in_flight + [loss])

        if _is_due(config.log_every, step, config.steps):
            report.record(_train_record(experiment, step, jax.device_get(state.sums), interval))
            state = state._replace(sums=functions.zero_sums())
            interval.restart()
        with interval.paused():
            if _is_due(config.eval_every, step, config.steps):
                held_out = evaluate(experiment, functions, streams, state.params, step, stop)
                if held_out is None:
                    break
                report.record(held_out)
            if _is_due(config.checkpoint_every, step, config.steps):
                _save(manager.save, experiment, state, position, held_out)
                saved = step
    done = saved == step == config.steps
    if position is not None:
        _save(manager.commit, experiment, state, position, held_out)
    return Outcome(step, False) if done else _stopped(report, step)


def _evaluate_checkpoint(
    experiment: Experiment, functions: Functions, streams: Streams, manager: checkpoint.Checkpoints,
    state: TrainState, position: Position, report: Report, stop: Callable[[], bool],
) -> bool:  # fmt: skip
    """Writes the held-out line of the checkpoint just restored, which a signal had kept from being written, and the
    checkpoint again with its loss; False where another signal came. Killed in between, the run goes on from the
    checkpoint before it, and is the same run.
    """
    step = int(state.step)
    held_out = evaluate(experiment, functions, streams, state.params, step, stop)
    if held_out is None:
        return False
    report.record(held_out)
    manager.delete(step)
    _save(manager.commit, experiment, state, position, held_out)
    return True


def _stopped(report: Report, step: int) -> Outcome:
    done = f"at step {step:,} with its work saved" if step else "before the first step"
    report.say(f"stopped {done}: the same command goes on from here")
    return Outcome(step, True)


def _is_due(every: int, step: int, last: int) -> bool:
    """Whether what happens every so many steps (0: never), and at the last one, happens after this step."""
    return every > 0 and (step % every == 0 or step == last)


def _save(
    save: Callable[..., float], experiment: Experiment, state: TrainState, position: Position, held_out: Record | None
) -> None:
    """Saves the state; the held-out loss goes along where it is that of this very step."""
    step = int(state.step)
    current = held_out if held_out is not None and held_out["step"] == step else None
    metrics = None if current is None else {name: v for name, v in current.items() if isinstance(v, float)}
    save(state, step, position, dataclasses.asdict(experiment), metrics)


def _wait_for_all_but(count: int, losses: list[jax.Array]) -> list[jax.Array]:
    """Blocks until at most `count` steps are unfinished. Unbounded dispatch would hold every batch in memory."""
    while len(losses) > count:
        losses.pop(0).block_until_ready()
    return losses


def _train_record(experiment: Experiment, step: int, sums: dict[str, Any], interval: _Interval) -> Record:
    """A line of training metrics. Losses and counts are those since the last line, across a restart too; the times
    are those of the steps that this process ran.
    """
    config, length = experiment.train, experiment.data.sequence_length
    seconds = time.perf_counter() - interval.began
    rows_per_second = interval.steps * config.batch_size / seconds
    steps = float(sums["steps"])
    rows = steps * config.batch_size
    fill = float(sums["tokens"]) / (rows * length)
    flops = flops_per_sequence(experiment.model, length, experiment.data.predictions_per_row)
    peak = peak_flops(jax.devices()[0].device_kind)
    return {
        "step": step,
        "split": "train",
        **summarize({name: sums[name] for name in zero_sums()}),
        "learning_rate": float(learning_rate_schedule(experiment.optimizer, config.steps)(step - 1)),
        "gradient_norm": float(sums["gradient_norm"]) / steps,
        "fill": fill,
        "seconds": seconds,
        "sequences_per_second": rows_per_second * float(sums["sequences"]) / rows,
        "tokens_per_second": rows_per_second * length * fill,
        "mfu": None if peak is None else rows_per_second * flops / (peak * jax.device_count()),
    }
