"""Rows → the arrays of a batch, before masking."""

from typing import NamedTuple

import numpy as np

from data_pipeline.packing import Rows
from data_pipeline.sequences import Sequences

PIECES = 5  # [CLS] A [SEP] B [SEP]; without B the last two are empty


class Window(NamedTuple):
    """All that is needed to build any batch of one window."""

    tokens: np.ndarray
    """[S + T + S + 2] uint16 or uint32: S zeros, the window's text, S zeros, [CLS] and [SEP]. So a slice of S tokens
    that has a piece of a sequence where a row has it lies inside, even at the text's ends."""
    sequences: Sequences
    """Their starts count in `tokens`."""
    packed: Rows
    mask_key: np.uint64
    """The key of this window's masking."""

    @property
    def rows(self) -> int:
        """R."""
        return len(self.packed.offsets) - 1


def window_of(
    text: np.ndarray, special: tuple[int, int], sequences: Sequences, packed: Rows, mask_key: np.uint64, length: int
) -> Window:
    """Sequences of a text [T], their starts counted in it, in rows of `length`. `special`: the ids of [CLS], [SEP]."""
    zeros = np.zeros(length, text.dtype)
    tokens = np.concatenate([zeros, text, zeros, np.array(special, text.dtype)])
    moved = sequences._replace(a_start=sequences.a_start + length, b_start=sequences.b_start + length)
    return Window(tokens, moved, packed, mask_key)


class Layout(NamedTuple):
    """Where the n sequences of some rows lie. int64 [n]."""

    row: np.ndarray
    start: np.ndarray
    """Its first position in the row."""
    length: np.ndarray
    a_length: np.ndarray


def assemble(
    window: Window, first: int, last: int, length: int, sequences_per_row: int
) -> tuple[dict[str, np.ndarray], Layout]:
    """Rows [first, last) of a window, before masking: B = last - first, S = length, C = sequences_per_row.

    Returns `input_ids`, `segment_ids`, `sequence_ids`, `position_ids` [B, S] and `cls_positions`,
    `next_sentence_labels`, `next_sentence_weights` [B, C], of whatever type holds the numbers.
    """
    rows, offsets = last - first, window.packed.offsets
    bounds = offsets[first : last + 1] - offsets[first]
    chosen = window.packed.order[offsets[first] : offsets[last]]
    row = np.repeat(np.arange(rows), np.diff(bounds))
    nth = np.arange(len(chosen)) - bounds[row]
    if sequences_per_row == 1:
        tokens, layout = _single(window, chosen, length)
    else:
        tokens, layout = _packed(window, chosen, length, bounds, row, nth)
    return tokens | _per_sequence(window, chosen, nth, layout, (rows, sequences_per_row)), layout


def _single(window: Window, chosen: np.ndarray, length: int) -> tuple[dict[str, np.ndarray], Layout]:
    """What `_packed` gives where each row has one sequence, in a fraction of its time: what stands in a column follows
    from two comparisons, and a row is one slice of the text up to where B begins and another one from there on.
    """
    sequences, row = window.sequences, np.arange(len(chosen))
    narrow = np.min_scalar_type(length)  # B may begin, and a row end, at `length` itself
    column = np.arange(length, dtype=narrow)
    a_length, b_length = sequences.a_length[chosen], sequences.b_length[chosen]
    second = a_length + 2  # where B begins
    total = second + b_length + (b_length > 0)
    behind_a = column >= second.astype(narrow)[:, None]
    used = column < total.astype(narrow)[:, None]
    slices = _slices(window.tokens, length)
    ids = slices[sequences.a_start[chosen] - 1]
    np.copyto(ids, slices[sequences.b_start[chosen] - second], where=behind_a)
    ids *= used
    cls, sep = window.tokens[-2:]
    ids[:, 0] = cls
    ids[row, second - 1] = sep
    ids[row, total - 1] = sep
    tokens = {
        "input_ids": ids, "segment_ids": behind_a & used, "sequence_ids": used, "position_ids": column * used,
    }  # fmt: skip
    return tokens, Layout(row, np.zeros_like(total), total, a_length)


def _slices(tokens: np.ndarray, length: int) -> np.ndarray:
    """All slices of a length, [len(tokens) - length + 1, length]: `sliding_window_view` for a tenth of its time."""
    size = tokens.itemsize
    return np.ndarray((len(tokens) - length + 1, length), tokens.dtype, tokens, strides=(size, size))


def _packed(
    window: Window, chosen: np.ndarray, length: int, bounds: np.ndarray, row: np.ndarray, nth: np.ndarray
) -> tuple[dict[str, np.ndarray], Layout]:
    """The arrays of tokens, and the layout, of the sequences `chosen` [n], each the `nth` one [n] of its `row` [n];
    `bounds` [B + 1] say which are a row's. Every piece of every sequence is a run of the window's tokens, and so is the
    padding behind them: a batch is one gather, and each number of a piece is repeated over it.
    """
    rows = len(bounds) - 1
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
    tokens = {
        "input_ids": window.tokens.take(source, mode="clip") * used,
        "segment_ids": spread(np.array([0, 0, 0, 1, 1])),
        "sequence_ids": sequence_ids,
        "position_ids": (np.arange(length, dtype=np.int32) - spread(sequence_start[:, None])) * used,
    }
    return tokens, Layout(row, sequence_start, np.diff(before), lengths[:, 1])


def _pieces(window: Window, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Start and length of [CLS] A [SEP] B [SEP] in the window's tokens, int64 [n, 5] each."""
    sequences, text = window.sequences, len(window.tokens) - 2
    starts = np.empty((len(chosen), PIECES), np.int64)
    lengths = np.ones((len(chosen), PIECES), np.int64)
    starts[:, 0], starts[:, 2], starts[:, 4] = text, text + 1, text + 1
    starts[:, 1], lengths[:, 1] = sequences.a_start[chosen], sequences.a_length[chosen]
    starts[:, 3], lengths[:, 3] = sequences.b_start[chosen], sequences.b_length[chosen]
    lengths[:, 4] = lengths[:, 3] > 0
    return starts, lengths


def _per_sequence(
    window: Window, chosen: np.ndarray, nth: np.ndarray, layout: Layout, shape: tuple[int, int]
) -> dict[str, np.ndarray]:
    """What a row has once for each of its sequences, [B, C]."""
    positions, labels = np.zeros((2, *shape), np.int32)
    weights = np.zeros(shape, np.float32)
    positions[layout.row, nth] = layout.start
    labels[layout.row, nth] = window.sequences.next_sentence_labels[chosen]
    weights[layout.row, nth] = window.sequences.b_length[chosen] > 0
    return {"cls_positions": positions, "next_sentence_labels": labels, "next_sentence_weights": weights}
