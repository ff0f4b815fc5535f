"""Checkpoints by Orbax: state, stream position and settings as one atomic item, written in the background."""

import contextlib
import pathlib
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from flaxbert.training.manifest import MANIFEST, find_damage
from flaxbert.training.meeting import MEETING
from flaxbert.training.orbax_manager import (
    SAVE_ERRORS, UNFINISHED, Manager, close_manager, open_manager, reason_of, withhold_tracebacks,
)  # fmt: skip
from flaxbert.training.recovery import checkpoint_folder, kept_aside, newest_whole, saved_steps, settle_newest
from flaxbert.training.step import TrainState

FAILED_SAVES = 3  # in a row: the work of three intervals is at stake, and whatever is wrong does not mend itself
RETRY_SECONDS = 1.0

Say = Callable[[str], None]


class Checkpoints:
    """A run's checkpoints, open for saving. A save that fails is told to `say`; the third in a row raises OSError."""

    def __init__(self, workdir: str, keep: int, say: Say) -> None:
        self.say = say
        self.latest = settle_newest(workdir, say)
        """The newest step that is committed."""
        self._folder, self._keep = checkpoint_folder(workdir), keep
        self._manager: Manager | None = open_manager(self._folder, keep)
        self._under_way: tuple[int, BaseException | None] | None = None
        self._failed = 0

    def restore(self, abstract: TrainState) -> tuple[TrainState, dict[str, int]] | None:
        """The newest state, laid out as `abstract` says, and the stream's position; None where nothing was saved."""
        if self.latest is None:
            return None
        state = abstract._asdict()
        arguments = ocp.args.Composite(
            state=ocp.args.PyTreeRestore(state, restore_args=ocp.checkpoint_utils.construct_restore_args(state)),
            position=ocp.args.JsonRestore(),
        )
        with _damage_named(self._folder / str(self.latest)):
            restored = self._opened().restore(self.latest, args=arguments)
        return TrainState(**restored["state"]), restored["position"]

    def save(
        self, state: TrainState, step: int, position: dict[str, int], config: dict[str, Any],
        held_out: dict[str, float] | None,
    ) -> float:  # fmt: skip
        """Starts to save once the save before has ended; returns when the state has been copied, so the next step may
        consume it. Returns the seconds that the caller waited.
        """
        began, error = time.perf_counter(), None
        self.wait()
        arguments = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state._asdict()),
            position=ocp.args.JsonSave(position),
            config=ocp.args.JsonSave(config),
        )
        MEETING.begin()
        try:
            self._opened().save(step, args=arguments, metrics=held_out or {}, force=True)
        except SAVE_ERRORS as raised:
            if jax.process_count() > 1:  # the others are inside Orbax by now, where nothing tells them
                raise OSError(
                    f"checkpoint {self._folder / str(step)} could not be begun: {reason_of(raised)}"
                ) from raised
            error = raised
        self._under_way = step, error
        if error is not None:
            self.wait()
        return time.perf_counter() - began

    def wait(self) -> None:
        """Returns when the save under way is committed or has failed."""
        if self._under_way is None:
            return
        (step, error), self._under_way = self._under_way, None
        if error is None:
            try:
                self._opened().wait_until_finished()
            except SAVE_ERRORS as raised:
                error = raised
        troubled, committed = _agree(error is not None, (self._folder / str(step) / MANIFEST).is_file())
        if troubled or not committed:
            self._give_up()
        if committed:
            self.latest, self._failed = step, 0
        else:
            self._failed += 1
        if error is not None or not committed:
            self._tell(step, committed, error)

    def commit(
        self, state: TrainState, step: int, position: dict[str, int], config: dict[str, Any],
        held_out: dict[str, float] | None,
    ) -> float:  # fmt: skip
        """Returns when the step is committed, be it by the save under way, and not before: what fails is tried again.
        Returns the seconds that the caller waited.
        """
        began = time.perf_counter()
        self.wait()
        while self.latest != step:
            if self._failed:
                time.sleep(RETRY_SECONDS)
            self.save(state, step, position, config, held_out)
            self.wait()
        return time.perf_counter() - began

    def replace(
        self, state: TrainState, step: int, position: dict[str, int], config: dict[str, Any],
        held_out: dict[str, float] | None,
    ) -> float:  # fmt: skip
        """Commits the newest step anew; what was saved of it stays until that is done. There must be one before it: a
        reader may find that the newest for a moment. Returns the seconds that the caller waited.
        """
        self.wait()
        self.close()  # it lists the step that goes
        with kept_aside(self._folder / str(step)):
            self.latest = self._opened().latest_step()
            return self.commit(state, step, position, config, held_out)

    def best(self) -> int | None:
        """The step with the lowest held-out loss; in a run of phases, of the latest phase that was evaluated."""
        return self._opened().best_step()

    def close(self) -> None:
        """Lets the save under way end, whatever becomes of it."""
        if self._manager is not None:
            close_manager(self._manager)
            self._manager = None

    def _opened(self) -> Manager:
        if self._manager is None:
            self._manager = open_manager(self._folder, self._keep)
        return self._manager

    def _give_up(self) -> None:
        """After a failed save: its files go, and the manager, which lists steps that are not there and goes on to raise
        old errors; the next save opens another.
        """
        self.close()
        if jax.process_index() == 0:
            for left in self._folder.glob(f"*{UNFINISHED}*") if self._folder.is_dir() else ():
                shutil.rmtree(left, ignore_errors=True)

    def _tell(self, step: int, committed: bool, error: BaseException | None) -> None:
        reason = "another process failed" if error is None else reason_of(error)
        path = self._folder / str(step)
        if committed:
            self.say(f"checkpoint {path} is saved, but what follows a save failed ({reason})")
        elif self._failed < FAILED_SAVES:
            self.say(f"checkpoint {path} could not be saved ({reason}): the newest is {_named(self.latest)}")
        else:
            raise OSError(
                f"checkpoint {path} could not be saved ({reason}), nor could the {FAILED_SAVES - 1} tries before it: "
                f"the newest is {_named(self.latest)}"
            ) from error


