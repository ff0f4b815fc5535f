"""What to read: inputs → files → shards.

Work is planned in ranges. A plain text file may be cut at any byte: the reader assigns each document to one range. A
compressed file is one range, a Parquet file is cut between row groups, and a TFDS split between examples.
"""

import math
import os
from pathlib import Path
from typing import Iterable, Literal, NamedTuple

from data_pipeline.compression import SUFFIXES as COMPRESSIONS
from data_pipeline.files import facts, find_files, is_remote

_TEXT, _JSON = (".txt", ".text"), (".jsonl", ".ndjson", ".json")
_PARQUET = ".parquet"
_UNREADABLE = (".zip", ".tar", ".tgz", ".7z", ".pdf", ".docx")


class Source(NamedTuple):
    """One file, or one split of a TFDS data set. `modified` tells versions apart; `compression` is empty for a plain
    file; `size` in bytes as stored.

    `groups`: of Parquet, the bytes of text in each row group. `examples`, `folder`: of TFDS, how many and where.
    """

    path: str
    format: Literal["text", "json", "parquet", "tfds"]
    size: int
    modified: int | str
    compression: str = ""
    groups: tuple[int, ...] = ()
    examples: int = 0
    folder: str = ""


class Range(NamedTuple):
    """What lies from `start` to before `end` in a source: bytes, row groups or examples; of a compressed one, all.

    `size` in bytes: as stored, or of Parquet those of the text alone.
    """

    source: Source
    start: int
    end: int
    size: int


def find_sources(inputs: Iterable[str], text_field: str = "text", left_out: str = "") -> list[Source]:
    """The files that inputs name, in order, each once. Folders are searched through, hidden files left out, and so is
    the folder `left_out`.

    Raises ValueError for an input that names nothing or something that cannot be read, and for a Parquet file or TFDS
    split without the text field.
    """
    sources: dict[str, Source] = {}
    for name in inputs:
        if name.startswith("tfds:") and not os.path.exists(name):
            found = [_split(name, text_field)]
        else:
            found = [_file(path, text_field) for path in find_files(name, _is_wanted, left_out)]
        for source in found:
            sources.setdefault(identity(source), source)
    return list(sources.values())


def identity(source: Source) -> str:
    """What two names of the same source have in common."""
    return source.path if source.format == "tfds" or is_remote(source.path) else os.path.realpath(source.path)


def _is_wanted(name: str) -> bool:
    suffix, compression = _suffix(name)
    return suffix in ("", *_TEXT, *_JSON) or (suffix == _PARQUET and not compression)


def _suffix(path: str) -> tuple[str, str]:
    """The part of a name that tells the format, and the compression."""
    name = Path(path.lower().partition("?")[0] if is_remote(path) else path.lower())
    compression = COMPRESSIONS.get(name.suffix, "")
    return Path(name.stem).suffix if compression else name.suffix, compression


def _file(path: str, text_field: str) -> Source:
    printable = path.encode("utf-8", "backslashreplace").decode("utf-8")
    if path != printable:
        raise ValueError(f"{printable}: its name is not UTF-8, rename it")
    suffix, compression = _suffix(path)
    if suffix in _UNREADABLE or (suffix == _PARQUET and compression):
        kind = f"{suffix} files" + (f" inside {compression} files" if compression else "")
        raise ValueError(
            f"{path}: {kind} are not read; expected Parquet, or text or JSON lines, plain or {', '.join(COMPRESSIONS)}"
        )
    size, modified = facts(path)
    if suffix == _PARQUET:
        from data_pipeline.parquet_files import text_sizes

        return Source(path, "parquet", size, modified, groups=text_sizes(path, text_field))
    if compression and not size:
        raise ValueError(f"{path} is cut short: it is empty, which no compressed file is")
    return Source(path, "json" if suffix in _JSON else "text", size, modified, compression)


def _split(name: str, text_field: str) -> Source:
    from data_pipeline.tfds_examples import find_split

    split = find_split(name, text_field)
    return Source(split.name, "tfds", split.size, split.modified, examples=split.examples, folder=split.folder)


def plan_shards(sources: list[Source], shard_megabytes: float) -> list[tuple[Range, ...]]:
    """Ranges of about shard_megabytes x 10^6 bytes together, in order. Depends on nothing but its arguments."""
    budget = max(1, int(shard_megabytes * 1e6))
    shards: list[list[Range]] = []
    filled = 0
    for part in (part for source in sources for part in _cut(source, budget)):
        if not shards or filled + part.size > budget:
            shards.append([])
            filled = 0
        shards[-1].append(part)
        filled += part.size
    return [tuple(shard) for shard in shards]


def _cut(source: Source, budget: int) -> list[Range]:
    if source.format == "parquet":
        return _gather_groups(source, budget)
    length = source.examples if source.format == "tfds" else source.size
    pieces = 1 if source.compression else min(length, max(1, math.ceil(source.size / budget)))
    borders = [length * piece // max(1, pieces) for piece in range(pieces + 1)]
    return [
        Range(source, start, end, source.size * (end - start) // length)
        for start, end in zip(borders, borders[1:]) if end > start
    ]


def _gather_groups(source: Source, budget: int) -> list[Range]:
    """Neighbouring row groups of up to the budget together; a larger one stands alone."""
    ranges: list[Range] = []
    plain = source._replace(groups=())
    for index, size in enumerate(source.groups):
        if ranges and ranges[-1].size + size <= budget:
            ranges[-1] = ranges[-1]._replace(end=index + 1, size=ranges[-1].size + size)
        else:
            ranges.append(Range(plain, index, index + 1, size))
    return ranges
