"""Exact match and F1 of 200 recorded answers beside torchmetrics' port of the official evaluation."""

import math

import pytest
import recorded_predictions as recorded

from flaxbert.finetuning.answer_scores import normalized
from flaxbert.finetuning.metrics import example_scores, score
from flaxbert.finetuning.tasks import TASKS

text_metrics = pytest.importorskip("torchmetrics.functional.text", reason="install the extra `parity`")

pytestmark = pytest.mark.parity

PEER = "torchmetrics squad"
# Percent: torchmetrics sums in float32, up to 200 numbers of at most 1.
TOLERANCE = 1e-3


def by_torchmetrics(found, truth):
    """(exact match, F1), percent."""
    said = [{"prediction_text": text, "id": str(number)} for number, text in enumerate(found)]
    right = [
        {"answers": {"text": list(texts), "answer_start": [0] * len(texts)}, "id": str(number)}
        for number, texts in enumerate(truth)
    ]
    scores = text_metrics.squad(said, right)
    return float(scores["exact_match"]), float(scores["f1"])


@pytest.mark.parametrize("name", ["squad", "qa"])
def test_answers_of_squad_1_score_as_torchmetrics_says(name, assert_parity):
    """It gives F1 1 to nothing for nothing, as SQuAD 2.0 does; the script of 1.1 has no word in common there, and 0."""
    found, truth, _ = recorded.answers(name, impossible=False)
    nothing = [not normalized(text) and not all(map(normalized, texts)) for text, texts in zip(found, truth)]
    assert 0 < sum(nothing) < 40
    assert [part["f1"] for part, none in zip(example_scores(TASKS[name], found, truth), nothing) if none] == [
        0.0 for none in nothing if none
    ]
    exact, f1 = by_torchmetrics(found, truth)
    scores = score(TASKS[name], found, truth)
    ours = 100 * scores["f1"] + 100 * sum(nothing) / len(found)
    worst = max(abs(100 * scores["exact_match"] - exact), abs(ours - f1))
    assert_parity("scores of answers of SQuAD 1.1, percent", PEER, worst, TOLERANCE)


def test_answers_of_squad_2_score_as_torchmetrics_says_each_part_too(assert_parity):
    """It knows no question without an answer: the right answer is then an empty text, as in the official script, which
    leaves out answers of which nothing is left.
    """
    found, truth, nulls = recorded.answers("squad2", impossible=True)
    given = ["" if null > 0 else text for text, null in zip(found, nulls)]
    theirs = [tuple(filter(normalized, texts)) or ("",) for texts in truth]
    scores, worst = score(TASKS["squad2"], given, truth), 0.0
    for part, which in (("", (True, False)), ("has_answer_", (True,)), ("no_answer_", (False,))):
        kept = [number for number, texts in enumerate(truth) if bool(texts) in which]
        exact, f1 = by_torchmetrics([given[number] for number in kept], [theirs[number] for number in kept])
        ours = [100 * scores[f"{part}{name}"] for name in ("exact_match", "f1")]
        assert not any(map(math.isnan, ours))
        worst = max(worst, abs(ours[0] - exact), abs(ours[1] - f1))
    assert_parity("scores of answers of SQuAD 2.0 and its parts, percent", PEER, worst, TOLERANCE)
