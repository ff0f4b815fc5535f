"""Metrics of 200 recorded predictions for each task beside those of the libraries that the field reports by, called
here directly, and beside a plain port of what the official evaluation of SQuAD 2.0 does.
"""

import math
import re
import string
from collections import Counter

import numpy as np
import pytest
import recorded_predictions as recorded
from scipy.stats import pearsonr, spearmanr
from seqeval.metrics import f1_score as entity_f1
from seqeval.metrics import precision_score as entity_precision
from seqeval.metrics import recall_score as entity_recall
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from flaxbert.finetuning.metrics import example_scores, score
from flaxbert.finetuning.spans import Answered, best_threshold
from flaxbert.finetuning.tasks import TASKS

ROUNDING = 1e-12  # the same sums in another order


def f1_of_the_second(truth, found):
    """Of 1 against 0, as GLUE has it for MRPC and QQP."""
    return f1_score(list(map(int, truth)), list(map(int, found)))


def macro_f1(truth, found):
    return f1_score(truth, found, average="macro")


# Task → its metrics, that which chooses among runs first, and the classes of the published data.
GLUE_AND_OTHERS = {
    "cola": ({"matthews": matthews_corrcoef, "accuracy": accuracy_score}, "01"),
    "sst2": ({"accuracy": accuracy_score}, "01"),
    "mrpc": ({"f1": f1_of_the_second, "accuracy": accuracy_score}, "01"),
    "qqp": ({"f1": f1_of_the_second, "accuracy": accuracy_score}, "01"),
    "mnli": ({"accuracy": accuracy_score}, ("contradiction", "entailment", "neutral")),
    "qnli": ({"accuracy": accuracy_score}, ("entailment", "not_entailment")),
    "rte": ({"accuracy": accuracy_score}, ("entailment", "not_entailment")),
    "wnli": ({"accuracy": accuracy_score}, "01"),
    "swag": ({"accuracy": accuracy_score}, "0123"),
    "multiple_choice": ({"accuracy": accuracy_score}, "012"),
    "classification": ({"accuracy": accuracy_score, "macro_f1": macro_f1}, ("x", "y", "z")),
    "pair": ({"accuracy": accuracy_score, "macro_f1": macro_f1}, ("x", "y")),
}


def test_the_predictions_are_those_that_were_recorded():
    assert recorded.digest() == recorded.DIGEST


def test_every_task_is_held_against_something():
    others = {"stsb", "regression", "ner", "pos", "tagging", "squad", "squad2", "qa"}
    assert GLUE_AND_OTHERS.keys() | others == TASKS.keys()


@pytest.mark.parametrize("nothing", [False, True], ids=["", "one label for all"])
@pytest.mark.parametrize("name", GLUE_AND_OTHERS)
def test_scores_of_labels_are_those_of_scikit_learn(name, nothing):
    metrics, names = GLUE_AND_OTHERS[name]
    found, truth = recorded.labels(names, name)
    found = [names[0]] * len(truth) if nothing else found
    scores = score(TASKS[name], found, truth)
    assert list(scores) == list(metrics)
    for metric, library in metrics.items():
        assert scores[metric] == pytest.approx(library(truth, found), abs=ROUNDING)
    assert nothing or all(0.3 < value < 0.9 for value in scores.values())


@pytest.mark.parametrize("name", ["stsb", "regression"])
def test_correlations_are_those_of_scipy_with_ties(name):
    found, truth = recorded.numbers(name)
    assert len(set(found)) < 100 and len(set(truth)) < 60
    scores = score(TASKS[name], found, truth)
    expected = {"spearman": spearmanr(truth, found)[0], "pearson": pearsonr(truth, found)[0]}
    assert scores == pytest.approx(expected, abs=ROUNDING) and list(scores)[0] == "spearman"
    assert 0.5 < scores["spearman"] < 0.95


def test_scores_of_entities_are_those_of_seqeval():
    found, truth = recorded.sentences("ner")
    assert any(set(tags) == {"O"} for tags in found) and any(set(tags) == {"O"} for tags in truth)
    assert any(tag.startswith("I") and before == "O" for tags in found for before, tag in zip(tags, tags[1:]))
    expected = {
        "entity_f1": entity_f1(truth, found), "entity_precision": entity_precision(truth, found),
        "entity_recall": entity_recall(truth, found), "accuracy": accuracy_score(sum(truth, []), sum(found, [])),
    }  # fmt: skip
    assert score(TASKS["ner"], found, truth) == pytest.approx(expected, abs=ROUNDING)
    assert len(set(expected.values())) == 4


@pytest.mark.parametrize("name", ["pos", "tagging"])
def test_scores_of_tags_are_those_of_scikit_learn_over_words(name):
    found, truth = recorded.sentences(name)
    words = sum(truth, []), sum(found, [])
    expected = {"accuracy": accuracy_score(*words), "macro_f1": macro_f1(*words)}
    assert score(TASKS[name], found, truth) == pytest.approx(expected, abs=ROUNDING)


def official_words(text):
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def official_f1(found, right, second_version):
    said, expected = official_words(found), official_words(right)
    if second_version and not (said and expected):
        return float(said == expected)
    common = sum((Counter(said) & Counter(expected)).values())
    if not common:
        return 0.0
    precision, recall = common / len(said), common / len(expected)
    return 2 * precision * recall / (precision + recall)


