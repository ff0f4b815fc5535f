"""Sequences: what one training example is made of, and what all ways of drawing them share.

A pairing walks over the sentences of each document in chunks of about a target length. Where a walk goes from a
sentence depends on draws of that sentence alone, so all sentences are drawn for at once and the ones that the walks
reach are found by doubling their stride: no Python loop runs over sentences.
"""

from typing import NamedTuple

import numpy as np

from data_pipeline import randomness
from data_pipeline.store import Documents


class Sequences(NamedTuple):
    """N sequences in the order of the text. Nothing is built here: starts and lengths count tokens of the documents
    they were drawn from, and the tokens are gathered when a batch is made. All int64 [N].
    """

    a_start: np.ndarray
    a_length: np.ndarray
    b_start: np.ndarray
    b_length: np.ndarray
    """0 = the sequence is [CLS] A [SEP] alone and has no label."""
    next_sentence_labels: np.ndarray
    """1 = B is random text (or, in sentence-order prediction, stands before A in the text), 0 = B follows A."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence, [CLS] and [SEP] included, int64 [N]."""
        return self.a_length + self.b_length + np.where(self.b_length > 0, 3, 2)


def target_lengths(documents: int, max_tokens: int, short_probability: float, keys: tuple[np.uint64, np.uint64]
                   ) -> np.ndarray:  # fmt: skip
    """One target length for each document and pass, int64 [documents]: the longest, or now and then a random one."""
    counter = np.arange(documents)
    short = randomness.uniform(keys[0], counter) < short_probability
    return np.where(short, 2 + randomness.integers(keys[1], counter, max_tokens - 1), max_tokens)


def document_of_sentence(documents: Documents) -> np.ndarray:
    """The number of the document that each sentence belongs to, int64 [N]."""
    borders = documents.document_offsets
    return np.repeat(np.arange(len(borders) - 1), np.diff(borders))


def reached(successor: np.ndarray, borders: np.ndarray) -> np.ndarray:
    """Sentences on any of the walks, ascending: one begins at each border but the last and ends before the next.

    After round k the marked sentences are the first 2^k stops of each walk and `stride` jumps 2^k stops.
    """
    nowhere = len(successor)
    ends = np.zeros(nowhere + 1, bool)
    ends[borders[1:]] = True
    stride = np.append(np.where(ends[successor], nowhere, successor), nowhere)
    marked = np.zeros(nowhere + 1, bool)
    marked[borders[:-1]] = True
    while True:
        marked[stride[np.flatnonzero(marked)]] = True
        stride = stride[stride]
        if (stride[borders[:-1]] == nowhere).all():
            return np.flatnonzero(marked[:-1])


def cut_long_sentences(documents: Documents, longest: int) -> Documents:
    """The same text; sentences of more than `longest` tokens are cut into equal parts that hold no more."""
    offsets = documents.sentence_offsets
    lengths = np.diff(offsets)
    parts = np.maximum(-(-lengths // longest), 1)
    first = np.append(0, np.cumsum(parts))
    sentence = np.repeat(np.arange(len(parts)), parts)
    nth = np.arange(first[-1]) - first[sentence]
    starts = offsets[sentence] + lengths[sentence] * nth // parts[sentence]
    return Documents(documents.tokens, np.append(starts, offsets[-1]), first[documents.document_offsets])


def with_separators(documents: Documents, separator: int) -> Documents:
    """Each document gains a last sentence of one token, the separator."""
    offsets, borders = documents.sentence_offsets, documents.document_offsets
    tokens = np.insert(documents.tokens, offsets[borders[1:]], separator)
    lengths = np.insert(np.diff(offsets), borders[1:], 1)
    return Documents(tokens, np.append(0, np.cumsum(lengths)), borders + np.arange(len(borders)))


def truncate(pairs: Sequences, max_tokens: int, start: np.ndarray, keys: tuple[np.uint64, np.uint64]) -> Sequences:
    """Cuts pairs to max_tokens as the reference does token by token: off the longer one, B on a tie, front or back
    with equal chance. How much each loses follows from the lengths; how much of it at the front is a coin for each.
    `start` [N] tells the coins of one pair from those of another; `keys` are those of A's and B's coins.
    """
    excess = np.maximum(pairs.a_length + pairs.b_length - max_tokens, 0)
    difference = pairs.a_length - pairs.b_length
    from_longer = np.minimum(excess, np.abs(difference))
    shared = excess - from_longer
    a_cut = shared // 2 + np.where(difference > 0, from_longer, 0)
    b_cut = excess - a_cut
    return pairs._replace(
        a_start=pairs.a_start + randomness.coin_flips(keys[0], start, a_cut),
        a_length=pairs.a_length - a_cut,
        b_start=pairs.b_start + randomness.coin_flips(keys[1], start, b_cut),
        b_length=pairs.b_length - b_cut,
    )
