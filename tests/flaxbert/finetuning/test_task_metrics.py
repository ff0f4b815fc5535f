"""Scores beside formulas written out by hand, on 200 predictions drawn by a seed for each task, degenerate ones too."""

import math
import re
import warnings
from collections import Counter

import numpy as np
import pytest

from flaxbert.finetuning.answer_scores import normalized
from flaxbert.finetuning.examples import Examples, TaggedExample, TextExample
from flaxbert.finetuning.metrics import rank, references, score
from flaxbert.finetuning.tasks import TASKS

COUNT = 200
LABELLED = [task.name for task in TASKS.values() if task.kind in ("classification", "multiple_choice")]
ROUNDING = 1e-12  # the same sums in another order


def labels(task, seed=0):
    """(predictions, references): two in three right, both with the task's labels."""
    draw = np.random.default_rng(seed)
    names = TASKS[task].labels or ("a", "b", "c", "d")
    truth = [names[index] for index in draw.integers(len(names), size=COUNT)]
    return [name if draw.random() < 0.67 else str(draw.choice(names)) for name in truth], truth


def confusion(found, truth, name):
    """(true positives, false positives, false negatives, true negatives) of one label."""
    pairs = Counter((guess == name, right == name) for guess, right in zip(found, truth))
    return pairs[True, True], pairs[True, False], pairs[False, True], pairs[False, False]


def f1_of(hits, false, missed):
    return 2 * hits / (2 * hits + false + missed) if hits else 0.0


def expected_of_labels(found, truth, metric):
    if metric == "accuracy":
        return sum(map(str.__eq__, found, truth)) / len(truth)
    if metric == "f1":
        return f1_of(*confusion(found, truth, "1")[:3])
    if metric == "macro_f1":
        return np.mean([f1_of(*confusion(found, truth, name)[:3]) for name in {*found, *truth}])
    assert metric == "matthews"
    hits, false, missed, rest = confusion(found, truth, "1")
    return (hits * rest - false * missed) / math.sqrt(
        (hits + false) * (hits + missed) * (rest + false) * (rest + missed)
    )


@pytest.mark.parametrize("name", LABELLED)
def test_scores_of_labels_are_those_of_their_formulas(name):
    found, truth = labels(name)
    scores = score(TASKS[name], found, truth)
    assert list(scores) == list(TASKS[name].metrics)
    for metric, value in scores.items():
        assert value == pytest.approx(expected_of_labels(found, truth, metric), abs=ROUNDING)


def correlation(x, y):
    x, y = np.asarray(x) - np.mean(x), np.asarray(y) - np.mean(y)
    return (x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum())


def ranks(values):
    """Equal values share the mean of their places."""
    return [np.mean([place for place, other in enumerate(sorted(values)) if other == value]) for value in values]


@pytest.mark.parametrize("name", ["stsb", "regression"])
def test_correlations_are_those_of_their_formulas_ties_included(name):
    draw = np.random.default_rng(0)
    truth = (draw.random(COUNT) * 5).round(1).tolist()
    found = (np.array(truth) + draw.normal(0, 1.5, COUNT)).round(1).tolist()
    assert len(set(truth)) < COUNT and len(set(found)) < COUNT
    scores = score(TASKS[name], found, truth)
    assert scores["pearson"] == pytest.approx(correlation(found, truth), abs=ROUNDING)
    assert scores["spearman"] == pytest.approx(correlation(ranks(found), ranks(truth)), abs=ROUNDING)


def entities(tags):
    """{(type, start, end)} by the rules of conlleval: B- begins an entity, and I- where none of its type goes on."""
    found, start, kind = set(), 0, None
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, this = tag.partition("-")
        if kind is not None and (prefix != "I" or this != kind):
            found.add((kind, start, place))
            kind = None
        if kind is None and prefix != "O":
            start, kind = place, this
    return found


def sentences(seed=0):
    draw = np.random.default_rng(seed)
    tags = ["O", "O", "B-A", "I-A", "B-B", "I-B"]
    truth = [[tags[index] for index in draw.integers(6, size=draw.integers(1, 12))] for _ in range(COUNT)]
    found = [[tag if draw.random() < 0.8 else str(draw.choice(tags)) for tag in sentence] for sentence in truth]
    return found, truth


def test_scores_of_entities_are_those_of_conlleval_with_broken_sequences():
    found, truth = sentences()
    guessed = {(number, *entity) for number, tags in enumerate(found) for entity in entities(tags)}
    right = {(number, *entity) for number, tags in enumerate(truth) for entity in entities(tags)}
    scores = score(TASKS["ner"], found, truth)
    hits = len(guessed & right)
    assert 0 < hits < len(right)
    assert scores["entity_precision"] == pytest.approx(hits / len(guessed), abs=ROUNDING)
    assert scores["entity_recall"] == pytest.approx(hits / len(right), abs=ROUNDING)
    assert scores["entity_f1"] == pytest.approx(2 * hits / (len(guessed) + len(right)), abs=ROUNDING)
    flat = [pair for pair in zip(sum(found, []), sum(truth, []))]
    assert scores["accuracy"] == pytest.approx(sum(a == b for a, b in flat) / len(flat), abs=ROUNDING)


@pytest.mark.parametrize("name", ["pos", "tagging"])
def test_scores_of_tags_are_over_words_and_not_over_sentences(name):
    found, truth = sentences(seed=1)
    scores = score(TASKS[name], found, truth)
    for metric in TASKS[name].metrics:
        expected = expected_of_labels(sum(found, []), sum(truth, []), metric)
        assert scores[metric] == pytest.approx(expected, abs=ROUNDING)


