"""Sequences → rows: which sequences share a row, and the arrays of a batch before masking."""

from typing import NamedTuple

import numpy as np

from data_pipeline import randomness
from data_pipeline.pairing import Sequences

PIECES = 5  # [CLS] A [SEP] B [SEP]


class Window(NamedTuple):
    """All that is needed to build any batch of one window."""

    tokens: np.ndarray
    """[T + 2] uint16 or uint32: the window's text, then [CLS] and [SEP]."""
    sequences: Sequences
    order: np.ndarray
    """[N] the sequences in the order of the rows."""
    row_offsets: np.ndarray
    """[R + 1] row r holds the sequences order[row_offsets[r]:row_offsets[r + 1]]."""
    mask_key: np.uint64
    """The key of this window's masking."""

    @property
    def rows(self) -> int:
        return len(self.row_offsets) - 1


def one_sequence_per_row(count: int, key: np.uint64) -> tuple[np.ndarray, np.ndarray]:
    """(order, row_offsets) of `count` shuffled sequences, one in each row."""
    return randomness.permutation(key, count), np.arange(count + 1)


def assemble(window: Window, first: int, last: int, length: int) -> dict[str, np.ndarray]:
    """Rows [first, last) of a window, before masking: B = last - first, S = length, C = most sequences in a row.

    Returns `input_ids`, `segment_ids`, `sequence_ids`, `position_ids` [B, S] and `cls_positions`,
    `next_sentence_labels`, `next_sentence_weights` [B, C]. Every piece of every sequence is a run of the window's
    tokens, so a batch is one gather and one scatter.
    """
    chosen = window.order[window.row_offsets[first] : window.row_offsets[last]]
    in_row = np.diff(window.row_offsets[first : last + 1])
    row = np.repeat(np.arange(last - first), in_row)
    nth = np.arange(len(chosen)) - np.repeat(np.cumsum(in_row) - in_row, in_row)
    starts, lengths = _pieces(window, chosen)

    before = np.cumsum(lengths.ravel()).reshape(lengths.shape) - lengths
    sequence_start = before[:, 0] - before[window.row_offsets[first:last] - window.row_offsets[first], 0][row]
    target = row * length + sequence_start
    tokens = int(lengths.sum())
    runs = lengths.ravel()
    source = np.arange(tokens) + np.repeat((starts - before).ravel(), runs)
    place = np.arange(tokens) + np.repeat((target - before[:, 0])[:, None] + 0 * lengths, runs)

    def scatter(values: np.ndarray) -> np.ndarray:
        array = np.zeros((last - first) * length, np.int32)
        array[place] = values
        return array.reshape(last - first, length)

    batch = {
        "input_ids": scatter(window.tokens[source]),
        "segment_ids": scatter(np.repeat(np.tile([0, 0, 0, 1, 1], len(chosen)), runs)),
        "sequence_ids": scatter(np.repeat(nth + 1, lengths.sum(axis=1))),
        "position_ids": scatter(place - np.repeat(target, lengths.sum(axis=1))),
    }
    return batch | _per_sequence(window, chosen, row, nth, sequence_start, last - first)


def empty_rows(count: int, like: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`count` rows of padding whose weights are zero, shaped as the rows of `like`."""
    return {name: np.zeros((count, *array.shape[1:]), array.dtype) for name, array in like.items()}


def _pieces(window: Window, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Start and length of [CLS] A [SEP] B [SEP] in the window's tokens, int64 [n, 5] each."""
    sequences, text = window.sequences, len(window.tokens) - 2
    starts = np.empty((len(chosen), PIECES), np.int64)
    lengths = np.ones((len(chosen), PIECES), np.int64)
    starts[:, 0], starts[:, 2], starts[:, 4] = text, text + 1, text + 1
    starts[:, 1], lengths[:, 1] = sequences.a_start[chosen], sequences.a_length[chosen]
    starts[:, 3], lengths[:, 3] = sequences.b_start[chosen], sequences.b_length[chosen]
    return starts, lengths


def _per_sequence(
    window: Window, chosen: np.ndarray, row: np.ndarray, nth: np.ndarray, start: np.ndarray, rows: int
) -> dict[str, np.ndarray]:
    """What a row has once for each of its sequences, [B, C]."""
    width = int(nth.max(initial=0)) + 1
    positions, labels = np.zeros((2, rows, width), np.int32)
    weights = np.zeros((rows, width), np.float32)
    positions[row, nth] = start
    labels[row, nth] = window.sequences.next_sentence_labels[chosen]
    weights[row, nth] = 1
    return {"cls_positions": positions, "next_sentence_labels": labels, "next_sentence_weights": weights}