@contextlib.contextmanager
def open_checkpoints(
    workdir: str, keep: int, say: Say = lambda sentence: print(sentence, file=sys.stderr)
) -> Iterator[Checkpoints]:  # fmt: skip
    """The checkpoints of a run: the newest `keep` and the one with the lowest held-out loss stay.

    Damaged ones newer than the newest whole are named to `say` and set aside. Raises ValueError where there are
    checkpoints and none is whole. On leaving, waits for the save that is under way.
    """
    withhold_tracebacks()
    checkpoints = Checkpoints(workdir, keep, say)
    try:
        yield checkpoints
        checkpoints.wait()
    finally:
        checkpoints.close()


def restore_params(workdir: str, step: int | None = None) -> tuple[Any, int]:
    """The parameters alone, on the first local device, and their step: the newest whole one unless `step` names one.

    Warns of damaged ones that are newer, and changes nothing. Raises ValueError where there is none, or the named one
    is damaged.
    """
    path = checkpoint_folder(workdir) / str(_readable_step(workdir, step))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with _damage_named(path), ocp.Checkpointer(_readers()) as reader:
        shapes = reader.metadata(path).item_metadata["state"].tree["params"]
        wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), shapes)
        arguments = ocp.args.PyTreeRestore(
            item={"params": wanted},
            restore_args=ocp.checkpoint_utils.construct_restore_args({"params": wanted}),
            partial_restore=True,
        )
        restored = reader.restore(path, args=ocp.args.Composite(state=arguments))
        return restored["state"]["params"], int(path.name)


def _readable_step(workdir: str, step: int | None) -> int:
    folder = checkpoint_folder(workdir)
    if step is not None and (folder / str(step)).exists():
        if (reason := find_damage(folder / str(step))) is not None:
            raise ValueError(f"checkpoint {folder / str(step)} is damaged ({reason}): choose another step")
        return step
    found = saved_steps(workdir)
    if step is not None and found:
        raise ValueError(f"{workdir} has no checkpoint of step {step}; it has {', '.join(map(str, found))}")
    newest, damaged = newest_whole(folder)
    if newest is None:
        raise ValueError(f"{workdir} has no checkpoint yet")
    for path, reason in damaged:
        warnings.warn(f"checkpoint {path} is damaged ({reason}): step {newest} is read instead", stacklevel=3)
    return newest


def _agree(troubled: bool, committed: bool) -> tuple[bool, bool]:
    """Whether a save raised on any process, and whether it is committed: process 0 knows, for it commits."""
    if jax.process_count() == 1:
        return troubled, committed
    told = multihost_utils.process_allgather(np.array([troubled, committed]))
    return bool(told[:, 0].any()), bool(told[0, 1])


@contextlib.contextmanager
def _damage_named(path: pathlib.Path) -> Iterator[None]:
    """What Orbax raises of a checkpoint that it cannot read, as one sentence."""
    try:
        yield
    except (KeyError, ValueError, TypeError, OSError) as error:
        raise ValueError(f"checkpoint {path} cannot be restored ({reason_of(error)})") from error


def _named(step: int | None) -> str:
    return "none" if step is None else f"that of step {step:,}"


def _readers() -> ocp.CompositeCheckpointHandler:
    """A reader for each item of a checkpoint: Orbax warns of those that it is not told of."""
    json = {name: ocp.JsonCheckpointHandler() for name in ("position", "config", "metrics")}
    return ocp.CompositeCheckpointHandler(state=ocp.PyTreeCheckpointHandler(), **json)
