"""A file → the examples of a task. Readers for each form of file stand beside this one; here they meet the labels."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from flaxbert.finetuning.choices import choice_examples
from flaxbert.finetuning.conll import tagged_examples
from flaxbert.finetuning.files import TFDS, read_text
from flaxbert.finetuning.forms import (
    Answer, Choice, Examples, Question, TaggedExample, TextExample, read_labels, write_labels,
)  # fmt: skip
from flaxbert.finetuning.questions import question_examples
from flaxbert.finetuning.tables import Columns
from flaxbert.finetuning.tasks import Task
from flaxbert.finetuning.texts import text_examples

__all__ = [
    "Answer", "Choice", "Columns", "Examples", "Question", "TaggedExample", "TextExample", "read_examples",
    "read_labels", "sample", "write_labels",
]  # fmt: skip

_Reader = Callable[[str, str, Task, Columns, bool], Examples]

_READERS: dict[str, tuple[_Reader, tuple[str, ...]]] = {
    "classification": (text_examples, (".tsv", ".csv", ".jsonl", ".txt")),
    "regression": (text_examples, (".tsv", ".csv", ".jsonl", ".txt")),
    "multiple_choice": (choice_examples, (".csv", ".tsv", ".jsonl")),
    "qa": (question_examples, (".json", ".jsonl")),
    "tagging": (tagged_examples, (".conll", ".conllu", ".txt", ".tsv", ".jsonl", ".iob", ".bio")),
}
# CoNLL-2003's own names.
_CONLL_2003 = ("eng.train", "eng.testa", "eng.testb")


def read_examples(
    path: str | os.PathLike[str],
    task: Task,
    labels: Sequence[str] | None = None,
    columns: Columns = Columns(),
    labelled: bool = True,
) -> Examples:
    """The examples of one file, or of `tfds:NAME@SPLIT`.

    `labels` are those that training has learnt; None: this is the training file, and they are the task's own or learnt
    here. `columns` names columns where the task's own names do not fit. Without `labelled`, labels are neither asked
    for nor read.

    Raises ValueError, naming file, line and what was expected, for whatever cannot be read so.
    """
    name = str(path)
    if name.startswith(TFDS):
        from flaxbert.finetuning.tfds_source import read_split

        found = read_split(name, task, columns, labelled)
    else:
        reader, extensions = _READERS[task.kind]
        if Path(name).suffix not in extensions and not (task.kind == "tagging" and Path(name).name in _CONLL_2003):
            raise ValueError(f"{name} is of no form known for task {task.name}: expected {', '.join(extensions)}")
        found = reader(name, read_text(name), task, columns, labelled)
    if not found.items:
        raise ValueError(f"{name} has no example")
    return _with_labels(found, task, labels, labelled)


def sample(examples: Examples, count: int) -> Examples:
    """So many of them in the order of the file, drawn at random and always the same; a larger sample holds a smaller
    one. The first rows of a file that is sorted by label would be of one class.
    """
    drawn = np.random.default_rng(0).permutation(len(examples.items))[:count]
    items = [examples.items[index] for index in sorted(drawn)]
    ids = {item.id for item in items}
    misplaced = tuple(each for each in examples.misplaced if each in ids)
    return dataclasses.replace(examples, items=items, misplaced=misplaced)


def _with_labels(found: Examples, task: Task, labels: Sequence[str] | None, labelled: bool) -> Examples:
    """The examples with their label set. Raises ValueError for a label outside of it, naming file and line."""
    _check_no_header(found, labels if labels is not None else task.labels)
    if task.kind in ("regression", "qa") or task.copies_labels:
        return found
    if task.kind == "multiple_choice":
        _check_choices(found, labels)
        return found
    own = tuple(labels) if labels is not None else task.labels
    seen = _first_lines(found) if labelled else {}
    if own is None:
        own = tuple(sorted(seen))
        if len(own) == 1:
            raise ValueError(f"{found.path} has one label alone, {own[0]!r}: there is nothing to learn")
    for label, line in seen.items():
        if label not in own:
            whose = f"task {task.name}" if labels is None else "the training file"
            known = ", ".join(map(repr, own))
            raise ValueError(f"{found.path}, line {line}: label {label!r} is none of those of {whose}: {known}")
    return dataclasses.replace(found, labels=own)


def _check_no_header(found: Examples, known: Sequence[str] | None) -> None:
    if found.header is not None and found.header not in (known or ()):
        raise ValueError(
            f"{found.path}, line 1 looks like a header: its label {found.header!r} occurs nowhere else; name the "
            "columns by --first, --second and --label in place of counting them, or delete the line"
        )


def _first_lines(found: Examples) -> dict[str, str]:
    """Label → the line of the first example with it."""
    lines: dict[str, str] = {}
    for item in found.items:
        for label in (item.tags or ()) if isinstance(item, TaggedExample) else (item.label,):
            lines.setdefault(label, item.id)
    return lines


def _check_choices(found: Examples, labels: Sequence[str] | None) -> None:
    if labels is not None and len(labels) != len(found.labels):
        raise ValueError(f"{found.path} has {len(found.labels)} choices a row, and the training file {len(labels)}")
