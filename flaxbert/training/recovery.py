"""Which of a run's checkpoints are whole, and what becomes of the others."""

import contextlib
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from flaxbert.training.distributed import wait_for_all
from flaxbert.training.manifest import find_damage

# What Orbax reads of every checkpoint to list them: one of these altered and it could list none, or keep a wrong best.
LISTED = ("_CHECKPOINT_METADATA", "metrics/metrics")
SAVED = ".saved"  # beside the folder of checkpoints, from the first one on: the folder may be lost
REPLACED = "replaced-"  # before the step of a checkpoint that is being saved anew
NOTHING, REFUSED = -1, -2  # in place of a step, where process 0 tells the others


class Damaged(NamedTuple):
    """A checkpoint that is not what was written."""

    path: pathlib.Path
    reason: str


def checkpoint_folder(workdir: str) -> pathlib.Path:
    """Where a run keeps its checkpoints, one folder a step."""
    return pathlib.Path(workdir).absolute() / "checkpoints"


def saved_steps(workdir: str) -> list[int]:
    """The steps of the run's checkpoints, ascending: those with a manifest whose files are there in full. Contents are
    not read. Those still being written are not among them.
    """
    folder = checkpoint_folder(workdir)
    return [step for step in _steps(folder) if find_damage(folder / str(step), contents=False) is None]


def mark_saved(folder: pathlib.Path) -> None:
    """Remembers that there was a checkpoint in `folder`."""
    with contextlib.suppress(OSError):  # the checkpoint itself is what counts
        (folder.parent / SAVED).touch()


def has_saved(workdir: str) -> bool:
    """Whether the run ever had a checkpoint, be it lost or damaged by now. One that had none may begin anew."""
    folder = checkpoint_folder(workdir)
    return (folder.parent / SAVED).exists() or bool(_steps(folder)) or any(folder.glob("damaged-*"))


def newest_whole(folder: pathlib.Path, contents: bool = True) -> tuple[int | None, list[Damaged]]:
    """The newest step that its manifest proves, and the damaged ones that are newer; None where nothing was saved.
    Without `contents` the files' sizes are the proof.

    Raises ValueError where there are checkpoints and none is whole, or where there were some. Writes nothing.
    """
    damaged: list[Damaged] = []
    for step in reversed(_steps(folder)):
        reason = find_damage(folder / str(step), contents=contents)
        if reason is None:
            return step, damaged
        damaged.append(Damaged(folder / str(step), reason))
    if damaged:
        reasons = "; ".join(f"{path.name}: {reason}" for path, reason in damaged)
        raise ValueError(f"{folder} holds checkpoints, and none is whole ({reasons})")
    if any(folder.glob("damaged-*")):
        raise ValueError(f"{folder} holds damaged checkpoints alone: begin anew in another folder")
    if (folder.parent / SAVED).exists():
        raise ValueError(f"{folder} held checkpoints, and holds none now: put them back, or begin in another folder")
    return None, []


def settle_newest(workdir: str, say: Callable[[str], None]) -> int | None:
    """The newest whole step, the same on every process; None where nothing was saved. Raises as `newest_whole`.

    What is damaged is named to `say` and set aside under a name that Orbax does not list. Nothing is deleted. Process 0
    does it, before Orbax looks at the folder; the others wait.
    """
    if jax.process_count() == 1:
        return _set_damaged_aside(checkpoint_folder(workdir), say)
    step, error = REFUSED, None
    if jax.process_index() == 0:
        try:
            found = _set_damaged_aside(checkpoint_folder(workdir), say)
            step = NOTHING if found is None else found
        except (OSError, ValueError) as raised:
            error = raised
    step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
    if step == REFUSED:
        raise error or ValueError(f"{checkpoint_folder(workdir)} has no whole checkpoint: process 0 says more")
    return None if step == NOTHING else step


@contextlib.contextmanager
def kept_aside(path: pathlib.Path) -> Iterator[None]:
    """A checkpoint under another name, for as long as its place is wanted for another. Where that does not come it is
    put back: at the end, or by the next launch where this one is killed.
    """
    if jax.process_index() == 0:
        path.rename(path.with_name(REPLACED + path.name))
    wait_for_all(f"{path} is set aside")
    try:
        yield
    finally:
        if jax.process_index() == 0:
            _settle_replaced(path.parent)


def _settle_replaced(folder: pathlib.Path, say: Callable[[str], None] = lambda sentence: None) -> None:
    """What was to be replaced goes where a whole one has come, and comes back where none has."""
    for aside in folder.glob(f"{REPLACED}*"):
        path = aside.with_name(aside.name.removeprefix(REPLACED))
        if find_damage(path) is None or find_damage(aside) is not None:
            shutil.rmtree(aside, ignore_errors=True)
            continue
        if path.exists():
            damaged = path.rename(_free_name(_damaged_name(path)))
            say(f"checkpoint {path} is damaged: set aside as {damaged.name}, the one that it replaced is there again")
        aside.rename(path)


def _set_damaged_aside(folder: pathlib.Path, say: Callable[[str], None]) -> int | None:
    _settle_replaced(folder, say)
    newest, damaged = newest_whole(folder)
    if newest is not None:
        mark_saved(folder)
    older = [folder / str(step) for step in _steps(folder) if newest is not None and step < newest]
    damaged += [Damaged(path, reason) for path in older if (reason := find_damage(path, LISTED)) is not None]
    for path, reason in damaged:
        aside = _free_name(_damaged_name(path))
        path.rename(aside)
        say(f"checkpoint {path} is damaged ({reason}): set aside as {aside.name}, the newest whole is {newest}")
    return newest


def _damaged_name(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"damaged-{int(path.name):06}")


def _free_name(path: pathlib.Path) -> pathlib.Path:
    number, free = 2, path
    while free.exists():
        number, free = number + 1, path.with_name(f"{path.name}-{number}")
    return free


def _steps(folder: pathlib.Path) -> list[int]:
    """The steps that Orbax would list, or trip over when it saves them, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if re.fullmatch(r"0|[1-9]\d*", path.name, re.ASCII))
