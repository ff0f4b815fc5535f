"""SQuAD's JSON, 1.1 and 2.0, and questions as JSON lines: the examples of extractive question answering."""

from collections.abc import Iterator
from typing import Any

from flaxbert.finetuning.files import clean, parse_json
from flaxbert.finetuning.forms import Answer, Examples, Question, shown_ids
from flaxbert.finetuning.tables import Columns, CutRow, Row, find_column, read_table
from flaxbert.finetuning.tasks import Task

_MOST_MISPLACED = 0.05


def question_examples(path: str, text: str, task: Task, columns: Columns, labelled: bool) -> Examples:
    """The questions in the text of a file, checked.

    Raises ValueError where an answer is not at its offset in more than 5 % of the questions.
    """
    if path.endswith(".jsonl"):
        return check_questions(path, list(_from_lines(path, text, task, columns, labelled)), task)
    return check_questions(path, list(_squad(path, text, labelled)), task)


def check_questions(path: str, items: list[Question], task: Task) -> Examples:
    """Questions as examples, those answers counted that are not at their offset."""
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise ValueError(f"{path} has the id {item.id!r} twice")
        seen.add(item.id)
        if item.answers == () and not task.has_no_answer:
            raise ValueError(
                f"{path}: question {item.id!r} has no answer, and task {task.name} asks for one; squad2 does not"
            )
    misplaced = tuple(item.id for item in items if any(answer.start < 0 for answer in item.answers or ()))
    if len(misplaced) > _MOST_MISPLACED * len(items):
        raise ValueError(
            f"{path}: in {len(misplaced)} of {len(items)} questions an answer is not at its offset, more than "
            f"{_MOST_MISPLACED:.0%}; offsets count characters of the context, from 0; ids: {shown_ids(misplaced)}"
        )
    return Examples(path, items, misplaced=misplaced)


def _squad(path: str, text: str, labelled: bool) -> Iterator[Question]:
    content = parse_json(text, path)
    for number, article in enumerate(_list(content, "data", path)):
        where = f"{path}: data[{number}]"
        for place, paragraph in enumerate(_list(article, "paragraphs", where)):
            inside = f"{where}.paragraphs[{place}]"
            for order, raw in enumerate(_list(paragraph, "qas", inside)):
                name = f"{inside}.qas[{order}]"
                context = clean(_field(paragraph, "context", inside), f"{inside}.context")
                question = clean(_field(raw, "question", name), f"{name}.question")
                answers = _squad_answers(raw, context, name) if labelled else None
                yield Question(str(_field(raw, "id", name)), question, context, answers)


def _squad_answers(raw: dict[str, Any], context: str, where: str) -> tuple[Answer, ...]:
    """`plausible_answers` of SQuAD 2.0 are those that are wrong: passed over."""
    if raw.get("is_impossible"):
        return ()
    found = _list(raw, "answers", where)
    return tuple(
        place_answer(_field(answer, "text", where), _field(answer, "answer_start", where), context, where)
        for answer in found
    )


def place_answer(text: Any, start: Any, context: str, where: str) -> Answer:
    """An answer as the context has it, or as it is given, its start -1, where it does not stand there; white space of
    another kind or width counts as the same, as in run_squad.py.
    """
    if not isinstance(text, str) or not isinstance(start, int) or isinstance(start, bool):
        raise ValueError(f"{where}: an answer is {text!r} at {start!r}, expected text and the number of a character")
    words, end = text.split(), start
    for word in words:
        end = context.find(word, end) + len(word)
    there = start >= 0 and context[start:end].split() == words != []
    return Answer(context[start:end], start) if there else Answer(text, -1)


def _from_lines(path: str, text: str, task: Task, columns: Columns, labelled: bool) -> Iterator[Question]:
    """Objects with question, context and answers {"text": [...], "answer_start": [...]}, as Hugging Face has them."""
    table = read_table(path, text, (), (), columns)
    question = find_column(path, table.columns, columns.first, task.first, "the question")
    context = find_column(path, table.columns, columns.second, task.second, "the context")
    label = find_column(path, table.columns, columns.label, task.label, "the answers") if labelled else None
    for row in table.rows:
        assert not isinstance(row, CutRow), "JSON lines have no columns to lack"
        yield question_of(path, row, question, context, label)


def question_of(path: str, row: Row, question: str, context: str, label: str | None) -> Question:
    """The question in a row of JSON lines, with its own id where it has one."""
    where = f"{path}, line {row.line}"
    passage = clean(_field(row.values, context, where), f"{where}, column {context!r}")
    asked = clean(_field(row.values, question, where), f"{where}, column {question!r}")
    answers = None if label is None else listed_answers(_field(row.values, label, where), passage, where)
    return Question(str(row.values.get("id", row.line)), asked, passage, answers)


def listed_answers(raw: Any, context: str, where: str) -> tuple[Answer, ...]:
    """The answers of {"text": [...], "answer_start": [...]}."""
    texts, starts = _list(raw, "text", where), _list(raw, "answer_start", where)
    if len(texts) != len(starts):
        raise ValueError(f"{where} has {len(texts)} texts of answers and {len(starts)} offsets")
    return tuple(place_answer(text, start, context, where) for text, start in zip(texts, starts))


def _field(value: Any, name: str, where: str) -> Any:
    if not isinstance(value, dict) or name not in value:
        there = ", ".join(value) if isinstance(value, dict) else repr(value)[:40]
        raise ValueError(f"{where} has no {name!r}; there is {there}")
    return value[name]


def _list(value: Any, name: str, where: str) -> list[Any]:
    found = _field(value, name, where)
    if not isinstance(found, list):
        raise ValueError(f"{where}.{name} is {repr(found)[:40]}, expected a list")
    return found
