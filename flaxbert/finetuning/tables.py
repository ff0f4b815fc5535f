"""Tables of texts: TSV, CSV and JSON lines → rows with named columns."""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from flaxbert.finetuning.files import lines, parse_json

_LONGEST_FIELD = 1 << 30  # characters; the csv module stops at 131,072, and a context may well be longer


class Columns(NamedTuple):
    """The columns that a user names. In a file without a header they are numbers from 1."""

    first: str | None = None
    second: str | None = None
    label: str | None = None


class Row(NamedTuple):
    """One row and the line where it begins, from 1."""

    line: int
    values: dict[str, Any]


class CutRow(NamedTuple):
    """A line with too few or too many columns."""

    line: int
    width: int


class Table(NamedTuple):
    """The rows of a file; `columns` are those of the header, or of the first object of JSON lines."""

    columns: tuple[str, ...]
    rows: Iterator[Row | CutRow]
    headless: bool = False
    """Whether the columns were told by their number alone: the first row may be a header of unknown names."""


def read_table(path: str, text: str, known: tuple[str, ...], headerless: tuple[str, ...], columns: Columns) -> Table:
    """The table in a file's text. Its first line is a header where it holds one of the `known` names; if not, its
    columns are `headerless`, or the numbers that `columns` gives.

    Raises ValueError for a file of another kind, for a header with a name twice, and where there is neither a header
    nor the width of `headerless`: a column that the user names stands in a header.
    """
    if path.endswith(".jsonl"):
        return _json_lines(path, text)
    records = _comma_separated(path, text) if path.endswith(".csv") else _tab_separated(text)
    line, first = next(records)
    wished = tuple(filter(None, columns))
    if any(name.isdigit() for name in wished):
        names = tuple(str(number) for number in range(1, len(first) + 1))
        absent = [name for name in wished if name not in names]
        if absent:
            counted = f"beside columns by number, 1 to {len(names)}"
            raise ValueError(f"{path} has no column {absent[0]!r} {counted}; {_shown(first)}")
        return Table(names, _rows(_put_back(line, first, records), names), headless=True)
    if set(known) & set(first):
        _check_names(path, first)
        return Table(tuple(first), _rows(records, tuple(first)))
    if not wished and headerless and len(first) in (len(headerless), len(headerless) - 1):
        # Without labels, a file may have the column of labels or not.
        names = headerless if len(first) == len(headerless) else tuple(n for n in headerless if n not in LABELS)
        return Table(names, _rows(_put_back(line, first, records), names), headless=True)
    raise ValueError(f"{path} has no column {' or '.join(map(repr, known))}; {_shown(first)}{_way_out(wished)}")


LABELS = ("label", "score")
"""What `headerless` calls a column of labels."""


def _shown(first: list[str]) -> str:
    """The cells of line 1, be they names or not."""
    cells = [repr(cell if len(cell) <= 40 else cell[:40] + "…") for cell in first]
    return f"those of line 1 are {', '.join(cells[:12])}" + (", …" if len(cells) > 12 else "")


def _way_out(wished: tuple[str, ...]) -> str:
    return "" if wished else ": name yours by --first and --label, or count them from 1 where line 1 has no names"


def _check_names(path: str, header: list[str]) -> None:
    twice = [name for name, count in Counter(header).items() if count > 1 and name.strip()]
    if twice:
        raise ValueError(f"{path} has the column {twice[0]!r} twice: which one is meant?")


def _put_back(
    line: int, first: list[str], records: Iterator[tuple[int, list[str]]]
) -> Iterator[tuple[int, list[str]]]:
    yield line, first
    yield from records


def _tab_separated(text: str) -> Iterator[tuple[int, list[str]]]:
    """GLUE's form: a tab always parts columns, and quotes are text."""
    for number, line in enumerate(lines(text), 1):
        yield number, line.split("\t")


def _comma_separated(path: str, text: str) -> Iterator[tuple[int, list[str]]]:
    records, line = [], 1
    reader = csv.reader(io.StringIO(text.rstrip("\r\n"), newline=""), strict=True)
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        for record in reader:
            records.append((line, record))
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}, line {line} is not CSV: {error}") from None
    finally:
        csv.field_size_limit(before)
    return iter(records)


def _rows(records: Iterator[tuple[int, list[str]]], names: tuple[str, ...]) -> Iterator[Row | CutRow]:
    for line, record in records:
        yield Row(line, dict(zip(names, record))) if len(record) == len(names) else CutRow(line, len(record))


def _json_lines(path: str, text: str) -> Table:
    found = lines(text)
    first = _object(path, 1, found[0])
    return Table(tuple(first), (Row(number, _object(path, number, line)) for number, line in enumerate(found, 1)))


def _object(path: str, number: int, line: str) -> dict[str, Any]:
    where = f"{path}, line {number}"
    if not line.strip():
        raise ValueError(f"{where} is empty")
    value = parse_json(line, where)
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {line[:40]!r}, expected a JSON object")
    return value


def find_column(path: str, there: tuple[str, ...], wished: str | None, known: tuple[str, ...], what: str) -> str:
    """The name of the column of `what`: the wished one, or else the first of the known names that is there.

    Raises ValueError naming those there.
    """
    names = (wished,) if wished is not None else known
    found = next((name for name in names if name in there), None)
    if found is None:
        wanted = " or ".join(map(repr, names)) or "a name for it"
        raise ValueError(f"{path} has no column for {what}: expected {wanted}; those there are {', '.join(there)}")
    return found


def cut_row_error(path: str, row: CutRow, columns: tuple[str, ...]) -> ValueError:
    """What is wrong with a row that is cut."""
    if row.width <= 1 < len(columns):
        return ValueError(f"{path}, line {row.line} is empty or not parted into columns: expected {len(columns)}")
    return ValueError(f"{path}, line {row.line} has {row.width} columns, expected {len(columns)}: {', '.join(columns)}")
