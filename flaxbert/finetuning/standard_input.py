"""Standard input → examples, as they come: a text on a line, or JSON objects with the fields that files have."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

from flaxbert.finetuning.choices import choice_example, ending_columns
from flaxbert.finetuning.conll import listed_words
from flaxbert.finetuning.files import clean, parse_json
from flaxbert.finetuning.forms import Choice, Examples, Question, TaggedExample, TextExample
from flaxbert.finetuning.questions import question_of
from flaxbert.finetuning.tables import Columns, Row, find_column
from flaxbert.finetuning.tasks import Task
from flaxbert.finetuning.texts import text_columns, text_example

NAME = "standard input"

_LINES = 1024  # that are answered at once
_BYTES = 1 << 20  # that are asked for at once; a pipe gives what it has

_FromRow = Callable[[Row], Any]


def parts(stream: BinaryIO, task: Task, labels: Sequence[str], columns: Columns) -> Iterator[Examples]:
    """The examples of a stream of UTF-8, each time those of the lines that are there, without waiting for more.
    `labels` and `columns` are those of training.

    The fields of JSON objects are found by the first of them, as in a file of JSON lines. Raises ValueError, naming
    line and field, for a line that cannot be read, once the examples before it were given; and where there is none.
    """
    empty, from_row = True, list[_FromRow]()
    for lines in _lines(stream):
        items, wrong = [], None
        try:
            for number, raw in lines:
                line = _decoded(raw, number)
                if line.strip():
                    items.append(_item(task, labels, columns, number, line, from_row))
        except ValueError as error:
            wrong = error
        if items:
            yield Examples(NAME, items, tuple(labels))
        if wrong is not None:
            raise wrong
        empty = empty and not items
    if empty:
        raise ValueError(f"{NAME} is empty: expected a text on each line")


def _lines(stream: BinaryIO) -> Iterator[list[tuple[int, bytes]]]:
    """The lines that have come, with their numbers from 1; waits only where there is none."""
    before, pieces = 0, list[bytes]()
    while piece := getattr(stream, "read1")(_BYTES):  # a BinaryIO has it where it buffers, as standard input does
        pieces.append(piece)
        if b"\n" not in piece:
            continue
        *lines, rest = b"".join(pieces).split(b"\n")
        pieces = [rest]
        for start in range(0, len(lines), _LINES):
            yield list(enumerate(lines[start:start + _LINES], before + start + 1))
        before += len(lines)
    if rest := b"".join(pieces):
        yield [(before + 1, rest)]


def _decoded(raw: bytes, number: int) -> str:
    try:
        return raw.removesuffix(b"\r").decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{NAME}, line {number} is not UTF-8 at byte {error.start} of the line") from None


def _item(
    task: Task, labels: Sequence[str], columns: Columns, number: int, line: str, from_row: list[_FromRow]
) -> Any:
    """The example of a line; `from_row` holds how objects are read, once there was one."""
    where = f"{NAME}, line {number}"
    if line.lstrip().startswith("{"):
        values = parse_json(line, where)
        if not from_row:
            from_row.append(_row_reader(where, tuple(values), task, columns))
        item = from_row[0](Row(number, values))
    else:
        item = _from_text(task, columns, number, line, where)
    if isinstance(item, Choice) and len(item.choices) != len(labels):
        raise ValueError(f"{where} has {len(item.choices)} choices, expected {len(labels)} as in the training file")
    return item


def _row_reader(where: str, there: tuple[str, ...], task: Task, columns: Columns) -> _FromRow:
    """How to read objects with these fields: those that were named at fine-tuning where they are there, else the usual
    ones of the task.
    """
    first, second, _ = columns
    pair, chosen = _is_pair(task, columns), [name if name in there else None for name in columns]
    task = dataclasses.replace(
        task,
        first=_known(first, task.first, task, "first"),
        second=_known(second, task.second, task, "choices" if task.kind == "multiple_choice" else "second") * pair,
    )
    columns = Columns(*chosen)
    if task.kind == "tagging":
        word = find_column(where, there, columns.first, task.first, "the words")
        return lambda row: _tagged(row.line, listed_words(row, word, f"{NAME}, line {row.line}"))
    if task.kind == "qa":
        question = find_column(where, there, columns.first, task.first, "the question")
        context = find_column(where, there, columns.second, task.second, "the context")
        return lambda row: question_of(NAME, row, question, context, None)
    if task.kind == "multiple_choice":
        text = find_column(where, there, columns.first, task.first, "the text")
        endings = ending_columns(where, there, task, columns)
        return lambda row: choice_example(NAME, row, text, endings, None)
    names = text_columns(where, there, task, columns)
    return lambda row: text_example(NAME, row, names, None, task)


def _known(wished: str | None, usual: tuple[str, ...], task: Task, plain: str) -> tuple[str, ...]:
    """The names that a field may have; the last is one that it may have here whatever the task's files call it."""
    names = [*filter(None, [wished]), *usual, *([plain] if task.kind not in ("tagging", "qa") else [])]
    return tuple(dict.fromkeys(names))


def _is_pair(task: Task, columns: Columns) -> bool:
    return task.kind != "tagging" and bool(task.second or columns.second)


def _from_text(task: Task, columns: Columns, number: int, line: str, where: str) -> Any:
    """The example of a line that is no object: texts with tabs between them."""
    if task.kind == "multiple_choice":
        first, *choices = line.split("\t")
        checked = tuple(clean(choice, f"{where}, choice {place}") for place, choice in enumerate(choices))
        return Choice(str(number), clean(first, f"{where}, the text"), checked, None)
    texts, wanted = line.split("\t"), 2 if _is_pair(task, columns) else 1
    if len(texts) != wanted:
        raise ValueError(f"{where} has {len(texts)} texts with tabs between them, and the task has {wanted}")
    if task.kind == "tagging":
        # Not at every white space: a no-break space is part of a word.
        return _tagged(number, [clean(word, f"{where}, a word") for word in line.split(" ") if word])
    names = {"qa": ("the question", "the context")}.get(task.kind, ("the first text", "the second text"))
    for text, name in zip(texts, names):
        clean(text, f"{where}, {name}")
    if task.kind == "qa":
        return Question(str(number), texts[0], texts[1], None)
    return TextExample(str(number), texts[0], texts[1] if wanted == 2 else None, None)


def _tagged(number: int, words: list[str]) -> TaggedExample:
    return TaggedExample(str(number), tuple(words), None)
