"""The floors that fine-tuning is held against, on examples whose answer is plain."""

import pytest

from benchmarks.downstream import (
    ROWS, best_sentence, known_words, majority, naive_bayes, parse, table, wished_rows, word_overlap,
)  # fmt: skip
from flaxbert.finetuning.forms import Examples, Question, TaggedExample, TextExample


def texts(*rows):
    return Examples("rows", [TextExample(str(number), *row) for number, row in enumerate(rows)], ("0", "1"))


def test_the_majority_is_that_of_training():
    train, dev = texts(("a", None, "1"), ("b", None, "1"), ("c", None, "0")), texts(("d", None, "0"))
    assert majority(train, dev) == ["1"]


def test_naive_bayes_goes_by_words():
    train = texts(("good film", None, "1"), ("good play", None, "1"), ("bad film", None, "0"), ("bad play", None, "0"))
    assert naive_bayes(train, texts(("a bad book", None, "1"), ("a good book", None, "0"))) == ["0", "1"]


def test_word_overlap_learns_where_to_cut():
    train = texts(("who fell", "he fell", "1"), ("who fell", "it rained", "0"), ("why so", "why so late", "1"))
    assert word_overlap(train, texts(("who ran", "she ran", "0"), ("who ran", "he sat", "1"))) == ["1", "0"]


def test_words_have_the_tag_that_they_mostly_have():
    train = Examples("rows", [TaggedExample("0", ("Rome", "is", "Rome", "Rome"), ("B-X", "O", "B-X", "O"))])
    dev = Examples("rows", [TaggedExample("0", ("In", "Rome", "is"), ("O", "O", "O"))])
    assert known_words(train, dev) == [["O", "B-X", "O"]]


def test_the_sentence_that_shares_most_words_answers():
    item = Question("0", "Where did the river rise?", "It was cold. The river did rise here! Nobody knew.", None)
    assert best_sentence(Examples("rows", []), Examples("rows", [item])) == ["The river did rise here!"]


def tables(fresh, pretrained, deviation=0.01):
    kinds = {"fresh": fresh, "pretrained": pretrained}
    found = {kind: {"metrics": {"accuracy": {"mean": mean, "deviation": deviation}}} for kind, mean in kinds.items()}
    return table({"t": {"metric": "accuracy", "floors": {"majority": {"accuracy": 0.5}}, **found}}).splitlines()[-1]


def test_the_table_tells_the_gain():
    assert tables(0.6, 0.8) == "| t | accuracy | majority 50.0 | 60.0 ± 1.0 | 80.0 ± 1.0 | +20.0 |"
    assert tables(0.6, 0.8, None) == "| t | accuracy | majority 50.0 | 60.0 | 80.0 | +20.0 |"
    assert tables(None, 0.8) == "| t | accuracy | majority 50.0 | diverged | 80.0 ± 1.0 |  |"


def test_flags_take_the_place_of_the_settings_of_every_chosen_row():
    base = ["--init", "m", "--data", "d", "--workdir", "w"]
    assert wished_rows(parse(base)) == ROWS
    rows = wished_rows(parse([*base, "--tasks", "qa", "sst2", "--epochs", "5", "--compute-dtype", "bfloat16"]))
    assert list(rows) == ["qa", "sst2"]
    for name, row in rows.items():
        assert row.settings == ROWS[name].settings | {"epochs": "5", "compute-dtype": "bfloat16"}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_one_place_of_the_grid(name):
    """So that its means are those of its settings, not of the best of several, unless those are asked for."""
    assert not any("," in value for value in ROWS[name].settings.values())
