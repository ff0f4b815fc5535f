"""One launch at a time trains in a run's directory. Imports nothing slow: a launch asks it before all else."""

import contextlib
import fcntl
import pathlib
from collections.abc import Iterator

LOCK = ".lock"
ASKING_SECONDS = 1.0  # far more than a launch that asks holds the lock


def check_no_launch(workdir: str) -> None:
    """Raises ValueError where a launch is training in `workdir`. Writes nothing.

    For every process of a launch, before it joins the others: one that knocks at the coordinator of processes that
    train already ends them all. Asking shares the lock, so those of one launch do not shut each other out.
    """
    try:
        with open(pathlib.Path(workdir) / LOCK, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _taken(workdir) from None
    except (FileNotFoundError, NotADirectoryError):
        return  # nothing has been launched there, or what follows says why nothing can be


@contextlib.contextmanager
def only_launch(workdir: str) -> Iterator[None]:
    """Keeps a second launch of the same run out: they would delete each other's checkpoints. The system gives the lock
    back when its holder dies, however it dies.
    """
    import filelock

    folder = pathlib.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=ASKING_SECONDS, poll_interval=0.02)
    except filelock.Timeout:
        raise _taken(workdir) from None
    try:
        yield
    finally:
        if not (folder / "config.json").exists():  # no run has begun: what was made for it goes
            (folder / LOCK).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                folder.rmdir()
        lock.release()


def _taken(workdir: str) -> ValueError:
    return ValueError(f"another launch is training in {workdir}: wait until it has ended")
