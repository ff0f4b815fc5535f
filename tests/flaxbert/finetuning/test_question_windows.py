"""Windows over a context, and the span of an answer in them."""

import dataclasses
import random
from collections import Counter

import numpy as np
import pytest

from data_pipeline.tokenizer import load
from flaxbert.finetuning.batching import batches
from flaxbert.finetuning.encoding import encode
from flaxbert.finetuning.examples import Answer, Examples, Question, read_examples
from flaxbert.finetuning.tasks import TASKS
from flaxbert.finetuning.windows import max_context, window_spans

SQUAD = TASKS["squad"]
CONTEXT = "The quick brown fox jumps over the lazy dog, and the dog sleeps on. Rivers run (morning-evening). "


def questions(context, *answers, question="Who jumps?"):
    items = [
        Question(str(n), question, context, tuple(Answer(text, context.index(text)) for text in texts))
        for n, texts in enumerate(answers)
    ]
    return Examples("file", items)


def text_of(feature, context):
    """What the labelled tokens of a window stand for."""
    start, end = (place - feature.window.start for place in feature.label)
    return context[feature.window.offsets[start, 0]:feature.window.offsets[end, 1]]


@pytest.mark.parametrize("tokens, room, stride, expected", [
    (5, 10, 4, [(0, 5)]),
    (10, 10, 4, [(0, 10)]),
    (11, 10, 4, [(0, 10), (4, 11)]),
    (22, 10, 4, [(0, 10), (4, 14), (8, 18), (12, 22)]),
    (23, 10, 10, [(0, 10), (10, 20), (20, 23)]),
    (23, 10, 128, [(0, 10), (10, 20), (20, 23)]),  # a stride longer than the window leaves nothing out
    (0, 10, 4, [(0, 0)]),
])  # fmt: skip
def test_windows_are_those_of_the_reference(tokens, room, stride, expected):
    assert window_spans(tokens, room, stride) == expected


