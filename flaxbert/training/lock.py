"""One launch at a time trains in a run's directory. Imports nothing slow: a launch asks it before all else."""

import contextlib
import errno
import fcntl
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import BinaryIO

LOCK = ".lock"
ASKING_SECONDS = 1.0  # far more than a launch that asks holds the lock
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # what a file system without them answers


def check_no_launch(workdir: str) -> None:
    """Raises ValueError where a launch is training in `workdir`, as far as its file system has locks. Writes nothing.

    For every process of a launch, before it joins the others: one that knocks at the coordinator of processes that
    train already ends them all. Asking shares the lock, so those of one launch do not shut each other out.
    """
    try:
        with open(pathlib.Path(workdir) / LOCK, "rb") as file:
            free = _is_free(file)
    except (FileNotFoundError, NotADirectoryError):
        return  # nothing has been launched there, or what follows says why nothing can be
    if free is False:
        raise _taken(workdir)


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr)


@contextlib.contextmanager
def only_launch(workdir: str, say: Callable[[str], None] = _say) -> Iterator[None]:
    """Keeps a second launch of the same run out: they would delete each other's checkpoints. The system gives the lock
    back when its holder dies, however it dies. Where there are no locks `say` is told, and none is kept out: a file in
    their place would outlive a holder that is killed, and keep out the launch that is to go on.
    """
    import filelock

    folder = pathlib.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / LOCK)
    try:
        with open(folder / LOCK, "ab") as file:
            has_locks = _is_free(file) is not None
        if has_locks:
            lock.acquire(timeout=ASKING_SECONDS, poll_interval=0.02)
        else:
            say(f"the file system of {workdir} has no locks: a second launch there would not be refused")
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


def _is_free(file: BinaryIO) -> bool | None:
    """Whether nobody holds a file's lock for himself; None where its file system has no locks. Asking shares it until
    the file is closed.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return None


def _taken(workdir: str) -> ValueError:
    return ValueError(f"another launch is training in {workdir}: wait until it has ended")
