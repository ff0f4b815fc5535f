"""CoNLL, CoNLL-U and JSON lines of words with tags; how tags of entities are read."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from flaxbert.finetuning.files import clean, lines
from flaxbert.finetuning.forms import Examples, TaggedExample
from flaxbert.finetuning.tables import Columns, CutRow, Row, find_column, read_table
from flaxbert.finetuning.tagging import begun
from flaxbert.finetuning.tasks import Task
from flaxbert.finetuning.texts import read_label

_UNIVERSAL = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
_UNIVERSAL_WORD = re.compile(r"\d+")  # not 3-4, the letters of two words written as one, nor 8.1, a word left out
_DOCUMENT = "-DOCSTART-"
_TAG = re.compile(r"O|[BI]-.+")


class _Sentence(NamedTuple):
    line: int
    words: list[str]
    tags: list[str]


def tagged_examples(path: str, text: str, task: Task, columns: Columns, labelled: bool) -> Examples:
    """The sentences in the text of a file."""
    if path.endswith(".jsonl"):
        found = _from_lines(path, text, task, columns, labelled)
    else:
        found = _from_columns(path, text, task, columns, labelled)
    return tagged(path, found, task, labelled)


def tagged(path: str, sentences: Iterator[tuple[int, list[str], list[str]]], task: Task, labelled: bool) -> Examples:
    """Sentences (where, words, tags) as examples; tags of entities in one form."""
    items, broken = [], 0
    for line, words, tags in sentences:
        if labelled and task.has_entities:
            tags, more = entity_tags(path, line, tags, task)
            broken += more
        items.append(TaggedExample(str(line), tuple(words), tuple(tags) if labelled else None))
    if not items:
        raise ValueError(f"{path} has no sentence")
    return Examples(path, items, broken_tags=broken)


def entity_tags(path: str, line: int, tags: list[str], task: Task) -> tuple[list[str], int]:
    """Tags where each entity begins with B-, and how many did not. Raises ValueError for one that is none of BIO's."""
    for tag in tags:
        if not _TAG.fullmatch(tag):
            raise ValueError(
                f"{path}, sentence on line {line}: tag {tag!r} is none of an entity: expected O, B-TYPE or I-TYPE, or "
                f"task tagging in place of {task.name}"
            )
    return begun(tags)


def _from_columns(
    path: str, text: str, task: Task, columns: Columns, labelled: bool
) -> Iterator[tuple[int, list[str], list[str]]]:
    """A word on a line and an empty line after a sentence. Columns are parted by tabs, or else by spaces."""
    universal = path.endswith(".conllu")
    rows = _rows(lines(text), universal)
    first = next((row for row in rows if row is not None), None)
    if first is None:
        return
    width = len(_UNIVERSAL) if universal else len(first[1])
    word = _column(path, columns.first, ("form",) if universal else ("1",), width, universal)
    tag = _column(path, columns.label, task.label, width, universal) if labelled else None
    sentence = _Sentence(0, [], [])
    for row in [*_rows(lines(text), universal), None]:
        if row is None:
            if sentence.words:
                yield sentence
            sentence = _Sentence(0, [], [])
            continue
        line, cells = row
        if len(cells) != width:
            expected = f"{width} in CoNLL-U" if universal else f"{width} as on line {first[0]}"
            raise ValueError(f"{path}, line {line} has {len(cells)} columns, expected {expected}")
        if universal and not _UNIVERSAL_WORD.fullmatch(cells[0]):
            continue
        sentence = sentence if sentence.words else _Sentence(line, [], [])
        sentence.words.append(clean(cells[word], f"{path}, line {line}, the word"))
        if tag is not None:
            sentence.tags.append(read_label(cells[tag], f"{path}, line {line}, column {tag + 1}"))


def _rows(raw: list[str], universal: bool) -> Iterator[tuple[int, list[str]] | None]:
    """(line, cells) of each word, None between sentences."""
    separator = "\t" if universal or any("\t" in line.strip() for line in raw) else " "
    for number, line in enumerate(raw, 1):
        if not line.strip():
            yield None
        elif universal and line.startswith("#"):
            continue
        elif line.startswith(_DOCUMENT):
            yield None
        else:
            # Not at every white space: a no-break space is part of a word.
            yield number, line.split("\t") if separator == "\t" else list(filter(None, line.split(" ")))


def _column(path: str, wished: str | None, known: tuple[str, ...], width: int, universal: bool) -> int:
    """The place of a column by its name in CoNLL-U or its number: from 1, or -1 for the last."""
    names = _UNIVERSAL if universal else ()
    candidates = (wished,) if wished is not None else known
    for name in (*(name for name in candidates if name in names), *candidates):
        if name in names:
            return names.index(name)
        if re.fullmatch(r"-?\d+", name) and int(name) in (*range(-width, 0), *range(1, width + 1)):
            return int(name) % width if int(name) < 0 else int(name) - 1
    there = ", ".join(names) if universal else f"1 to {width}"
    raise ValueError(f"{path} has no column {' or '.join(candidates)}; those there are {there}")


def _from_lines(
    path: str, text: str, task: Task, columns: Columns, labelled: bool
) -> Iterator[tuple[int, list[str], list[str]]]:
    table = read_table(path, text, (), (), columns)
    word = find_column(path, table.columns, columns.first, task.first, "the words")
    tag = find_column(path, table.columns, columns.label, task.label, "the tags") if labelled else None
    for row in table.rows:
        assert not isinstance(row, CutRow), "JSON lines have no columns to lack"
        where = f"{path}, line {row.line}"
        words = listed_words(row, word, where)
        tags = [] if tag is None else [read_label(value, f"{where}, a tag") for value in _list(row.values, tag, where)]
        if tag is not None and len(words) != len(tags):
            raise ValueError(f"{where} has {len(words)} words and {len(tags)} tags")
        yield row.line, words, tags


def listed_words(row: Row, column: str, where: str) -> list[str]:
    """The words in a row of JSON lines."""
    return [clean(value, f"{where}, a word") for value in _list(row.values, column, where)]


def _list(values: dict[str, Any], name: str, where: str) -> list[Any]:
    found = values.get(name)
    if not isinstance(found, list) or not found:
        raise ValueError(f"{where}: column {name!r} is {repr(found)[:40]}, expected a list that is not empty")
    return found
