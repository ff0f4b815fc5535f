"""Lines of standard input: checked as those of files are, read as they come."""

import io
import json
import os

import pytest

from flaxbert.finetuning.examples import Columns, read_examples
from flaxbert.finetuning.standard_input import parts
from flaxbert.finetuning.tasks import TASKS


def read(task, content, labels=("0", "1"), columns=Columns()):
    """The items of all parts."""
    raw = content if isinstance(content, bytes) else content.encode()
    return [item for part in parts(io.BytesIO(raw), TASKS[task], labels, columns) for item in part.items]


BAD = [
    ("sst2", "", "standard input is empty"), ("sst2", " \n\n", "standard input is empty"),
    ("sst2", "a fox\na\tdog\n", "standard input, line 2 has 2 texts with tabs between them, and the task has 1"),
    ("sst2", "a fox\nb\xe9d\n".encode("latin-1"), "standard input, line 2 is not UTF-8 at byte 1 of the line"),
    ("sst2", "\n{\n", "standard input, line 2 is not JSON"),
    ("sst2", '{"stars": 5}\n', "standard input, line 1 has no column for the text: expected 'sentence' or 'first'; "
     "those there are stars"),
    ("sst2", '{"first": 5}', "standard input, line 1, column 'first' is 5, expected text"),
    ("sst2", '{"first": "a"}\n{"first": ""}', "standard input, line 2, column 'first' is empty"),
    ("sst2", '{"first": "a"}\n{"text": "b"}', "standard input, line 2 has no column 'first'; those there are text"),
    ("sst2", r'{"first": "\ud800"}', "standard input, line 1, column 'first' is not valid Unicode"),
    ("mrpc", "a fox\n", "line 1 has 1 texts with tabs between them, and the task has 2"),
    ("mrpc", "a fox\t \n", "standard input, line 1, the second text is empty"),
    ("mrpc", '{"first": "a"}\n', "line 1 has no column for the second text: expected '#2 String' or 'sentence2' or "
     "'second'; those there are first"),
    ("qa", '{"question": "a", "context": ["a"]}', r"line 1, column 'context' is \['a'\], expected text"),
    ("qa", '{"question": "a"}', "line 1 has no column for the context: expected 'context'; those there are question"),
    ("qa", "who\t", "standard input, line 1, the context is empty"),
    ("ner", '{"words": ["a", 3]}', "standard input, line 1, a word is 3, expected text"),
    ("ner", '{"words": {"a": 1}}', "line 1: column 'words' is {'a': 1}, expected a list that is not empty"),
    ("ner", '{"words": []}', r"line 1: column 'words' is \[\], expected a list that is not empty"),
    ("ner", "EU says\na\tb c\n", "line 2 has 2 texts with tabs between them, and the task has 1"),
    ("swag", "the film\n", "standard input, line 1 has 0 choices, expected 2 as in the training file"),
    ("swag", "the film\tends\n", "line 1 has 1 choices, expected 2"),
    ("swag", "the film\tends\tends\nit\tis\tnot\tso\n", "line 2 has 3 choices, expected 2"),
    ("swag", "the film\tends\t\n", "standard input, line 1, choice 1 is empty"),
    ("swag", '{"first": "a", "choices": []}', "line 1 has 0 choices, expected 2"),
    ("swag", '{"first": "a", "choices": "b"}', "line 1, column 'choices' is 'b', expected a list of choices"),
    ("swag", '{"first": "a", "choices": ["b", "c"]}\n{"first": "a", "choices": ["b"]}', "line 2 has 1 choices"),
]  # fmt: skip


@pytest.mark.parametrize("task, content, message", BAD)
def test_a_line_that_cannot_be_read_is_refused_in_one_sentence(task, content, message, refuses):
    refuses(message, read, task, content)


ROWS = {
    "sst2": {"idx": 3, "sentence": "a fox"}, "mrpc": {"sentence1": "a fox", "sentence2": "a dog"},
    "stsb": {"sentence1": "a fox", "sentence2": "a dog"}, "ner": {"id": "x", "tokens": ["a\u00a0b", "c d"]},
    "squad": {"id": "x7", "question": "who", "context": "a fox"},
    "squad2": {"question": "who", "context": "a fox", "title": "t"},
    "swag": {"startphrase": "he", "ending0": "runs", "ending1": "is", "label": 0},
    "multiple_choice": {"question": "who", "endings": ["a", "b"]},
    "pair": {"premise": "a fox", "hypothesis": "a dog", "text": "z"},
}  # fmt: skip


@pytest.mark.parametrize("task", ROWS)
def test_objects_are_read_as_a_file_of_them_is(task, write):
    row = ROWS[task]
    content = json.dumps(row) + "\n" + json.dumps({**row, "id": "other"}) + "\n"
    in_file = read_examples(write("a.jsonl", content), TASKS[task], ("0", "1"), labelled=False)
    assert read(task, content) == in_file.items


