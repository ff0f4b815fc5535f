"""Logits → predictions: a label, a number, the tags of a sentence or an answer for each example."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from flaxbert.finetuning.features import Feature, Window
from flaxbert.finetuning.forms import Examples
from flaxbert.finetuning.spans import Answered, answer
from flaxbert.finetuning.tagging import join_tags
from flaxbert.finetuning.tasks import Task


def place_logits(
    found: list[np.ndarray | None], features: Sequence[Feature], batch: dict[str, np.ndarray], logits: np.ndarray
) -> None:
    """Puts the logits of a batch into `found` in their features' places: [N], of a choice's number or a label's, or in
    tagging and qa [S, N] without padding. `logits` are those of `BertWithHead`, [R, 1, N] where pooled, else [R, S, N].
    """
    scores = np.asarray(logits, np.float32)
    for place, index in enumerate(batch["feature_indices"]):
        if index < 0:
            continue
        feature = features[index]
        if feature.words is not None or feature.window is not None:
            found[index] = scores[place, :feature.length]
        elif len(feature.rows) > 1:
            found[index] = scores[place * len(feature.rows):(place + 1) * len(feature.rows), 0, 0]
        else:
            found[index] = scores[place, 0]


def predictions(
    examples: Examples, features: list[Feature], logits: Sequence[np.ndarray], task: Task, threshold: float = 0.0
) -> list[Any]:
    """What the model says of each example, in the form that `metrics.score` reads. `logits` are one array for each
    feature, as `place_logits` leaves them. `threshold` is that of `Answered.above`.
    """
    if task.kind == "tagging":
        return join_tags(examples, features, list(logits), task.has_entities)
    if task.kind == "qa":
        return [found.above(threshold) for found in answers(examples, features, logits, task)]
    if task.kind == "regression":
        return [float(values[0]) for values in logits]
    return [examples.labels[int(np.argmax(values))] for values in logits]


def answers(
    examples: Examples, features: Sequence[Feature], logits: Sequence[np.ndarray], task: Task
) -> list[Answered]:
    """The n-best answers to each question, over all windows of its context."""
    windows: list[list[tuple[Window, np.ndarray]]] = [[] for _ in examples.items]
    for feature, scores in zip(features, logits, strict=True):
        assert feature.window is not None
        windows[feature.example].append((feature.window, scores))
    return [answer(item.context, found, task) for item, found in zip(examples.items, windows)]
