"""Tables with a text or two and a label in each row: the examples of classification and regression."""

import math
from typing import Any

from flaxbert.finetuning.files import clean
from flaxbert.finetuning.forms import Examples, TextExample
from flaxbert.finetuning.tables import LABELS, Columns, CutRow, Row, Table, cut_row_error, find_column, read_table
from flaxbert.finetuning.tasks import Task


def text_examples(path: str, text: str, task: Task, columns: Columns, labelled: bool) -> Examples:
    """The examples in the text of a table."""
    table = _table(path, text, task, columns, labelled)
    names = text_columns(path, table.columns, task, columns)
    label = find_column(path, table.columns, columns.label, task.label, "the label") if labelled else None
    labelling = (columns.label, *LABELS) if table.headless else ()
    beside = next((name for name in labelling if name in table.columns), None)
    items, labels, cut = [], list[str](), 0
    for row in table.rows:
        if task.skips_cut_rows and labelled and (isinstance(row, CutRow) or _lacks_a_text(row, names)):
            cut += 1
            continue
        if isinstance(row, CutRow):
            raise cut_row_error(path, row, table.columns)
        if beside is not None:
            labels.append(row.values[beside].strip())
        items.append(text_example(path, row, names, label, task))
    nameless = table.headless and len(table.columns) == 1 and not table.columns[0].isdigit()
    asked = columns.first is not None or not path.endswith(".txt")  # lines of text have no names by themselves
    unknown = (items[0].first, table.columns[0]) if nameless and asked else None
    return Examples(path, items, cut_rows=cut, header=_name_among(labels), unknown=unknown)


def _table(path: str, text: str, task: Task, columns: Columns, labelled: bool) -> Table:
    """The table in a file's text. Without `labelled` the label's column may be lacking, and a .txt of one text a row
    has no header, unless line 1 is the name that `columns` gives.
    """
    if not labelled:
        columns = columns._replace(label=None)
    alone, line = not (labelled or task.second or columns.second), text.partition("\n")[0].removesuffix("\r")
    if alone and path.endswith(".txt") and "\t" not in line and line != columns.first:
        return read_table(path, text, (), (columns.first or task.first[0],), Columns())
    known = tuple(filter(None, columns)) or (*task.first, *task.second, *task.label)
    return read_table(path, text, known, task.headerless, columns)


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


def text_example(path: str, row: Row, names: list[str], label: str | None, task: Task) -> TextExample:
    """The example in a row. Where a task's training passes over rows that lack a text, a text may be empty here: each
    row that is predicted gets its answer.
    """
    where = f"{path}, line {row.line}"
    cells = [(_cell(row, name, where), f"{where}, column {name!r}") for name in names]
    empty = [task.skips_cut_rows and isinstance(cell, str) and not cell.strip() for cell, _ in cells]
    first, *rest = ["" if nothing else clean(*cell) for nothing, cell in zip(empty, cells)]
    found = None if label is None else _label(_cell(row, label, where), f"{where}, column {label!r}", task)
    return TextExample(str(row.line), first, rest[0] if rest else None, found)


def _label(value: Any, where: str, task: Task) -> str | float:
    if task.copies_labels:
        return copied_label(value, where)
    return read_score(value, where, task) if task.kind == "regression" else read_label(value, where)


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


def copied_label(value: Any, where: str) -> str | float:
    """A label as it stands, a number or a text. Raises ValueError, naming `where`, for anything else, and for numbers
    that JSON or Parquet has no room for.
    """
    if isinstance(value, str) or isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise ValueError(f"{where} is {repr(value)[:40]}, expected a finite number of up to 64 bits, or a text")


def read_score(value: Any, where: str, task: Task) -> float:
    """The number that a task of regression learns. Raises ValueError, naming `where`, for none, or one kept back."""
    number = read_number(value, where)
    if number < task.lowest:
        raise ValueError(f"{where} is {number:g}, below {task.lowest:g}: the label is kept back")
    return number


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
