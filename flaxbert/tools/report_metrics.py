"""What a run has written of itself: its lines of metrics by phase, its launches, and the numbers that stand for all."""

import json
import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flaxbert.phases import Part, parts
from flaxbert.training.lock import check_no_launch
from flaxbert.training.metrics import whole_lines
from flaxbert.training.run import RunConfig
from flaxbert.training.tensorboard import launches

Record = dict[str, Any]


class History(NamedTuple):
    """A run so far."""

    parts: list[Part]
    train: list[list[Record]]
    """The lines of each part."""
    held_out: list[list[Record]]
    launched: list[tuple[float, int]]
    """Unix time and steps done before, for each launch that is known."""
    training: bool
    """Whether a launch is training now."""

    @property
    def all_train(self) -> list[Record]:
        """The lines of training, whatever their part."""
        return [record for records in self.train for record in records]

    @property
    def all_held_out(self) -> list[Record]:
        """The held-out lines, whatever their part."""
        return [record for records in self.held_out for record in records]

    @property
    def step(self) -> int:
        """The last one that is told of."""
        return max((record["step"] for record in [*self.all_train, *self.all_held_out]), default=0)


def read_history(folder: Path, run: RunConfig) -> History:
    """The history of a run, be it at its end, under way, or without a line yet. Raises ValueError for a number that
    none writes.
    """
    path = folder / "metrics.jsonl"
    records = [json.loads(line) for line in whole_lines(path)]
    _check_numbers(path, records)
    found = parts(run.experiment)
    train, held_out = (
        by_part([record for record in records if record.get("split") == split], found)
        for split in ("train", "validation")
    )
    return History(found, train, held_out, launches(folder / "tensorboard"), _is_training(str(folder)))


def _check_numbers(path: Path, records: Iterable[Record]) -> None:
    """A share lies in [0, 1], and what is not finite is written as null."""
    for record in records:
        for name, found in record.items():
            is_share = name == "nsp_random"
            low, high = (0.0, 1.0) if is_share else (-sys.float_info.max, sys.float_info.max)
            if isinstance(found, (int, float)) and not low <= found <= high:
                expected = "a share, from 0 to 1" if is_share else "a finite number"
                raise ValueError(f"{path}: {name} is {repr(found)[:40]}, expected {expected}")


def by_part(records: Iterable[Record], found: Sequence[Part]) -> list[list[Record]]:
    """Lines in their order, shared out among the parts that they name; one of a run without phases names none."""
    records = list(records)
    return [[record for record in records if record.get("phase", 0) == number] for number in range(len(found))]


def value(record: Record, name: str) -> float:
    """A number of a line; not a number where the line has none, or null for one that is none."""
    found = record.get(name)
    return float(found) if isinstance(found, (int, float)) else math.nan


def values(records: Iterable[Record], name: str) -> list[float]:
    """The finite numbers of that name."""
    return [number for record in records if math.isfinite(number := value(record, name))]


def typical(records: Iterable[Record], name: str) -> float | None:
    """The median; None where no line has the number."""
    found = values(records, name)
    return statistics.median(found) if found else None


def majority(record: Record) -> float:
    """The accuracy of always saying the commoner label of the pairs."""
    share = value(record, "nsp_random")
    return max(share, 1 - share)


def label_entropy(record: Record) -> float:
    """The loss in nats of a guess at the labels of the pairs that knows how common each is."""
    share = value(record, "nsp_random")
    return -sum(part * math.log(part) if part else 0.0 for part in (share, 1 - share))


def _is_training(workdir: str) -> bool:
    try:
        check_no_launch(workdir)
    except ValueError:
        return True
    return False
