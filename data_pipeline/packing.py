"""Sequences → rows: which sequences share a row."""

from typing import NamedTuple

import numpy as np

from data_pipeline import randomness


class Rows(NamedTuple):
    """R rows of N sequences."""

    order: np.ndarray
    """[N] the sequences in the order of the rows."""
    offsets: np.ndarray
    """[R + 1] row r holds the sequences order[offsets[r]:offsets[r + 1]]."""


class _Bundle(NamedTuple):
    """`rows` rows that hold sequences of the same lengths, longest first."""

    lengths: tuple[int, ...]
    predictions: int
    rows: int


def pack(
    lengths: np.ndarray, predictions: np.ndarray, capacity: int, most_predictions: int, most_sequences: int,
    key: np.uint64,
) -> Rows:  # fmt: skip
    """Puts sequences of `lengths` [N] into rows of `capacity` tokens, at most `most_sequences` in one, in an order
    drawn from `key`. `predictions` [capacity + 1] says how many predictions a sequence of each length asks for: a row
    asks for no more than `most_predictions`.

    Best fit, longest first, on the histogram of lengths (Krell et al. 2021, arXiv 2107.02027, section 3.1): a length
    is placed for all its sequences at once, so the work grows with the lengths and not with the sequences. Which of
    the sequences of one length goes where is drawn, and so is the order of the rows.
    """
    row_key, sequence_key = randomness.key(int(key), 0), randomness.key(int(key), 1)
    if not len(lengths):
        return Rows(np.empty(0, np.int64), np.zeros(1, np.int64))
    counts = np.bincount(lengths, minlength=capacity + 1)
    bundles = _best_fit(counts, predictions, capacity, most_predictions, most_sequences)
    shuffled = randomness.permutation(sequence_key, len(lengths))
    narrow = np.min_scalar_type(capacity)  # numpy sorts 16 bits by counting
    by_length = shuffled[np.argsort(lengths[shuffled].astype(narrow), kind="stable")]
    order, sizes = _filled(bundles, by_length, np.append(0, np.cumsum(counts)))
    return _permuted(order, sizes, randomness.permutation(row_key, len(sizes)))


def _best_fit(
    counts: np.ndarray, predictions: np.ndarray, capacity: int, most_predictions: int, most_sequences: int
) -> list[_Bundle]:
    """Bundles that use up `counts` [capacity + 1] sequences of each length."""
    by_room: list[list[_Bundle]] = [[] for _ in range(capacity + 1)]
    closed: list[_Bundle] = []
    for length in np.flatnonzero(counts)[::-1].tolist():
        left, asked = int(counts[length]), int(predictions[length])
        room = length
        while left and room <= capacity:
            position = next(
                (i for i, each in enumerate(by_room[room]) if each.predictions + asked <= most_predictions), None
            )
            if position is None:
                room += 1
                continue
            bundle = by_room[room].pop(position)
            taken = min(left, bundle.rows)
            if taken < bundle.rows:
                by_room[room].append(bundle._replace(rows=bundle.rows - taken))
            grown = _Bundle((*bundle.lengths, length), bundle.predictions + asked, taken)
            (by_room[room - length] if len(grown.lengths) < most_sequences else closed).append(grown)
            left -= taken
            room = length
        # What fits nowhere opens rows of its own, as many to a row as there is room for.
        while left:
            each = _copies(length, asked, left, capacity, most_predictions, most_sequences)
            (by_room[capacity - sum(each.lengths)] if len(each.lengths) < most_sequences else closed).append(each)
            left -= len(each.lengths) * each.rows
    return closed + [bundle for bundles in by_room for bundle in bundles]


def _copies(
    length: int, asked: int, left: int, capacity: int, most_predictions: int, most_sequences: int
) -> _Bundle:
    """New rows with as many sequences of one length in each as fit."""
    fitting = min(capacity // length, most_sequences, left, most_predictions // asked if asked else left)
    fitting = max(1, fitting)
    return _Bundle((length,) * fitting, asked * fitting, left // fitting)


def _filled(bundles: list[_Bundle], by_length: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(sequences row by row [N], sequences in each row [R]); `by_length` [N] are the sequences in the order of their
    length, those of length l beginning at starts[l]."""
    used = starts.copy()
    order, sizes = [], []
    for lengths, _, rows in bundles:
        columns = []
        for length in lengths:
            columns.append(by_length[used[length]:used[length] + rows])
            used[length] += rows
        order.append(np.stack(columns, axis=1).ravel())
        sizes.append(np.full(rows, len(lengths)))
    return np.concatenate(order), np.concatenate(sizes)


def _permuted(order: np.ndarray, sizes: np.ndarray, rows: np.ndarray) -> Rows:
    """The same rows in the order `rows` [R]."""
    starts = (np.cumsum(sizes) - sizes)[rows]
    offsets = np.append(0, np.cumsum(sizes[rows]))
    source = np.repeat(starts - offsets[:-1], sizes[rows]) + np.arange(len(order))
    return Rows(order[source], offsets)
