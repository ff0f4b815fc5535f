"""Examples → features: what a model reads, cut to its length, with labels as numbers."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from flaxbert.finetuning.features import Feature, Row
from flaxbert.finetuning.forms import Examples
from flaxbert.finetuning.pieces import Special, ids_of, special_ids
from flaxbert.finetuning.tagging import tagging_features
from flaxbert.finetuning.tasks import Task
from flaxbert.finetuning.windows import question_features


def encode(examples: Examples, task: Task, tokenizer: Any, max_length: int | None = None) -> list[Feature]:
    """The features of the examples, in their order: one each; in tagging and qa, as many as its length asks for.

    `tokenizer` is a `tokenizers.Tokenizer`; rows have up to `max_length` tokens, None: the task's. Raises ValueError
    where that leaves no room for a text.
    """
    length = task.max_length if max_length is None else max_length
    special = special_ids(tokenizer)
    if task.kind == "tagging":
        return tagging_features(examples, tokenizer, special, length)
    if task.kind == "qa":
        return question_features(examples, task, tokenizer, special, length)
    if length < 5:
        raise ValueError(f"max_length {length} leaves no room for a pair of texts: expected at least 5")
    if task.kind == "multiple_choice":
        return _choice_features(examples, tokenizer, special, length)
    return _text_features(examples, task, tokenizer, special, length)


def count_cut(features: Sequence[Feature]) -> int:
    """The examples of which a text was cut to its length. Contexts and sentences of tags are divided, not cut."""
    return len({feature.example for feature in features if any(row.cut for row in feature.rows)})


def cut_remark(what: str, cut: int, count: int, task: Task) -> str:
    """A sentence on the examples that were cut."""
    texts, longest = ("questions", task.max_question_length) if task.kind == "qa" else ("examples", task.max_length)
    return f"{what}: {cut:,} of {count:,} {texts} have more than {longest} tokens: they were cut there"


def _text_features(
    examples: Examples, task: Task, tokenizer: Any, special: Special, max_length: int
) -> list[Feature]:
    items = examples.items
    first = ids_of(tokenizer, [item.first for item in items])
    pairs = bool(items) and items[0].second is not None
    second: Sequence[np.ndarray | None] = [None] * len(items)
    if pairs:
        second = ids_of(tokenizer, [item.second for item in items])
    numbers = {label: number for number, label in enumerate(examples.labels)}
    return [
        Feature(
            place, (make_row(first[place], second[place], special, max_length),),
            item.label if task.kind == "regression" or item.label is None else numbers[item.label],
        )
        for place, item in enumerate(items)
    ]  # fmt: skip


def _choice_features(examples: Examples, tokenizer: Any, special: Special, max_length: int) -> list[Feature]:
    first = ids_of(tokenizer, [item.first for item in examples.items])
    endings = iter(ids_of(tokenizer, [choice for item in examples.items for choice in item.choices]))
    return [
        Feature(
            place, tuple(make_row(first[place], next(endings), special, max_length) for _ in item.choices),
            None if item.label is None else int(item.label),
        )
        for place, item in enumerate(examples.items)
    ]  # fmt: skip


def make_row(first: np.ndarray, second: np.ndarray | None, special: Special, max_length: int) -> Row:
    """[CLS] first [SEP], or [CLS] first [SEP] second [SEP], of up to `max_length` tokens: a single text loses its end;
    of a pair, the longer one does, token by token, the second where they are equal (`_truncate_seq_pair` of
    run_classifier.py).
    """
    cls, sep = np.array([special.cls_id], np.int32), np.array([special.sep_id], np.int32)
    if second is None:
        room = max_length - 2
        return Row(np.concatenate([cls, first[:room], sep]), min(len(first), room) + 2, len(first) > room)
    kept = pair_lengths(len(first), len(second), max_length - 3)
    ids = np.concatenate([cls, first[:kept[0]], sep, second[:kept[1]], sep])
    return Row(ids, kept[0] + 2, sum(kept) < len(first) + len(second))


def pair_lengths(first: int, second: int, room: int) -> tuple[int, int]:
    """What is left of texts of such lengths in `room` tokens."""
    half = room - room // 2
    if first <= half:
        return first, min(second, room - first)
    if second <= room // 2:
        return min(first, room - second), second
    return half, room // 2