@pytest.mark.parametrize("max_length", [24, 49, 128, 150, 384])
def test_a_window_shows_half_of_the_one_before_or_all_but_the_reference_s_stride(rust, max_length):
    examples = Examples("file", [Question("1", "Who?", CONTEXT * 20, None)])
    windows = [
        feature.window.offsets
        for feature in encode(examples, dataclasses.replace(SQUAD, max_question_length=8), rust, max_length)
    ]
    spans = [(offsets[0, 0], offsets[-1, 1], len(offsets)) for offsets in windows]
    tokens = len(rust.encode(CONTEXT * 20, add_special_tokens=False).ids)
    room = spans[0][2]
    stride = min(128, (room + 1) // 2)
    assert len(spans) == 1 + -(-(tokens - room) // stride) > 1
    for (start, end, _), (begin, _, _) in zip(spans, spans[1:]):
        assert start < begin < end, "they overlap"


def test_the_token_of_most_context_is_that_of_the_reference_s_example():
    # "the man went to the", "to the store and bought", "and bought a gallon of": bought has most around it in the last.
    found = max_context(11, [(0, 5), (3, 8), (6, 11)])
    assert found.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2]


def test_the_window_of_most_context_is_that_of_a_plain_loop():
    draw = random.Random(0)
    cases = [(draw.randint(1, 60), room, draw.randint(1, room)) for room in [draw.randint(3, 20) for _ in range(50)]]
    # A last window a hundred tokens shorter loses to the one before it although it shows one more token of context.
    for tokens, room, stride in [*cases, (301, 300, 150)]:
        spans = window_spans(tokens, room, stride)
        for token, found in enumerate(max_context(tokens, spans)):
            scores = [
                min(token - start, end - 1 - token) + 0.01 * (end - start) if start <= token < end else -1
                for start, end in spans
            ]
            assert found == scores.index(max(scores))


@pytest.mark.parametrize("answer", ["The quick brown fox", "fox", "dog, and", "on", "Rivers", "morning", "evening"])
def test_an_answer_is_found_to_its_character(rust, answer):
    (feature,) = encode(questions(CONTEXT, [answer]), SQUAD, rust)
    assert text_of(feature, CONTEXT) == answer


def test_the_annotated_one_of_two_equal_answers_is_learnt(rust):
    context = "The dog sees the dog-dog."
    item = Question("x", "Which dog?", context, (Answer("dog", 21),))
    (feature,) = encode(Examples("file", [item]), SQUAD, rust)
    start = feature.window.offsets[feature.label[0] - feature.window.start]
    assert start.tolist()[0] == 21


def test_a_part_of_a_token_is_answered_by_the_token(rust):
    (feature,) = encode(questions(CONTEXT, ["o"]), SQUAD, rust)
    start, end = feature.label
    assert start == end and "o" in text_of(feature, CONTEXT)


def test_windows_hold_each_token_of_the_context_and_one_of_them_with_most_context(rust):
    long = CONTEXT * 20
    item = Question("x", "Who jumps?", long, (Answer("lazy dog", long.rindex("lazy dog")),))
    features = encode(Examples("file", [item]), dataclasses.replace(SQUAD, doc_stride=30), rust, max_length=100)
    assert len(features) > 3 and max(feature.length for feature in features) == 100
    times: dict[tuple[int, ...], int] = {}
    for feature in features:
        window, row = feature.window, feature.rows[0]
        inside = row.input_ids[window.start:window.start + len(window.offsets)]
        assert window.start == row.first_length and len(inside) == len(row.input_ids) - row.first_length - 1
        for token in window.offsets[window.max_context]:
            times[tuple(token)] = times.get(tuple(token), 0) + 1
    expected = rust.encode(long, add_special_tokens=False)
    assert len(times) == len(set(times)) and set(times.values()) == {1}
    assert len(times) == len(expected.ids)
    held = [feature for feature in features if feature.label != (0, 0)]
    assert held and {text_of(feature, long) for feature in held} == {"lazy dog"}


def test_a_context_shorter_than_its_question_and_one_without_pieces_have_a_window(rust):
    for context in ("Fox.", "\u200b"):
        examples = questions(context, [], question="Who jumps over the lazy dog? " * 20)
        (feature,) = encode(examples, TASKS["squad2"], rust, max_length=80)
        assert feature.label == (0, 0) and feature.rows[0].first_length == 66
        (batch,) = batches([feature], 2)
        assert batch["labels"].shape == (2, 2) and batch["label_weights"].sum() == 1


def test_a_question_without_answers_given_is_not_learnt(rust):
    examples = Examples("file", [Question("x", "Who?", CONTEXT, None)])
    (feature,) = encode(examples, SQUAD, rust)
    assert feature.label is None
    (batch,) = batches([feature], 1)
    assert batch["labels"].tolist() == [[0, 0]] and batch["label_weights"].tolist() == [0]


def test_offsets_leave_white_space_out_and_stand_still_for_characters_of_other_forms(rust):
    context = "  The  \ufb01ne  fox\u00a0sleeps \u00bd on."
    answers = ["\ufb01ne", "fox", "sleeps", "on"]
    features = encode(questions(context, *([answer] for answer in answers)), SQUAD, rust)
    assert [text_of(feature, context) for feature in features] == answers
    for start, end in features[0].window.offsets:
        assert context[start:end] == context[start:end].strip()


def reference_span(words, pieces, answer, start, end):
    """run_squad.py's way: the words at white space that the answer touches, and among their tokens the first run that
    reads as the answer's; all of them where none does.
    """
    place = [0, *np.cumsum([len(piece) for piece in pieces])]
    first = next(n for n, (_, word_end) in enumerate(words) if word_end > start)
    last = max(n for n, (word_start, _) in enumerate(words) if word_start < end)
    low, high = place[first], place[last + 1] - 1
    tokens = [token for piece in pieces for token in piece]
    spans = [(a, b) for a in range(low, high + 1) for b in range(high, a - 1, -1)]
    return next(((a, b) for a, b in spans if tokens[a:b + 1] == answer), (low, high))


def test_spans_of_real_questions_are_those_of_run_squad(shared_data):
    rust = load(shared_data / "vocab" / "bert-base-uncased-vocab.txt").to_rust()
    examples = read_examples(shared_data / "tasks" / "qa-newwiki" / "dev.json", SQUAD)
    features = encode(examples, SQUAD, rust, max_length=512)
    windows = Counter(feature.example for feature in features)
    alone = [feature for feature in features if windows[feature.example] == 1]
    assert len(alone) > 1150
    for feature in alone:
        item = examples.items[feature.example]
        words, answer = words_of(item.context), item.answers[0]
        pieces = [rust.encode(item.context[a:b], add_special_tokens=False).tokens for a, b in words]
        own = rust.encode(answer.text, add_special_tokens=False).tokens
        expected = reference_span(words, pieces, own, answer.start, answer.start + len(answer.text))
        assert tuple(place - feature.window.start for place in feature.label) == expected, item.id


def words_of(context):
    """(start, end) of the words between white space."""
    ends = [n for n, character in enumerate(context + " ") if character.isspace()]
    starts = [-1, *ends]
    return [(a + 1, b) for a, b in zip(starts, ends) if b > a + 1]
