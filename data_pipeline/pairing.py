"""Sentences → sequences: which sentences make segment A and segment B of each training example.

Vectorised over all sentences of a window. Nothing is built here: a sequence is four integers that point into the
window's tokens, and the tokens are gathered when a batch is made.
"""

from typing import NamedTuple

import numpy as np

from data_pipeline import randomness
from data_pipeline.config import DataConfig
from data_pipeline.store import Documents

RANDOM_DOCUMENT_TRIES = 10  # the reference gives up after ten draws and pairs a document with itself


class Sequences(NamedTuple):
    """N sequences in the order of the text; starts and lengths count tokens of the window. All int64 [N]."""

    a_start: np.ndarray
    a_length: np.ndarray
    b_start: np.ndarray
    b_length: np.ndarray
    next_sentence_labels: np.ndarray
    """1 = B is a random sentence, 0 = B follows A."""


def next_sentence_pairs(documents: Documents, config: DataConfig, key: np.uint64) -> Sequences:
    """Draws one pass of the reference's sentence pairs (`create_pretraining_data.py`, BERT section A.1).

    The reference walks each document: a chunk of sentences up to a target length is cut at a random place; if its
    second part is replaced by random text, the walk goes on right after A, else after the chunk. Where a walk goes
    from a sentence depends on draws of that sentence alone. So every sentence gets its draws and its successor at
    once, and the sentences that the walks reach are found by doubling their stride.
    """
    offsets, borders = documents.sentence_offsets, documents.document_offsets
    draws = _Draws(key)
    max_tokens = config.sequence_length - 3
    targets = _target_lengths(len(borders) - 1, max_tokens, config.short_sequence_probability, draws)

    sentences = np.arange(len(offsets) - 1)
    document = np.repeat(np.arange(len(borders) - 1), np.diff(borders))
    full = np.searchsorted(offsets, offsets[sentences] + targets[document], side="left")
    chunk_end = np.minimum(full, borders[document + 1])
    in_chunk = chunk_end - sentences
    a_end = sentences + 1 + randomness.integers(draws.a_end, sentences, in_chunk - 1)
    is_random = (in_chunk == 1) | (randomness.bits(draws.is_random, sentences) >> np.uint64(63)).astype(bool)

    successor = np.where(is_random, a_end, chunk_end)
    start = _reached(successor, borders)
    document, a_end, chunk_end, is_random = document[start], a_end[start], chunk_end[start], is_random[start]

    a_length = offsets[a_end] - offsets[start]
    b_first, b_end = a_end.copy(), chunk_end.copy()
    chosen = np.flatnonzero(is_random)
    b_first[chosen], b_end[chosen] = _random_segment(
        documents, start[chosen], document[chosen], targets[document[chosen]] - a_length[chosen], draws
    )
    pairs = Sequences(offsets[start], a_length, offsets[b_first], offsets[b_end] - offsets[b_first], is_random)
    return _truncate(pairs._replace(next_sentence_labels=is_random.astype(np.int64)), max_tokens, start, draws)


class _Draws:
    """One key for each kind of random decision."""

    def __init__(self, key: np.uint64) -> None:
        names = ("short", "target", "a_end", "is_random", "sentence", "front_a", "front_b")
        for number, name in enumerate(names):
            setattr(self, name, randomness.key(int(key), number))
        self.document = [randomness.key(int(key), len(names), attempt) for attempt in range(RANDOM_DOCUMENT_TRIES)]

    short: np.uint64
    target: np.uint64
    a_end: np.uint64
    is_random: np.uint64
    sentence: np.uint64
    front_a: np.uint64
    front_b: np.uint64


def _target_lengths(documents: int, max_tokens: int, short_probability: float, draws: _Draws) -> np.ndarray:
    """One target length for each document and pass, int64 [documents]."""
    counter = np.arange(documents)
    short = randomness.uniform(draws.short, counter) < short_probability
    return np.where(short, 2 + randomness.integers(draws.target, counter, max_tokens - 1), max_tokens)


def _reached(successor: np.ndarray, borders: np.ndarray) -> np.ndarray:
    """Sentences on the walk of any document, ascending. A walk starts at a border and ends before the next one.

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


def _random_segment(
    documents: Documents, start: np.ndarray, document: np.ndarray, target: np.ndarray, draws: _Draws
) -> tuple[np.ndarray, np.ndarray]:
    """Sentences [first, end) of another document that hold at least `target` tokens, or run to its end. [n], [n]."""
    offsets, borders = documents.sentence_offsets, documents.document_offsets
    other = document.copy()
    for draw in draws.document:
        same = np.flatnonzero(other == document)
        if not same.size:
            break
        other[same] = randomness.integers(draw, start[same], len(borders) - 1)
    first = borders[other] + randomness.integers(draws.sentence, start, borders[other + 1] - borders[other])
    end = np.searchsorted(offsets, offsets[first] + np.maximum(target, 1), side="left")
    return first, np.minimum(end, borders[other + 1])


def _truncate(pairs: Sequences, max_tokens: int, start: np.ndarray, draws: _Draws) -> Sequences:
    """Cuts pairs to max_tokens as the reference does token by token: off the longer one, B on a tie, front or back
    with equal chance. How much each loses follows from the lengths; how much of it at the front is a coin for each.
    """
    excess = np.maximum(pairs.a_length + pairs.b_length - max_tokens, 0)
    difference = pairs.a_length - pairs.b_length
    from_longer = np.minimum(excess, np.abs(difference))
    shared = excess - from_longer
    a_cut = shared // 2 + np.where(difference > 0, from_longer, 0)
    b_cut = excess - a_cut
    return pairs._replace(
        a_start=pairs.a_start + randomness.coin_flips(draws.front_a, start, a_cut),
        a_length=pairs.a_length - a_cut,
        b_start=pairs.b_start + randomness.coin_flips(draws.front_b, start, b_cut),
        b_length=pairs.b_length - b_cut,
    )


# What `data.pairing` names: each draws one pass over a window's documents.
PAIRINGS = {"nsp": next_sentence_pairs}