MORE = [
    ("sst2", '{"first": "a fox"}\n', Columns(), "has no column for the text: expected 'sentence'"),
    ("sst2", '{"sentence": "a fox"}\n', Columns("review"), "has no column for the text: expected 'review'"),
    ("pair", '{"first": "a", "second": "b"}\n', Columns("2", "3", "1"), "no column for the text: expected '2'"),
    ("swag", '{"first": "a", "choices": ["b", "c"]}\n', Columns(), "no column for the text: expected 'startphrase'"),
    ("sst2", '{"sentence": "a fox"}\n\n{"sentence": "a dog"}\n', Columns(), "line 2 is empty"),
    ("qa", '{"id": 1, "question": "who", "context": "a fox"}\n' * 2, Columns(), "has the id '1' twice"),
]  # fmt: skip


@pytest.mark.parametrize("task, content, columns, message", MORE)
def test_what_a_file_may_not_have_is_read_as_it_comes(task, content, columns, message, write, refuses):
    assert read(task, content, columns=columns)
    refuses(message, read_examples, write("a.jsonl", content), TASKS[task], None, columns, labelled=False)


def test_a_text_that_looks_like_an_object_ends_the_answers(refuses):
    found = parts(io.BytesIO(b"a fox\n{sic} a hill\na dog\n"), TASKS["sst2"], ("0", "1"), Columns())
    assert [item.first for item in next(found).items] == ["a fox"]
    refuses("standard input, line 2 is not JSON", next, found)


NAMED = [
    ("classification", {"review": "a fox", "text": "z"}, Columns("review", label="stars")),
    ("classification", {"review": "a fox", "reply": "a dog"}, Columns("review", "reply", "stars")),
    ("ner", {"form": ["z"], "w": ["a", "b"]}, Columns("w")),
    ("qa", {"question": "z", "q": "who", "passage": "a fox", "id": 7}, Columns("q", "passage")),
    ("multiple_choice", {"stem": "he", "ways": ["runs", "is"], "choice1": "z"}, Columns("stem", "ways")),
]  # fmt: skip


@pytest.mark.parametrize("task, row, columns", NAMED)
def test_the_columns_named_at_fine_tuning_are_fields(task, row, columns, write):
    content = json.dumps(row)
    in_file = read_examples(write("a.jsonl", content), TASKS[task], ("0", "1"), columns, labelled=False)
    assert read(task, content, columns=columns) == in_file.items
    assert "z" not in repr(in_file.items)


def test_fields_have_plain_names_where_the_columns_were_told_by_number():
    columns = Columns("2", "3", "1")
    assert read("classification", '{"first": "a", "second": "b"}', columns=columns)[0][1:3] == ("a", "b")
    assert read("classification", "a\tb\n", columns=columns)[0][1:3] == ("a", "b")


def test_lines_are_numbered_and_may_be_texts_objects_or_blank():
    found = read("sst2", "\ufeffa fox\r\n\n{\"sentence\": \"a dog\"}\nthe last\u2028one")
    assert [(item.id, item.first) for item in found] == [("1", "a fox"), ("3", "a dog"), ("4", "the last\u2028one")]
    words = read("ner", "10\u00a0000  foxes\n")[0]
    assert words.words == ("10\u00a0000", "foxes")
    question = read("qa", "who\ta fox\n")[0]
    assert question == ("1", "who", "a fox", None)
    assert read("swag", "he\truns\tis\n")[0][1:3] == ("he", ("runs", "is"))


def test_what_stands_before_a_bad_line_is_given_first():
    found = parts(io.BytesIO(b"a fox\na dog\n\xff\n"), TASKS["sst2"], ("0", "1"), Columns())
    assert [item.first for item in next(found).items] == ["a fox", "a dog"]
    with pytest.raises(ValueError, match="line 3 is not UTF-8"):
        next(found)


def test_a_line_is_given_as_soon_as_it_has_come_and_many_at_once_where_there_are_many():
    there, here = os.pipe()
    with open(there, "rb") as stream:
        found = parts(stream, TASKS["sst2"], ("0", "1"), Columns())
        for word in ("one", "two"):
            os.write(here, f"{word}\n".encode())
            assert [item.first for item in next(found).items] == [word]  # would wait for ever for more
        os.write(here, b"x\n" * 3000 + b"half")
        sizes = [len(next(found).items) for _ in range(3)]
        assert sizes == [1024, 1024, 952]
        os.write(here, b" a line\n")
        assert next(found).items[0][:2] == ("3003", "half a line")
        os.write(here, b"the end")
        os.close(here)
        assert [item.first for part in found for item in part.items] == ["the end"]