WORDS = "The the a An fox Fox! fox's d.o.g dog dog (1895) \u00fcber u.s. \u2014 - \u2014the\u2014".split() + ["  "]


def answers(seed, impossible):
    """(predictions, references): articles, punctuation and case; some answers are empty, some questions have none."""
    draw = np.random.default_rng(seed)

    def text(least):
        return " ".join(draw.choice(WORDS, size=draw.integers(least, 5)))

    truth = [
        () if impossible and draw.random() < 0.3 else tuple(text(1) for _ in range(draw.integers(1, 4)))
        for _ in range(COUNT)
    ]
    found = [text(0) if draw.random() < 0.5 or not right else str(draw.choice(right)) for right in truth]
    assert "" in found and any(not normalized(right) for texts in truth for right in texts)
    return found, truth


def words_of(text):
    """The official normalisation told otherwise: the words between white space, without ASCII punctuation and articles.

    An article parts words for the official script where it stands between characters that are no letters, digits or
    underscores: "\u2014the\u2014".
    """
    bare = re.sub(r"[!-/:-@\\[-`{-~]", "", text.lower())
    return [word for part in re.split(r"\b(?:the|an|a)\b", bare) for word in part.split()]


def plain_answer_scores(found, texts, second_version):
    """(exact match, F1) as the official rules have them."""
    expected = [words_of(text) for text in texts]
    if second_version:
        expected = [words for words in expected if words] or [[]]
    best = [0.0, 0.0]
    for words in expected:
        said, left, common = words_of(found), list(words), 0
        for word in said:
            if word in left:
                left.remove(word)
                common += 1
        if second_version and (not said or not words):
            f1 = float(said == words)
        else:
            f1 = 0.0 if not common else 2 / (len(said) / common + len(words) / common)
        best = [max(best[0], float(said == words)), max(best[1], f1)]
    return best


@pytest.mark.parametrize("name", ["squad", "squad2", "qa"])
def test_scores_of_answers_are_those_of_the_official_rules(name):
    task = TASKS[name]
    found, truth = answers(0, task.has_no_answer)
    plain = np.array([plain_answer_scores(text, right, task.has_no_answer) for text, right in zip(found, truth)])
    scores = score(task, found, truth)
    assert 0.2 < scores["exact_match"] < scores["f1"] < 0.9
    assert [scores["exact_match"], scores["f1"]] == pytest.approx(plain.mean(axis=0), abs=ROUNDING)
    if task.has_no_answer:
        can = np.array(list(map(bool, truth)))
        for part, which in (("has_answer", can), ("no_answer", ~can)):
            of_part = [scores[f"{part}_exact_match"], scores[f"{part}_f1"]]
            assert of_part == pytest.approx(plain[which].mean(axis=0), abs=ROUNDING)


@pytest.mark.parametrize("found, right, first, second", [
    ("the Fox!", ("fox",), (1, 1), (1, 1)),
    ("a quick fox", ("the quick brown fox",), (0, 0.8), (0, 0.8)),
    ("fox fox", ("fox",), (0, 2 / 3), (0, 2 / 3)),
    ("", ("fox",), (0, 0), (0, 0)),
    ("", (), (0, 0), (1, 1)),
    ("fox", (), (0, 0), (0, 0)),
    ("the", ("a",), (1, 0), (1, 1)),  # nothing is left of either: no word in common, yet equal
    ("fox", ("the", "fox"), (1, 1), (1, 1)),
    ("", ("the", "fox"), (1, 0), (0, 0)),  # SQuAD 2.0 leaves out the reference that is nothing
])  # fmt: skip
def test_answers_at_the_edges_score_as_the_official_evaluations_say(found, right, first, second):
    for name, (exact, f1) in (("squad", first), ("squad2", second)):
        scores = score(TASKS[name], [found], [right])
        assert (scores["exact_match"], scores["f1"]) == pytest.approx((exact, f1))


def test_what_is_not_defined_is_what_its_library_gives_without_a_warning():
    same, other = ["0"] * 5, ["0", "1", "0", "1", "0"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert score(TASKS["cola"], same, other)["matthews"] == 0
        assert score(TASKS["cola"], other, same)["matthews"] == 0
        for found, truth in ((same, same), (same, other), (other, same)):
            assert score(TASKS["mrpc"], found, truth)["f1"] == 0
        for found, truth in (([1.0] * 3, [1.0, 2.0, 3.0]), ([1.0, 2.0, 3.0], [1.0] * 3), ([1.0], [2.0])):
            scores = score(TASKS["stsb"], found, truth)
            assert math.isnan(scores["pearson"]) and math.isnan(scores["spearman"])
            assert rank(TASKS["stsb"], scores) == -math.inf
        nothing = score(TASKS["ner"], [["O", "O"]], [["O", "O"]])
        assert nothing == {"entity_f1": 0, "entity_precision": 0, "entity_recall": 0, "accuracy": 1}
    assert rank(TASKS["cola"], {"matthews": 0.5, "accuracy": 1.0}) == 0.5


def test_predictions_of_another_number_and_examples_without_labels_are_refused(refuses):
    refuses("1 predictions for 2 references", score, TASKS["sst2"], ["1"], ["1", "0"])
    refuses("0 predictions for 0 references", score, TASKS["sst2"], [], [])
    bare = Examples("dev.tsv", [TextExample("1", "a", None, "1"), TextExample("2", "a", None, None)])
    refuses("dev.tsv was read without labels", references, bare)
    refuses("dev.conll was read without labels", references, Examples("dev.conll", [TaggedExample("1", ("a",), None)]))
