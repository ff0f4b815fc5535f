"""Tables with a text or two and a label in each row: the examples of classification and regression."""

import math
from typing import Any

from flaxbert.finetuning.files import clean
from flaxbert.finetuning.forms import Examples, TextExample
from flaxbert.finetuning.tables import LABELS, Columns, CutRow, Row, cut_row_error, find_column, read_table
from flaxbert.finetuning.tasks import Task


def text_examples(path: str, text: str, task: Task, columns: Columns, labelled: bool) -> Examples:
    """The examples in the text of a table."""
    known = tuple(filter(None, columns)) or (*task.first, *task.second, *task.label)
    table = read_table(path, text, known, task.headerless, columns)
    names = text_columns(path, table.columns, task, columns)
    label = find_column(path, table.columns, columns.label, task.label, "the label") if labelled else None
    labelling = (columns.label, *LABELS) if table.headless else ()
    beside = next((name for name in labelling if name in table.columns), None)
    items, labels, cut = [], list[str](), 0
    for row in table.rows:
        if task.skips_cut_rows and (isinstance(row, CutRow) or _lacks_a_text(row, names)):
            cut += 1
            continue
        if isinstance(row, CutRow):
            raise cut_row_error(path, row, table.columns)
        if beside is not None:
            labels.append(row.values[beside].strip())
        items.append(text_example(path, row, names, label, task.kind))
    return Examples(path, items, cut_rows=cut, header=_name_among(labels))


def _lacks_a_text(row: Row, names: list[str]) -> bool:
    return not all(str(row.values.get(name, "")).strip() for name in names)


def text_columns(path: str, there: tuple[str, ...], task: Task, columns: Columns) -> list[str]:
    """The names of the columns of the text, or of the pair."""
    names = [find_column(path, there, columns.first, task.first, "the text")]
    if task.second or columns.second:
        names.append(find_column(path, there, columns.second, task.second, "the second text"))
    if len(set(names)) < len(names):
        raise ValueError(f"{path}: column {names[0]!r} cannot be both the first and the second text")
    return names


def text_example(path: str, row: Row, names: list[str], label: str | None, kind: str) -> TextExample:
    """The example in a row."""
    where = f"{path}, line {row.line}"
    first, *rest = [clean(_cell(row, name, where), f"{where}, column {name!r}") for name in names]
    read = read_number if kind == "regression" else read_label
    found = None if label is None else read(_cell(row, label, where), f"{where}, column {label!r}")
    return TextExample(str(row.line), first, rest[0] if rest else None, found)


def _cell(row: Row, name: str, where: str) -> Any:
    if name not in row.values:
        raise ValueError(f"{where} has no column {name!r}; those there are {', '.join(row.values)}")
    return row.values[name]


def read_label(value: Any, where: str) -> str:
    """The name of a class. Raises ValueError, naming `where`, for what is none: nothing, NaN, a list."""
    if isinstance(value, bool | int) or isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str) and value.strip() and value.strip().lower() != "nan":
        return clean(value.strip(), where)
    raise ValueError(f"{where} is {value!r}, expected a label")


def read_number(value: Any, where: str) -> float:
    """The number of a regression. Raises ValueError, naming `where`, for what is none, and for NaN and infinity."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):  # the last of a whole number in JSON, which may be of any size
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where} is {repr(value)[:40]}, expected a finite number")
    return number


def _name_among(labels: list[str]) -> str | None:
    """The label of line 1 where it is no number and all others are, or else where no other line has it: it may be the
    name of a column.
    """
    if len(labels) < 2:
        return None
    first, rest = labels[0], labels[1:]
    if all(map(_is_number, rest)):
        return None if _is_number(first) else first
    return first if first not in rest else None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
