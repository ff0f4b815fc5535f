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
    tokens, and so is the padding behind them: a batch is one gather, and each number of a piece is repeated over it.
    """
    rows = last - first
    bounds = window.row_offsets[first : last + 1] - window.row_offsets[first]
    chosen = window.order[window.row_offsets[first] : window.row_offsets[last]]
    row = np.repeat(np.arange(rows), np.diff(bounds))
    nth = np.arange(len(chosen)) - bounds[row]
    starts, lengths = _pieces(window, chosen)
    before = np.cumsum(np.append(0, lengths.sum(axis=1)))
    sequence_start = before[:-1] - before[bounds[row]]

    piece = PIECES * np.arange(len(chosen))[:, None] + np.arange(PIECES) + row[:, None]  # a row's last run is padding
    runs = np.empty(PIECES * len(chosen) + rows, np.int64)
    runs[piece] = lengths
    runs[PIECES * bounds[1:] + np.arange(rows)] = length - np.diff(before[bounds])

    def spread(values: np.ndarray, dtype: type = np.int32) -> np.ndarray:
        """[n, 1 or 5] → [B, S], zero in the padding."""
        array: np.ndarray = np.zeros(len(runs), dtype)
        array[piece] = values
        return np.repeat(array, runs).reshape(rows, length)

    sequence_ids = spread(nth[:, None] + 1)
    used = sequence_ids > 0
    place = (row * length + sequence_start)[:, None] + np.cumsum(lengths, axis=1) - lengths
    source = np.arange(rows * length).reshape(rows, length) + spread(starts - place, np.int64)
    batch = {
        "input_ids": window.tokens.take(source, mode="clip").astype(np.int32) * used,
        "segment_ids": spread(np.array([0, 0, 0, 1, 1])),
        "sequence_ids": sequence_ids,
        "position_ids": (np.arange(length, dtype=np.int32) - spread(sequence_start[:, None])) * used,
    }
    return batch | _per_sequence(window, chosen, row, nth, sequence_start, rows)


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
