"""What masking chooses from: the tokens of a batch that may be predicted, and an order of them at random."""

from typing import Any, NamedTuple

import numpy as np

from data_pipeline import randomness
from data_pipeline.assembly import Layout


class Candidates(NamedTuple):
    """The candidates of n sequences in B rows of S positions. A cell is a place in the flat batch: row * S + column."""

    eligible: np.ndarray
    """[B, S] bool: neither [CLS] nor [SEP] nor padding."""
    layout: Layout
    quota: np.ndarray
    """[n] how many tokens of each sequence to predict."""
    row_keys: np.ndarray
    """uint64 [B]: they decide all that is random."""
    sequences_per_row: int

    def per_sequence(self, cells: np.ndarray) -> np.ndarray:
        """How many of `cells` [B, S] bool are true in each sequence, int64 [n]."""
        starts = self.layout.row * cells.shape[1] + self.layout.start
        # 16 bits hold the longest sequence there may be.
        return np.add.reduceat(cells.ravel().view(np.uint8), starts, dtype=np.uint16).astype(np.int64)

    def shuffled(self, cells: np.ndarray, most: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(cells, how many of each sequence [n]): the true ones of `cells` [B, S], at most `most` [n] of each sequence,
        sequence by sequence and each sequence in random order.

        A cell's random bits, the number of its sequence in the row and its column share one integer, so sorting the
        rows does it all. Integers of 32 bits sort several times as fast as those of 64 and are taken while they leave
        16 random bits: two cells that tie keep the order of the text.
        """
        rows, length = cells.shape
        row = self.layout.row
        column_bits, sequence_bits = (int(n - 1).bit_length() for n in (length, self.sequences_per_row))
        dtype: Any = np.uint32 if column_bits + sequence_bits <= 16 else np.uint64
        width = np.iinfo(dtype).bits
        low = dtype(2**column_bits - 1)
        keys = _random_bits(self.row_keys, length, dtype)
        if sequence_bits:
            keys >>= dtype(sequence_bits)
        keys &= ~low
        keys |= np.arange(length, dtype=dtype)
        if sequence_bits:
            keys |= self._numbers(length).astype(dtype) << dtype(width - sequence_bits)
        keys |= (cells.view(np.int8) - np.int8(1)).astype(dtype)  # -1, so all bits, where it is no candidate
        keys.sort(axis=1)
        counts = self.per_sequence(cells)
        before = np.cumsum(counts) - counts
        first_of_row = before[np.searchsorted(row, row)]
        taken = counts if most is None else np.minimum(counts, most)
        begin = row * length + before - first_of_row
        columns = keys.ravel()[np.repeat(begin, taken) + ragged_range(taken)] & low
        return np.repeat(row * length, taken) + columns.astype(np.int64), taken

    def _numbers(self, length: int) -> np.ndarray:
        """The number of each cell's sequence in its row, uint32 [B, S]; what follows a sequence counts as its own."""
        rows, row, start = len(self.row_keys), self.layout.row, self.layout.start
        steps = np.zeros((rows, length), np.uint32)
        steps[row, start] = start > 0
        return np.cumsum(steps, axis=1, dtype=np.uint32)


def ragged_range(lengths: np.ndarray) -> np.ndarray:
    """0 … lengths[0] - 1, 0 … lengths[1] - 1, …; int64."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)


def _random_bits(row_keys: np.ndarray, length: int, dtype: Any) -> np.ndarray:
    """Random integers [B, length]: uint64, or uint32, two of each 64-bit draw."""
    draws = length if dtype is np.uint64 else (length + 1) // 2
    drawn = randomness.bits(row_keys[:, None], np.arange(draws))
    return drawn.astype("<u8", copy=False).view(np.dtype(dtype).newbyteorder("<"))[:, :length]
