"""SWAG's table and others of its form: a text and its possible continuations, one of them right."""

import re

from flaxbert.finetuning.files import clean
from flaxbert.finetuning.forms import Choice, Examples
from flaxbert.finetuning.tables import Columns, CutRow, Row, cut_row_error, find_column, read_table
from flaxbert.finetuning.tasks import Task
from flaxbert.finetuning.texts import read_label

_NUMBERED = re.compile(r"(ending|choice|option)_?(\d+)")


def choice_examples(path: str, text: str, task: Task, columns: Columns, labelled: bool) -> Examples:
    """The examples in the text of a table: each choice in a column of its own, or a list of them in JSON lines."""
    table = read_table(path, text, (*filter(None, columns), *task.first, *task.label), (), columns)
    first = find_column(path, table.columns, columns.first, task.first, "the text")
    label = find_column(path, table.columns, columns.label, task.label, "the label") if labelled else None
    endings = ending_columns(path, table.columns, task, columns)
    items: list[Choice] = []
    for row in table.rows:
        if isinstance(row, CutRow):
            raise cut_row_error(path, row, table.columns)
        items.append(choice_example(path, row, first, endings, label))
        expected, found = len(items[0].choices), len(items[-1].choices)
        if found != expected or found < 2:
            raise ValueError(
                f"{path}, line {row.line} has {found} choices, expected {max(2, expected)} as on the first line"
            )
    number = len(items[0].choices) if items else 0
    return Examples(path, items, labels=tuple(map(str, range(number))))


def ending_columns(path: str, there: tuple[str, ...], task: Task, columns: Columns) -> list[str]:
    """The columns of the choices by number, or the one column that lists them."""
    numbered = [(int(match[2]), name) for name in there if (match := _NUMBERED.fullmatch(name))]
    if numbered and columns.second is None:
        return [name for _, name in sorted(numbered)]
    return [find_column(path, there, columns.second, (*task.second, "ending0"), "the choices")]


def choice_example(path: str, row: Row, first: str, endings: list[str], label: str | None) -> Choice:
    """The example in a row."""
    where = f"{path}, line {row.line}"
    missing = [name for name in (first, *endings, label) if name is not None and name not in row.values]
    if missing:
        raise ValueError(f"{where} has no column {missing[0]!r}; those there are {', '.join(row.values)}")
    found = [row.values[name] for name in endings]
    if len(found) == 1:
        if not isinstance(found[0], list):
            raise ValueError(f"{where}, column {endings[0]!r} is {repr(found[0])[:40]}, expected a list of choices")
        found = found[0]
    choices = tuple(clean(choice, f"{where}, choice {number}") for number, choice in enumerate(found))
    text = clean(row.values[first], f"{where}, column {first!r}")
    right = None if label is None else read_label(row.values[label], f"{where}, column {label!r}")
    if right is not None and right not in map(str, range(len(choices))):
        raise ValueError(f"{where}, column {label!r} is {right!r}, expected the number of a choice, from 0 to "
                         f"{len(choices) - 1}")  # fmt: skip
    return Choice(str(row.line), text, choices, right)