def official_scores(found, texts, second_version):
    """(exact match, F1) of one question."""
    if second_version:
        texts = [text for text in texts if official_words(text)] or [""]
    exact = max(float(official_words(found) == official_words(text)) for text in texts)
    return exact, max(official_f1(found, text, second_version) for text in texts)


@pytest.mark.parametrize("name", ["squad", "qa"])
def test_scores_of_answers_are_those_of_the_official_rules_of_squad_1(name):
    found, truth, _ = recorded.answers(name, impossible=False)
    assert "" in found and any(not official_words(text) for texts in truth for text in texts)
    each = [official_scores(*pair, second_version=False) for pair in zip(found, truth)]
    assert [(part["exact_match"], part["f1"]) for part in example_scores(TASKS[name], found, truth)] == [
        pytest.approx(pair, abs=ROUNDING) for pair in each
    ]
    exact, f1 = np.mean(each, axis=0)
    assert score(TASKS[name], found, truth) == pytest.approx({"f1": f1, "exact_match": exact}, abs=ROUNDING)
    assert exact != f1 and 0.2 < f1 < 0.9


SQUAD_2 = TASKS["squad2"]


@pytest.fixture(scope="module")
def second():
    """(predictions, references, scores of no answer) of SQuAD 2.0."""
    found, truth, nulls = recorded.answers("squad2", impossible=True)
    kinds = {(not text, not texts, null > 0) for text, texts, null in zip(found, truth, nulls)}
    assert len(kinds) == 8, "each with and without: a text, an answer, a score for none"
    assert len(set(nulls)) < 100
    return found, truth, nulls


def at_threshold(raw, truth, nulls, threshold):
    """`apply_no_ans_threshold`: the scores where what is above it counts as no answer."""
    return [
        float(not right) if null > threshold else value for value, right, null in zip(raw, truth, nulls, strict=True)
    ]


def evaluation(exact, f1, truth):
    """`make_eval_dict`, over all, HasAns and NoAns."""
    parts = {"": [True] * len(truth), "has_answer_": list(map(bool, truth)), "no_answer_": [not x for x in truth]}
    return {
        part + name: sum(value for value, counts in zip(values, which) if counts) / sum(which)
        for part, which in parts.items() for name, values in (("exact_match", exact), ("f1", f1))
    }  # fmt: skip


def official_best(found, raw, truth, nulls):
    """`find_best_thresh`: (the best sum of scores, the threshold that is said to give it)."""
    current = best = sum(not right for right in truth)
    threshold = 0.0
    for index in sorted(range(len(nulls)), key=nulls.__getitem__):
        current += raw[index] if truth[index] else -1 if found[index] else 0
        if current > best:
            best, threshold = current, nulls[index]
    return best, threshold


@pytest.mark.parametrize("threshold", [-100.0, -1.0, -0.3, 0.0, 0.5, 100.0])
def test_scores_of_squad_2_are_those_of_the_official_script_at_any_threshold(second, threshold):
    """Told the predictions as they are after the threshold, or the raw ones and the scores beside them: those ways
    differ for a question all of whose answers are left with no word, which an empty prediction answers or not.
    """
    found, truth, nulls = second
    given = [Answered(text, null, ()).above(threshold) for text, null in zip(found, nulls)]
    scores, raw = (
        [official_scores(*pair, second_version=True) for pair in zip(texts, truth)] for texts in (given, found)
    )
    expected = evaluation(*zip(*scores), truth)
    assert score(SQUAD_2, given, truth) == pytest.approx(expected, abs=ROUNDING)
    wordless = [bool(texts) and not any(map(official_words, texts)) for texts in truth]
    assert 0 < sum(wordless) < 10
    for metric in (0, 1):
        beside = at_threshold([each[metric] for each in raw], truth, nulls, threshold)
        for each, other, edge in zip(scores, beside, wordless, strict=True):
            assert edge or each[metric] == other


@pytest.mark.parametrize("shift", [0.0, 10.0], ids=["log-odds", "positive"])
@pytest.mark.parametrize("metric", [0, 1], ids=["exact", "f1"])
def test_the_best_threshold_of_squad_2_scores_what_the_official_sweep_finds(second, metric, shift):
    """Where no two scores of no answer are equal. Where some are, the sweep counts with thresholds between equals, of
    which there are none: then it is the best that any threshold gives.
    """
    found, truth, tied = second
    # The sweep takes any text for wrong where there is no answer, one without words too.
    raw = [
        official_scores(text, texts, second_version=True)[metric] if texts else float(not text)
        for text, texts in zip(found, truth)
    ]
    parted = [null + 1e-6 * index + shift for index, null in enumerate(tied)]
    for nulls in (parted, [null + shift for null in tied]):
        asked = [Answered(text, null, ()) for text, null in zip(found, nulls)]
        threshold = best_threshold(asked, raw, list(map(bool, truth)))
        ours = at_threshold(raw, truth, nulls, threshold)
        best, theirs = official_best(found, raw, truth, nulls)
        attained = max(sum(at_threshold(raw, truth, nulls, each)) for each in (-math.inf, *nulls))
        assert sum(ours) == pytest.approx(attained, abs=1e-9)
        if nulls is parted:
            assert attained == pytest.approx(best, abs=1e-9)
            assert ours == at_threshold(raw, truth, nulls, theirs)
        else:
            assert attained <= best + 1e-9
