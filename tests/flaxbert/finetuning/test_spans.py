"""The best answer over the windows of a context, beside a plain form of the reference's search."""

import dataclasses
import math

import numpy as np
import pytest

from flaxbert.finetuning.answer_scores import score_answer
from flaxbert.finetuning.features import Window
from flaxbert.finetuning.spans import Answered, answer, best_threshold
from flaxbert.finetuning.tasks import TASKS
from flaxbert.finetuning.windows import max_context, window_spans

SQUAD, SQUAD_2 = TASKS["squad"], TASKS["squad2"]
SHORT = dataclasses.replace(SQUAD, max_answer_length=7)
HEAD = 4  # tokens before the context


def case(seed, tokens=None, ties=False):
    """(context, windows with logits) of a context of words, most of them distinct."""
    draw = np.random.default_rng(seed)
    words = [f"w{draw.integers(40)}" for _ in range(tokens or draw.integers(1, 90))]
    context, ends = " ".join(words), np.cumsum([len(word) + 1 for word in words]) - 1
    offsets = np.stack([ends - [len(word) for word in words], ends], axis=1).astype(np.int32)
    spans = window_spans(len(words), 30, 12)
    best = max_context(len(words), spans)
    windows = []
    for number, (start, end) in enumerate(spans):
        window = Window(HEAD, offsets[start:end], best[start:end] == number)
        logits = draw.normal(0, 3, (HEAD + end - start + 1, 2))
        windows.append((window, (logits.round() if ties else logits).astype(np.float32)))
    return context, windows


def plain_search(context, windows, task):
    """run_squad.py's loops: (text, score) of the n-best, best first, and the score of no answer."""
    spans = []
    null = math.inf
    for window, logits in windows:
        null = min(null, float(logits[0, 0]) + float(logits[0, 1]))
        starts, ends = (
            sorted(range(len(logits)), key=lambda n: logits[n, side], reverse=True)[:task.n_best] for side in (0, 1)
        )
        for start in starts:
            for end in ends:
                a, b = start - window.start, end - window.start
                if not (0 <= a <= b < len(window.offsets)) or not window.max_context[a]:
                    continue
                if b - a + 1 > task.max_answer_length:
                    continue
                text = context[window.offsets[a, 0]:window.offsets[b, 1]]
                spans.append((text, float(logits[start, 0]) + float(logits[end, 1])))
    if task.has_no_answer:
        spans.append(("", null))
    found = {}
    for text, score in sorted(spans, key=lambda span: span[1], reverse=True):
        if len(found) < task.n_best:
            found.setdefault(text, score)
    if task.has_no_answer:
        found.setdefault("", null)
    return list(found.items()), null


@pytest.mark.parametrize("task", [SQUAD, SQUAD_2, SHORT], ids=["squad", "squad2", "short"])
@pytest.mark.parametrize("ties", [False, True])
def test_answers_are_those_of_plain_loops_over_starts_and_ends(task, ties):
    for seed in range(60):
        context, windows = case(seed, ties=ties)
        expected, null = plain_search(context, windows, task)
        found = answer(context, windows, task)
        assert [(candidate.text, candidate.score) for candidate in found.n_best] == expected
        best, score = next(((text, score) for text, score in expected if text), ("", None))
        assert found.text == best
        if task.has_no_answer and best:
            assert found.no_answer == null - score
        total = sum(math.exp(score) for _, score in expected)
        for candidate in found.n_best:
            assert candidate.probability == pytest.approx(math.exp(candidate.score) / total)
            assert context[candidate.start:].startswith(candidate.text) or candidate.start == -1


def test_a_span_counts_where_its_start_has_most_context_and_nowhere_else():
    context, windows = case(3, tokens=40)
    (first, _), (second, _), *_ = windows
    shared = 22  # a token that the second window shows with more around it
    assert not first.max_context[shared] and second.max_context[shared - 12]
    logits = [np.zeros_like(scores) for _, scores in windows]
    logits[0][HEAD + shared, 0] = 100
    logits[1][HEAD + shared - 11] = 10
    found = answer(context, [(window, scores) for (window, _), scores in zip(windows, logits)], SQUAD)
    assert found.text == context.split()[shared + 1] and found.n_best[0].score == 20


def test_where_no_span_is_valid_there_is_no_answer():
    context, [(window, logits)] = case(5, tokens=3)
    beside = np.full((100, 2), -1.0)
    beside[40:] = 1  # the n-best are all beyond the context
    for task in (SQUAD, SQUAD_2):
        found = answer(context, [(window, beside)], task)
        assert found.text == "" and found.above(0) == ""


def test_no_answer_is_the_smallest_score_over_windows_and_given_above_the_threshold():
    context, windows = case(7, tokens=40)
    for number, (_, logits) in enumerate(windows):
        logits[0] = 50 - number
    found = answer(context, windows, SQUAD_2)
    best = next(candidate for candidate in found.n_best if candidate.text)
    assert found.no_answer == pytest.approx(2 * (50 - (len(windows) - 1)) - best.score)
    assert found.above(0) == "" and found.above(found.no_answer) == found.text != ""
    assert answer(context, windows, SQUAD).above(0) != ""


@pytest.mark.parametrize("shift", [-5.0, 0.0, 5.0])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("metric", [0, 1])
def test_no_threshold_scores_more_than_the_best_one(metric, ties, shift):
    """Scores of no answer are log-odds, of either sign: to answer none may be best where all of them are negative."""
    none = 0
    for seed in range(40):
        draw = np.random.default_rng(seed)
        answers, references = [], []
        for number in range(30):
            text = ["fox", "the dog", "a fox dog", ""][draw.integers(4)]
            answers.append(Answered(text, round(float(draw.normal()), 1 if ties else 9) + shift, ()))
            # Every other time most have no answer.
            references.append([(), ("fox",), ("dog", "fox dog"), ()][draw.integers(3 + seed % 2)])

        def total(threshold):
            given = [found.above(threshold) for found in answers]
            return sum(score_answer(text, right, True)[metric] for text, right in zip(given, references))

        scores = [score_answer(found.text, right, True)[metric] for found, right in zip(answers, references)]
        threshold = best_threshold(answers, scores, [bool(right) for right in references])
        everything = [-100.0, *(found.no_answer for found in answers)]
        assert math.isfinite(threshold) and total(threshold) == pytest.approx(max(map(total, everything)))
        assert min(abs(found.no_answer - threshold) for found in answers) > 1e-9, "rounding moves no answer over it"
        none += threshold < min(found.no_answer for found in answers)
    assert 0 < none < 40
