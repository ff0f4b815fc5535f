"""Orbax's manager as we use it: what it keeps, how it commits, and how it is closed after a failure."""

import asyncio
import contextlib
import dataclasses
import json
import logging
import math
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_manager import CheckpointManager as Manager
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN
from orbax.checkpoint.path import atomicity, atomicity_types

from flaxbert.training.manifest import write_manifest
from flaxbert.training.meeting import MEETING, SECONDS
from flaxbert.training.recovery import mark_saved

SAVE_ERRORS = (OSError, ValueError, RuntimeError)  # the system's and Orbax's, TensorStore's, JAX's
UNFINISHED = atomicity_types.TMP_DIR_SUFFIX  # in the name of what is not committed
_PHASE = 1e6  # beyond any loss
MERGED = "state/manifest.ocdbt"  # without it the files of each process are there, and nothing can be restored
DELETED = "deleted"  # the folder of checkpoints that are being deleted


class _ProvenPath(atomicity.AtomicRenameTemporaryPath):  # type: ignore[misc]
    """Where Orbax writes a checkpoint, with the manifest as the last file before the rename that commits it.

    Process 0 commits, once the files of every process are there.
    """

    async def finalize(self) -> None:
        folder = pathlib.Path(self.get())
        if UNFINISHED in folder.parent.name:  # an item, inside of the checkpoint
            await super().finalize()
            return
        await asyncio.to_thread(self._checkpoint_metadata_store.wait_until_finished)
        # A failed write of this file is told to whoever waited first, which need not be us.
        json.loads((folder / "_CHECKPOINT_METADATA").read_bytes())
        if not (folder / MERGED).is_file():
            raise RuntimeError("Orbax has not merged the files of the processes: it could not be restored")
        await asyncio.to_thread(write_manifest, folder)
        folder.rename(self.get_final())
        mark_saved(folder.parent)


def open_manager(folder: pathlib.Path, keep: int) -> Manager:
    """Keeps the newest `keep` checkpoints and the one with the lowest held-out loss. Those that go are renamed first:
    what a kill leaves of one must not be taken for a damaged checkpoint.
    """
    lowest = BestN(get_metric_fn=_held_out_loss, reverse=True, n=1)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy([LatestN(keep), lowest]),
        best_fn=_held_out_loss,  # without it metrics are not written, and the best is forgotten with the process
        best_mode="min",
        todelete_subdir=DELETED,
        cleanup_tmp_directories=True,
        enable_async_checkpointing=True,
        temporary_path_class=_ProvenPath,
        async_options=ocp.AsyncOptions(
            # Made in the background, a folder that cannot be made leaves threads that wait for it for five minutes, and
            # the process with them when it ends. Of several processes the others would wait for it for ever.
            create_directories_asynchronously=jax.process_count() > 1,
            timeout_secs=SECONDS,
            barrier_sync_fn=MEETING.wait if jax.process_count() > 1 else None,
        ),
    )
    # Floats hardly compress: by 8 %, for a third of the processor time of a save.
    arrays, registry = ocp.PyTreeCheckpointHandler(use_compression=False), ocp.DefaultCheckpointHandlerRegistry()
    for arguments in (ocp.args.PyTreeSave, ocp.args.PyTreeRestore):
        registry.add("state", arguments, arrays)
    if jax.process_index() == 0:
        shutil.rmtree(folder / DELETED, ignore_errors=True)
    manager = Manager(folder, options=options, handler_registry=registry)
    rename = manager._checkpoint_deleter.delete

    def delete(step: int) -> None:
        rename(step)
        if jax.process_index() == 0:
            shutil.rmtree(folder / DELETED, ignore_errors=True)

    manager._checkpoint_deleter.delete = delete
    _tell_others_of_failures(manager._checkpointer._async_manager)  # type: ignore[union-attr]
    return manager


def _tell_others_of_failures(saves: Any) -> None:
    """Has the thread that Orbax saves in tell the other processes when it has failed."""
    run = saves._thread_func

    def run_and_tell(*arguments: Any) -> None:
        run(*arguments)
        if saves._exception is not None:
            MEETING.fail(reason_of(saves._exception))

    saves._thread_func = run_and_tell


def withhold_tracebacks() -> None:
    """Those of failed saves, as long as the process lives. Orbax logs each error four times over; the other writes of
    the save fail too, and each is printed by TensorStore once nobody waits for it, or logged by asyncio when what is
    left of the save is collected, be it at the exit. We tell the error in a sentence, or raise it.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_no_traceback)
    if not isinstance(sys.unraisablehook, _Hook):
        sys.unraisablehook = _Hook(sys.unraisablehook)


@dataclasses.dataclass(frozen=True)
class _Hook:
    """In the place of `sys.unraisablehook`."""

    before: Callable[[Any], Any]

    def __call__(self, unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            self.before(unraisable)


def _is_no_traceback(record: logging.LogRecord) -> bool:
    return not (record.exc_info and "orbax" in record.pathname + record.getMessage())


def close_manager(manager: Manager) -> None:
    """Ends every thread of the manager. Each error that it still holds is raised by one call, which then is cut short;
    all of them are of a save that is known to have failed.
    """
    for _ in range(8):
        with contextlib.suppress(*SAVE_ERRORS):
            manager.close()
            return


def reason_of(error: BaseException) -> str:
    """The system's own words where there are any: TensorStore wraps them into a list of paths, and with several
    processes Orbax raises of the barrier that was then missed.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        if (code := re.search(r"os_error_code='(\d+)'", str(cause))) is not None:
            return os.strerror(int(code[1]))
        cause = cause.__context__
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _held_out_loss(metrics: dict[str, float]) -> float:
    """Where nothing was evaluated, or the loss is no number, the worst there is. Losses of different phases, at
    different lengths, do not compare: one of a later phase counts as lower.
    """
    loss = metrics.get("loss", math.inf)
    return math.inf if math.isnan(loss) else loss - _PHASE * metrics.get("phase", 0)
