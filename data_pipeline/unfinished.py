"""What stops prepare through no fault of its input: no room on the disk, a dead worker. What is done is kept."""

import contextlib
import errno
import os
from pathlib import Path
from typing import Iterator

_NO_ROOM = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name)}


class Unfinished(ValueError):
    """prepare stopped; the same command goes on from there, even where nothing was finished yet."""


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns a failure to write into the folder into one sentence."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno in _NO_ROOM:
            raise Unfinished(
                f"there is no room left to write {folder} ({reason}): make room and run the same command again, "
                "which goes on where this one stopped"
            ) from error
        raise Unfinished(
            f"{folder} cannot be written ({reason}): the same command goes on once it can be"
        ) from error
