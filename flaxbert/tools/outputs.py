"""Files that a command writes for its user: refused before any work is done for them, and there as a whole or not at
all.
"""

import contextlib
import io
import os
import pathlib
from collections.abc import Iterator
from typing import Any, BinaryIO


def check_output(flag: str, name: str, endings: tuple[str, ...] = ()) -> None:
    """Raises ValueError for a file that cannot be written, or whose name has none of the `endings`, where any are
    asked for: before a minute of work, not after it.
    """
    path = pathlib.Path(name)
    if endings and path.suffix.lower() not in endings:
        raise ValueError(f"{flag} {name} is of no known kind: expected a name that ends in {' or '.join(endings)}")
    reason = ""
    if path.exists() and not path.is_file():
        reason = "it is a folder" if path.is_dir() else "it is no regular file"
    elif not path.parent.is_dir():
        reason = f"there is no folder {path.parent}"
    elif not os.access(path.parent, os.W_OK):
        reason = "permission denied"
    if reason:
        raise ValueError(f"{flag} {name} cannot be written: {reason}")


def write_output(flag: str, name: str, content: bytes) -> None:
    """Replaces a file as a whole, or leaves it as it was. Raises ValueError where it cannot be written."""
    path = pathlib.Path(name)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ValueError(f"{flag} {name} cannot be written: {error.strerror}") from None


@contextlib.contextmanager
def whole_output(flag: str, name: str) -> Iterator[BinaryIO]:
    """A file that is written bit by bit, and has its name once it is whole. Raises ValueError where it cannot be
    written.
    """
    check_output(flag, name)
    path = pathlib.Path(name)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with io.BufferedWriter(_Told(temporary, f"{flag} {name} cannot be written")) as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class _Told(io.FileIO):
    """Names itself as the user did where a write fails: the error of a full disk names no file."""

    def __init__(self, path: pathlib.Path, what: str) -> None:
        super().__init__(path, "w")
        self._what = what

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            raise ValueError(f"{self._what}: {error.strerror}") from None
