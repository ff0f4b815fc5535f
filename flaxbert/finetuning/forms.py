"""What an example of each kind of task holds, and what a file of them was read as."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

LABELS = "labels.json"


class TextExample(NamedTuple):
    """For classification and regression: a text or a pair of texts."""

    id: str
    """Where it stands: its line, from 1."""
    first: str
    second: str | None
    label: str | float | None
    """A number in regression. None: not given."""


class TaggedExample(NamedTuple):
    """A sentence of words, each with a tag."""

    id: str
    words: tuple[str, ...]
    tags: tuple[str, ...] | None


class Answer(NamedTuple):
    """A piece of a context. `start` in characters; -1 where the file's offset is wrong, so that it cannot be learnt."""

    text: str
    start: int


class Question(NamedTuple):
    """A question about a context."""

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...] | None
    """Empty: the context does not answer it. None: not given."""


class Choice(NamedTuple):
    """A text and what may follow it."""

    id: str
    first: str
    choices: tuple[str, ...]
    label: str | None
    """The number of the right choice, from 0."""


Example = TextExample | TaggedExample | Question | Choice


@dataclasses.dataclass(frozen=True)
class Examples:
    """What was read from one file, all of one kind."""

    path: str
    items: list[Any]
    """Of the class of `Example` that the task's kind goes with."""
    labels: tuple[str, ...] = ()
    """The label set in the order of the model's outputs; empty in regression and qa."""
    broken_tags: int = 0
    """Tags I-X that do not go on with an entity of type X: read as B-X, as conlleval does."""
    misplaced: tuple[str, ...] = ()
    """Ids of questions with an answer that is not at its offset."""
    cut_rows: int = 0
    """Rows passed over, where the task allows it."""
    header: str | None = None
    """Of a table whose columns were told by their number: the label of line 1 where it looks like a column's name."""

    unknown: tuple[str, str] | None = None
    """Of a table of one column without a known name: line 1, which was read as a text, and the name that it could
    have."""

    @property
    def remarks(self) -> list[str]:
        """A sentence on each thing in the file that a user should know of."""
        found = []
        if self.broken_tags:
            tags = "1 tag I-X does" if self.broken_tags == 1 else f"{self.broken_tags} tags I-X do"
            found.append(f"{self.path}: {tags} not go on with an entity; each was read as B-X")
        if self.misplaced:
            found.append(
                f"{self.path}: in {len(self.misplaced)} of {len(self.items)} questions an answer is not at its offset, "
                f"and cannot be learnt there: {shown_ids(self.misplaced)}"
            )
        if self.cut_rows:
            found.append(f"{self.path}: {self.cut_rows} rows lack a column or a text, and were passed over")
        if self.unknown is not None:
            line, name = self.unknown
            shown = line if len(line) <= 40 else line[:40] + "…"
            wanted = f"if it names the column, call it {name!r}"
            found.append(f"{self.path}: line 1, {shown!r}, was read as a text; {wanted}")
        return found


def shown_ids(ids: tuple[str, ...]) -> str:
    """The first twenty."""
    return ", ".join(ids[:20]) + (", …" if len(ids) > 20 else "")


def write_labels(folder: str | os.PathLike[str], labels: tuple[str, ...]) -> None:
    """Writes the label set beside a model, as a JSON list."""
    text = json.dumps(list(labels), ensure_ascii=False, indent=1) + "\n"
    (Path(folder) / LABELS).write_text(text, encoding="utf-8")


def read_labels(folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """The label set that `write_labels` wrote. Raises ValueError where the file is missing or holds something else."""
    path = Path(folder) / LABELS
    try:
        found = json.loads(path.read_bytes())
    except OSError:
        raise ValueError(f"{folder} has no {LABELS}: expected the directory of a fine-tuned model") from None
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(label, str) for label in found):
        raise ValueError(f"{path} is damaged: expected a JSON list of labels")
    return tuple(found)
