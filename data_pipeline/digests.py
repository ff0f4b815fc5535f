"""Digests of documents and lines: what each shard leaves in the work folder so that duplicates are found among all.

A run is a file of up to RUN digests, ascending (8 bytes each), and after them the place of each within the run (4 bytes
each). A shard has as many runs as it takes, so that no process holds more than one.
"""

import mmap
from array import array
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipeline.whole_files import write_whole

KINDS = ("documents", "lines")
RUN = 1 << 20

_FOLDER = "digests"


class Totals(NamedTuple):
    """How many of each kind a shard holds."""

    documents: int
    lines: int


def lines_of(document: bytes) -> list[bytes]:
    """The lines by which duplicates are told: without the white space at their ends, those that are blank left out."""
    lines = map(bytes.strip, document.split(b"\n"))
    # What begins and ends with ASCII is stripped by now: written out, for this runs on every line of a corpus.
    stripped = (line if not line or line[0] < 0x80 > line[-1] else line.decode().strip().encode() for line in lines)
    return list(filter(None, stripped))


class DigestWriter:
    """Takes a shard's documents in order. `close` says how many it took."""

    def __init__(self, work: Path, shard: int):
        from xxhash import xxh3_64_intdigest

        self.digest, self.work, self.shard = xxh3_64_intdigest, work, shard
        self.waiting = {kind: array("Q") for kind in KINDS}
        self.runs = dict.fromkeys(KINDS, 0)

    def add(self, document: bytes) -> None:
        """Notes a document, in UTF-8, and its lines."""
        lines = lines_of(document)
        # Of its lines, not its bytes: documents that differ in white space around lines alone are stored alike.
        self.waiting["documents"].append(self.digest(b"\n".join(lines)))
        self.waiting["lines"].extend(map(self.digest, lines))
        for kind in KINDS:
            while len(self.waiting[kind]) >= RUN:
                self._write(kind)

    def _write(self, kind: str) -> None:
        digests = np.array(self.waiting[kind][:RUN], "<u8")
        del self.waiting[kind][:RUN]
        order = np.argsort(digests, kind="stable")
        content = digests[order].tobytes() + order.astype("<u4").tobytes()
        path = run_path(self.work, kind, self.shard, self.runs[kind])
        path.parent.mkdir(exist_ok=True)
        write_whole(path, lambda file: file.write(content))
        self.runs[kind] += 1

    def close(self) -> Totals:
        """Writes what is left."""
        totals = Totals(*(self.runs[kind] * RUN + len(self.waiting[kind]) for kind in KINDS))
        for kind in KINDS:
            if self.waiting[kind]:
                self._write(kind)
        return totals


def run_path(work: Path, kind: str, shard: int, run: int) -> Path:
    """Where a shard's run lies."""
    return work / _FOLDER / f"{kind}-{shard:05d}-{run:05d}.run"


def run_lengths(total: int) -> list[int]:
    """Digests in each of a shard's runs."""
    return [min(RUN, total - first) for first in range(0, total, RUN)]


def are_whole(work: Path, shard: int, totals: Totals) -> bool:
    """Whether all runs of a shard are there."""
    return all(
        path.is_file() and path.stat().st_size == 12 * length
        for kind, total in zip(KINDS, totals)
        for run, length in enumerate(run_lengths(total))
        for path in [run_path(work, kind, shard, run)]
    )


def read_run(path: Path, length: int, part: int, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Digests [N] uint64 and places [N] uint32 of one part of the digests' whole range, without reading the others."""
    with open(path, "rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    digests = np.frombuffer(content, "<u8", length)
    places = np.frombuffer(content, "<u4", length, offset=8 * length)
    borders = [side * 2**64 // parts for side in (part, part + 1)]
    start, end = (int(np.searchsorted(digests, np.uint64(border))) if border < 2**64 else length for border in borders)
    return digests[start:end].copy(), places[start:end].copy()
