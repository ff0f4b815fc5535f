"""What to read: inputs → files → shards. Files, globs and folders of text or JSON lines, plain or gzip.

Work is planned in ranges of bytes. A plain file may be cut anywhere: the reader assigns each document to one range.
A compressed file is one range.
"""

import glob
import math
import os
from pathlib import Path
from typing import Iterable, Literal, NamedTuple

_TEXT, _JSON = (".txt", ".text"), (".jsonl", ".json")
_UNREADABLE = (".zst", ".xz", ".bz2", ".zip", ".tar", ".tgz", ".7z", ".parquet", ".pdf", ".docx")


class Source(NamedTuple):
    """One file. `modified` is in nanoseconds; `size` in bytes as stored."""

    path: str
    format: Literal["text", "json"]
    compressed: bool
    size: int
    modified: int


class Range(NamedTuple):
    """The bytes from `start` to before `end` of a source, or all of a compressed one."""

    source: Source
    start: int
    end: int


def find_sources(inputs: Iterable[str]) -> list[Source]:
    """The files that inputs name, in order, each once. Folders are searched through, hidden files left out.

    Raises ValueError for an input that names nothing or something that cannot be read.
    """
    sources: dict[str, Source] = {}
    for name in inputs:
        for path in _files(name):
            source = _source(path)
            sources.setdefault(os.path.realpath(path), source)
    return list(sources.values())


def _files(name: str) -> list[str]:
    matches = [name] if os.path.exists(name) else sorted(glob.glob(name, recursive=True))
    files: list[str] = []
    for match in matches:
        files += _search(Path(match)) if os.path.isdir(match) else [match]
    if not files:
        raise ValueError(f"no file matches {name!r}")
    return files


def _search(folder: Path) -> list[str]:
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        visible = sorted(each for each in names if not each.startswith("."))
        found += [os.path.join(parent, each) for each in visible if _suffix(each) in ("", *_TEXT, *_JSON)]
    return found


def _suffix(path: str) -> str:
    return Path(path.lower().removesuffix(".gz")).suffix


def _source(path: str) -> Source:
    compressed = path.lower().endswith(".gz")
    suffix = _suffix(path)
    if suffix in _UNREADABLE:
        raise ValueError(f"{path}: {suffix} files are not read; expected text or JSON lines, plain or .gz")
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    return Source(path, "json" if suffix in _JSON else "text", compressed, status.st_size, status.st_mtime_ns)


def plan_shards(sources: list[Source], shard_megabytes: float) -> list[tuple[Range, ...]]:
    """Ranges of about shard_megabytes x 10^6 bytes together, in order. Depends on nothing but its arguments."""
    budget = max(1, int(shard_megabytes * 1e6))
    shards: list[list[Range]] = []
    filled = budget
    for part in (part for source in sources for part in _cut(source, budget)):
        size = part.end - part.start
        if filled + size > budget:
            shards.append([])
            filled = 0
        shards[-1].append(part)
        filled += size
    return [tuple(shard) for shard in shards]


def _cut(source: Source, budget: int) -> list[Range]:
    pieces = 1 if source.compressed else math.ceil(source.size / budget)
    borders = [source.size * piece // max(1, pieces) for piece in range(pieces + 1)]
    return [Range(source, start, end) for start, end in zip(borders, borders[1:]) if end > start]
