"""Start and end scores over the windows of a context → answers (run_squad.py, `write_predictions`).

Two things differ from it. Padding never takes the place of a start or an end among the n-best, so that an answer does
not depend on how far its batch was padded. And an answer is the text between its characters, where run_squad.py looks
for its tokens in the text (`get_final_text`) and may give more.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flaxbert.finetuning.features import Window
from flaxbert.finetuning.tasks import Task

# What run_squad.py begins the smallest score of no answer with: larger than any.
_NEVER = 1_000_000.0


class Candidate(NamedTuple):
    """One answer of the n-best; no answer has no text."""

    text: str
    score: float
    """The logits of start and end together."""
    probability: float
    """Among the n-best."""
    start: int
    """Its first character in the context."""


class Answered(NamedTuple):
    """What a model says to a question."""

    text: str
    """The best answer that has a text; empty where there is none."""
    no_answer: float
    """How much the score of no answer exceeds that of `text`; 0 where the task asks for an answer."""
    n_best: tuple[Candidate, ...]
    """Best first."""

    def above(self, threshold: float) -> str:
        """The answer, or none where that is better by more than the threshold."""
        return "" if self.no_answer > threshold else self.text


class _Spans(NamedTuple):
    """Spans of one window, best starts first, and for each of them best ends first."""

    scores: np.ndarray  # [N] float64
    starts: np.ndarray  # [N] characters
    ends: np.ndarray  # [N] characters


def answer(context: str, windows: Sequence[tuple[Window, np.ndarray]], task: Task) -> Answered:
    """The answer over all windows of a context, each with its logits [S, 2] of start and end, S without padding."""
    spans = [_spans(window, np.asarray(logits, np.float64), task) for window, logits in windows]
    null = min(float(logits[0, 0]) + float(logits[0, 1]) for _, logits in windows)
    if task.has_no_answer:
        spans.append(_Spans(np.array([null]), np.array([-1]), np.array([-1])))
    scores, starts, ends = (np.concatenate(parts) for parts in zip(*spans, strict=True))
    found: dict[str, tuple[float, int]] = {}
    for index in np.argsort(-scores, kind="stable"):
        text = context[starts[index]:ends[index]] if starts[index] >= 0 else ""
        found.setdefault(text, (float(scores[index]), int(starts[index])))
        if len(found) == task.n_best:
            break
    if task.has_no_answer:
        found.setdefault("", (null, -1))
    best = next((text for text in found if text), "")
    score = found[best][0] if best else -_NEVER
    return Answered(best, null - score if task.has_no_answer else 0.0, _candidates(found))


def _spans(window: Window, logits: np.ndarray, task: Task) -> _Spans:
    """The valid spans of the `n_best` starts and ends: in the context, of up to `max_answer_length` tokens, the start
    where it has its largest context.
    """
    starts, ends = (np.argsort(-logits[:, side], kind="stable")[:task.n_best] for side in (0, 1))
    first, last = (tokens.ravel() for tokens in np.meshgrid(starts, ends, indexing="ij"))
    inside = np.zeros(len(logits), bool)
    inside[window.start:window.start + len(window.offsets)] = window.offsets[:, 0] < window.offsets[:, 1]
    opens = np.zeros(len(logits), bool)
    opens[window.start:window.start + len(window.max_context)] = window.max_context
    valid = inside[first] & inside[last] & opens[first] & (first <= last) & (last - first < task.max_answer_length)
    first, last = first[valid], last[valid]
    scores = logits[first, 0] + logits[last, 1]
    return _Spans(scores, window.offsets[first - window.start, 0], window.offsets[last - window.start, 1])


def _candidates(found: dict[str, tuple[float, int]]) -> tuple[Candidate, ...]:
    if not found:
        return ()
    scores = np.array([score for score, _ in found.values()])
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    return tuple(
        Candidate(text, score, float(share), start)
        for (text, (score, start)), share in zip(found.items(), shares, strict=True)
    )


def best_threshold(answers: Sequence[Answered], scores: Sequence[float], answerable: Sequence[bool]) -> float:
    """The threshold of `Answered.above` under which the sum of scores is largest (the official evaluation of SQuAD 2.0,
    `find_best_thresh`). `scores` are those of `text`, 0 to 1; an unanswerable question scores 1 without an answer.

    It stands midway between two scores of no answer, so that rounding moves neither over it (the official one is the
    score itself); 1 below all of them where nothing is better than to answer none, for these scores may be negative,
    where the official 0.0 is for probabilities.
    """
    nulls = np.array([found.no_answer for found in answers])
    order = np.argsort(nulls, kind="stable")
    borders = [nulls.min() - 1, *(nulls[order[1:]] + nulls[order[:-1]]) / 2, nulls.max() + 1]
    best = current = float(sum(not can for can in answerable))
    threshold = borders[0]
    for place, index in enumerate(order, 1):
        current += scores[index] if answerable[index] else -float(bool(answers[index].text))
        if current > best and nulls[index] < borders[place]:  # equals are all answered or none
            best, threshold = current, borders[place]
    return float(threshold)
