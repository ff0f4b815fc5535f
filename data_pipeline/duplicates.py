"""Exact duplicates of documents and lines in a corpus of any size: counted, and dropped but for the first of each.

The digests of all shards are compared part by part of their range, so that memory does not grow with the corpus; what
is found depends on the corpus alone, not on who ran the work.
"""

import math
from pathlib import Path
from typing import Iterator, NamedTuple

import numpy as np

from data_pipeline.digests import KINDS, RUN, Totals, lines_of, read_run, run_lengths, run_path
from data_pipeline.whole_files import write_whole

PART = 4 << 20
"""Digests compared at once. Each takes some 40 bytes of memory meanwhile."""

_FOLDER = "repeated"


class _Run(NamedTuple):
    path: Path
    length: int


class Repeated(NamedTuple):
    """Where a shard finds which of its documents or lines came before: runs `first` to before `end`, in every part."""

    work: Path
    kind: str
    first: int
    end: int
    parts: int


def count_repeated(work: Path, totals: list[Totals]) -> dict[str, dict[str, int]]:
    """For documents and for lines: how many were read, and how many of them had come before."""
    found = {}
    for index, kind in enumerate(KINDS):
        runs = _runs(work, kind, [total[index] for total in totals])
        repeated = sum(int(later.sum()) for later, _, _ in map(lambda part: _compare(runs, *part), _parts(runs)))
        found[kind] = {"read": sum(run.length for run in runs), "repeated": repeated}
    return found


def find_repeated(work: Path, totals: list[Totals], kind: str) -> list[Repeated]:
    """Writes down which documents or lines came before, and returns for each shard where to look for its own.

    Parts that an earlier run of the same command wrote down are not compared again.
    """
    counts = [total[KINDS.index(kind)] for total in totals]
    runs = _runs(work, kind, counts)
    parts = _parts(runs)
    for part, of in parts:
        if not _path(work, kind, part, "offsets").is_file():
            _write_part(work, kind, part, *_compare(runs, part, of))
    ends = np.cumsum([0, *(len(run_lengths(count)) for count in counts)])
    return [Repeated(work, kind, int(start), int(end), len(parts)) for start, end in zip(ends, ends[1:])]


def _runs(work: Path, kind: str, counts: list[int]) -> list[_Run]:
    """All runs of a kind, in the order of the corpus."""
    return [
        _Run(run_path(work, kind, shard, index), length)
        for shard, count in enumerate(counts)
        for index, length in enumerate(run_lengths(count))
    ]


def _parts(runs: list[_Run]) -> list[tuple[int, int]]:
    parts = max(1, math.ceil(sum(run.length for run in runs) / PART))
    return [(part, parts) for part in range(parts)]


def _compare(runs: list[_Run], part: int, parts: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the N digests of a part, in the order of the runs: which came before [N] bool, their places [N] in their run,
    and how many are of each run.
    """
    pieces = [read_run(run.path, run.length, part, parts) for run in runs]
    lengths = np.array([len(places) for _, places in pieces], np.int64)
    digests = np.concatenate([np.zeros(0, np.uint64), *(digests for digests, _ in pieces)])
    places = np.concatenate([np.zeros(0, np.uint32), *(places for _, places in pieces)])
    # Equal digests of one run stand in the order of their places, so a stable sort puts the first of all first.
    order = np.argsort(digests, kind="stable")
    ordered = digests[order]
    later = np.zeros(len(digests), bool)
    later[order[1:][ordered[1:] == ordered[:-1]]] = True
    return later, places, lengths


def _write_part(
    work: Path, kind: str, part: int, later: np.ndarray, places: np.ndarray, lengths: np.ndarray
) -> None:
    owner = np.repeat(np.arange(len(lengths)), lengths)[later]
    offsets = np.cumsum([0, *np.bincount(owner, minlength=len(lengths))], dtype=np.int64)
    path = _path(work, kind, part, "places")
    path.parent.mkdir(exist_ok=True)
    write_whole(path, lambda file: np.save(file, places[later]))
    # Written last: it says that the part is whole.
    write_whole(_path(work, kind, part, "offsets"), lambda file: np.save(file, offsets))


def _path(work: Path, kind: str, part: int, content: str) -> Path:
    return work / _FOLDER / f"{kind}-{part:05d}-{content}.npy"


class Sieve:
    """Takes a shard's documents in order, and gives them back without what came before."""

    def __init__(self, repeated: Repeated):
        self.kind, self.places = repeated.kind, _places(repeated)
        self.next, self.count = next(self.places, None), 0

    def kept(self, document: bytes) -> bytes:
        """What is left of the document, in UTF-8: all of it, some of its lines, or nothing."""
        if self.kind == "documents":
            return b"" if self._came_before() else document
        lines = document.split(b"\n")
        return b"\n".join(line for line in lines if not lines_of(line) or not self._came_before())

    def _came_before(self) -> bool:
        place, self.count = self.count, self.count + 1
        if place != self.next:
            return False
        self.next = next(self.places, None)
        return True


def _places(repeated: Repeated) -> Iterator[int]:
    """Numbers, ascending, of the shard's documents or lines that came before."""
    for number, run in enumerate(range(repeated.first, repeated.end)):
        found = [np.zeros(0, np.uint32)]
        for part in range(repeated.parts):
            offsets = np.load(_path(repeated.work, repeated.kind, part, "offsets"), mmap_mode="r")
            places = np.load(_path(repeated.work, repeated.kind, part, "places"), mmap_mode="r")
            found.append(places[offsets[run]:offsets[run + 1]])
        yield from (np.sort(np.concatenate(found)).astype(np.int64) + number * RUN).tolist()
