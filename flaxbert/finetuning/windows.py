"""Questions → features: windows over a context (run_squad.py, `convert_examples_to_features`).

Spans go by the characters that each token stands for. run_squad.py goes by words parted at white space, and then looks
for the answer's tokens among theirs: offsets find the same span where that search succeeds, the one annotated where an
answer occurs twice in such words, and the touched tokens alone where it fails.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from flaxbert.finetuning.features import Feature, Row, Window
from flaxbert.finetuning.forms import Answer, Examples, Question
from flaxbert.finetuning.pieces import Special, ids_and_offsets, ids_of
from flaxbert.finetuning.tasks import Task


def question_features(
    examples: Examples, task: Task, tokenizer: Any, special: Special, max_length: int
) -> list[Feature]:
    """The windows of each question's context. Raises ValueError where `max_length` leaves a context no room."""
    if max_length <= task.max_question_length + 3:
        raise ValueError(
            f"max_length {max_length} leaves no room for a context beside a question of {task.max_question_length} "
            f"tokens: expected at least {task.max_question_length + 4}"
        )
    questions = ids_of(tokenizer, [item.question for item in examples.items])
    contexts = list(dict.fromkeys(item.context for item in examples.items))
    # Several questions share a context: it is encoded once, and their windows are views of the same arrays.
    encoded = dict(zip(contexts, ids_and_offsets(tokenizer, contexts)))
    found: list[Feature] = []
    for place, (item, asked) in enumerate(zip(examples.items, questions)):
        ids, offsets = encoded[item.context]
        head = np.concatenate([[special.cls_id], asked[:task.max_question_length], [special.sep_id]]).astype(np.int32)
        room = max_length - len(head) - 1
        # In short rows `doc_stride` may exceed the room: run_squad.py's windows touch there, and an answer across their
        # border is in none of them.
        spans = window_spans(len(ids), room, min(task.doc_stride, (room + 1) // 2))
        best = max_context(len(ids), spans)
        answer = answer_tokens(item, offsets)
        for number, (start, end) in enumerate(spans):
            row_ids = np.concatenate([head, ids[start:end], [special.sep_id]]).astype(np.int32)
            row = Row(row_ids, len(head), len(asked) > task.max_question_length)
            window = Window(len(head), offsets[start:end], best[start:end] == number)
            found.append(Feature(place, (row,), _label(answer, start, end, len(head)), window=window))
    return found


def window_spans(tokens: int, room: int, stride: int) -> list[tuple[int, int]]:
    """(start, end) of the windows of `room` tokens over a context, `stride` tokens from each to the next, or `room`
    where that is less.
    """
    spans = [(0, min(room, tokens))]
    while spans[-1][1] < tokens:
        start = spans[-1][0] + min(room, stride)
        spans.append((start, min(start + room, tokens)))
    return spans


def max_context(tokens: int, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """[T]: for each token the window where the smaller of its left and right context is largest, the first of equals
    (run_squad.py, `_check_is_max_context`).
    """
    best, scores = np.zeros(tokens, np.int32), np.full(tokens, -1.0)
    for number, (start, end) in enumerate(spans):
        inside = np.arange(end - start)
        score = np.minimum(inside, inside[::-1]) + 0.01 * (end - start)
        better = score > scores[start:end]
        best[start:end][better], scores[start:end][better] = number, score[better]
    return best


def answer_tokens(item: Question, offsets: np.ndarray) -> tuple[int, int] | None:
    """(first, last) token that the answer touches, the first answer that stands at its offset; (-1, -1) where the
    context has none, None where it is not known.
    """
    if item.answers is None:
        return None
    if not item.answers:
        return -1, -1
    return next((span for answer in item.answers if (span := _touched(answer, offsets)) is not None), None)


def _touched(answer: Answer, offsets: np.ndarray) -> tuple[int, int] | None:
    start, end = answer.start, answer.start + len(answer.text)
    touched = np.flatnonzero((offsets[:, 0] < end) & (offsets[:, 1] > start))
    return (int(touched[0]), int(touched[-1])) if answer.start >= 0 and len(touched) else None


def _label(answer: tuple[int, int] | None, start: int, end: int, before: int) -> tuple[int, int] | None:
    """The answer's place in the row of one window; [CLS] where the window does not hold all of it."""
    if answer is None:
        return None
    if not (start <= answer[0] and answer[1] < end):
        return 0, 0
    return answer[0] - start + before, answer[1] - start + before
