"""Features → batches of few shapes, in an order that is a pure function of seed and epoch."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from flaxbert.finetuning.features import Feature

LENGTHS = (32, 64, 128, 256, 384, 512)


def bucket_lengths(longest: int) -> tuple[int, ...]:
    """The lengths that rows of up to `longest` tokens are padded to."""
    return (*(length for length in LENGTHS if length < longest), longest)


def steps_per_epoch(features: Sequence[Feature], batch_size: int) -> int:
    """Batches in one pass, the last one filled up."""
    return -(-len(features) // batch_size)


def batches(
    features: Sequence[Feature],
    batch_size: int,
    seed: int = 0,
    epoch: int = 0,
    shuffle: bool = True,
    lengths: Sequence[int] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """One pass over the features, `batch_size` at a time, in the layout that the package's docstring gives.

    Rows are padded to the shortest of `lengths` that holds all of a batch; None: `LENGTHS`. Without `shuffle` the
    shortest come first, so that little is padded: `feature_indices` says which is which. Raises ValueError for a row
    longer than any of `lengths`.
    """
    sizes = np.array([feature.length for feature in features], np.int64)
    allowed = sorted(LENGTHS if lengths is None else lengths)
    if len(features) and sizes.max() > allowed[-1]:
        raise ValueError(f"a row of {sizes.max()} tokens exceeds {allowed[-1]}, the longest of lengths")
    order = np.argsort(sizes, kind="stable")
    if shuffle:
        order = np.random.default_rng([seed, epoch]).permutation(len(features))
    for start in range(0, len(order), batch_size):
        chosen = order[start:start + batch_size]
        length = next(allowed_length for allowed_length in allowed if allowed_length >= sizes[chosen].max())
        yield make_batch(features, chosen, batch_size, length)


def make_batch(
    features: Sequence[Feature], chosen: np.ndarray, batch_size: int, length: int
) -> dict[str, np.ndarray]:
    """The chosen features as a batch of `batch_size`, rows that fill up included, of `length` tokens."""
    choices = len(features[chosen[0]].rows)
    assert all(len(features[index].rows) == choices for index in chosen), "every example has as many choices"
    rows = [row for index in chosen for row in features[index].rows]
    ids, segments, sequences = (np.zeros((batch_size * choices, length), np.int32) for _ in range(3))
    for place, row in enumerate(rows):
        size = len(row.input_ids)
        ids[place, :size], segments[place, row.first_length:size], sequences[place, :size] = row.input_ids, 1, 1
    indices = np.full(batch_size, -1, np.int32)
    indices[:len(chosen)] = chosen
    labels, weights = _labels([features[index] for index in chosen], batch_size, length)
    return {
        "input_ids": ids,
        "segment_ids": segments,
        "sequence_ids": sequences,
        "position_ids": np.arange(length, dtype=np.int32) * sequences,
        "cls_positions": np.zeros((batch_size * choices, 1), np.int32),
        "labels": labels,
        "label_weights": weights,
        "feature_indices": indices,
    }


def _labels(chosen: list[Feature], batch_size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(labels, weights); a label of weight 0 is 0, which is in the range of every output."""
    if chosen[0].words is not None:
        return _tags(chosen, batch_size, length)
    known = [None if feature.label is None else np.asarray(feature.label) for feature in chosen]
    some: Any = next((label for label in known if label is not None), np.int32(0))
    shape = (2,) if chosen[0].window is not None else ()
    labels = np.zeros((batch_size, *shape), np.float32 if some.dtype.kind == "f" else np.int32)
    weights = np.zeros(batch_size, np.float32)
    for place, label in enumerate(known):
        if label is not None:
            labels[place], weights[place] = label, 1
    return labels, weights


def _tags(chosen: list[Feature], batch_size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    labels, weights = np.zeros((batch_size, length), np.int32), np.zeros((batch_size, length), np.float32)
    for place, feature in enumerate(chosen):
        if feature.label is not None:
            known = np.flatnonzero(feature.label >= 0)
            labels[place, known], weights[place, known] = feature.label[known], 1
    return labels, weights
