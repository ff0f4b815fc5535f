"""Local files that are there whole or not at all, and the digests that tell whether they are what was written."""

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any, BinaryIO, Callable

_HASH_CHUNK_BYTES = 1 << 20


def partial_name(path: Path) -> Path:
    """Where a file is written until it is whole; unlike any other, for a runner may try the same work twice at once."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")


def file_digest(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def canonical_digest(value: Any) -> str:
    """sha256 of a JSON value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Replaces a JSON file as a whole: a reader sees the old one or the new one."""
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    write_whole(path, lambda file: file.write(text.encode("utf-8")))


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replaces a file by what `write` writes, as a whole and durably, or leaves it as it was."""
    partial = partial_name(path)
    try:
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Makes the renames in a folder survive a power cut, where the system allows it."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
