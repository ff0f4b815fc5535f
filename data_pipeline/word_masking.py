"""Masking by whole words: word by word as the reference's whole-word masking, or in spans as SpanBERT."""

from typing import NamedTuple

import numpy as np

from data_pipeline import randomness
from data_pipeline.candidates import Candidates, ragged_range

SPAN_LENGTHS = np.arange(1, 11)  # words; SpanBERT (arXiv 1907.10529, section 3.1): geometric, p = 0.2, at most 10
SPAN_SHARES = 0.2 * 0.8 ** (SPAN_LENGTHS - 1) / (1 - 0.8**10)

_SPAN_LENGTH = np.array([2 << 32])  # the counter of a row's key for lengths of spans


class _Words(NamedTuple):
    """W words in reading order; int64 [W] but for the first."""

    opens: np.ndarray
    """[B, S] bool: the first token of a word."""
    start: np.ndarray
    """Its first cell."""
    length: np.ndarray
    """Tokens."""
    last_of_segment: np.ndarray
    """The last word before the next special token."""


def choose_words(
    candidates: Candidates, input_ids: np.ndarray, word_starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whole words in random order up to the quota of tokens; one that would overshoot it is skipped.

    The first token of a segment opens a word even where truncation cut one in two.
    """
    words = _words(candidates, input_ids, word_starts)
    cells, counts = candidates.shuffled(words.opens)
    length_at = np.zeros(input_ids.size, np.int64)
    length_at[words.start] = words.length
    lengths = length_at[cells]
    taken, left = _fitting(lengths, np.repeat(np.arange(len(counts)), counts), candidates.quota)
    chosen = np.repeat(cells[taken], lengths[taken]) + ragged_range(lengths[taken])
    return chosen, chosen, candidates.quota - left


def choose_spans(
    candidates: Candidates, input_ids: np.ndarray, word_starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spans of whole words up to the quota of tokens (SpanBERT, section 3.1).

    A span begins at the word of a token drawn from those not yet chosen and runs over a geometric number of words,
    within its segment; before a word that would overshoot the quota it ends. What stands in place of its tokens is
    decided once for the span.
    """
    words = _words(candidates, input_ids, word_starts)
    cells, counts = candidates.shuffled(candidates.eligible)
    word_at = np.cumsum(words.opens.ravel()) - 1
    begin, left, used = np.cumsum(counts) - counts, candidates.quota.copy(), np.zeros_like(counts)
    anchor = np.full(len(words.start), -1)  # of each chosen word: the cell that its span was drawn from
    active = np.flatnonzero(counts)
    while active.size:
        drawn = cells[begin[active] + used[active]]
        used[active] += 1
        fresh = np.flatnonzero(anchor[word_at[drawn]] < 0)
        sequence, drawn = active[fresh], drawn[fresh]
        first = word_at[drawn]
        span = np.minimum(first[:, None] + SPAN_LENGTHS - 1, words.last_of_segment[first, None])
        reach = first + _span_lengths(drawn, candidates) - 1
        wanted = (np.diff(span, axis=1, prepend=-1) > 0) & (span <= reach[:, None]) & (anchor[span] < 0)
        lengths = np.where(wanted, words.length[span], 0)
        wanted &= np.cumsum(lengths, axis=1) <= left[sequence, None]
        anchor[span[wanted]] = np.repeat(drawn, wanted.sum(axis=1))
        left[sequence] -= (lengths * wanted).sum(axis=1)
        active = active[(left[active] > 0) & (used[active] < counts[active])]
    chosen = np.flatnonzero(anchor >= 0)
    lengths = words.length[chosen]
    tokens = np.repeat(words.start[chosen], lengths) + ragged_range(lengths)
    return tokens, np.repeat(anchor[chosen], lengths), candidates.quota - left


def _span_lengths(cells: np.ndarray, candidates: Candidates) -> np.ndarray:
    """The length in words of a span drawn from each cell."""
    width = candidates.eligible.shape[1]
    keys = randomness.bits(candidates.row_keys, _SPAN_LENGTH)[cells // width]
    drawn = randomness.uniform(keys, cells % width)
    return 1 + np.searchsorted(np.cumsum(SPAN_SHARES)[:-1], drawn, side="right")


def _words(candidates: Candidates, input_ids: np.ndarray, word_starts: np.ndarray) -> _Words:
    """A word is a piece that opens one and those that go on with it. No word crosses a special token."""
    eligible = candidates.eligible
    first_of_segment = eligible.copy()
    first_of_segment[:, 1:] &= ~eligible[:, :-1]
    opens = eligible & word_starts[input_ids] | first_of_segment
    borders = np.flatnonzero(opens | ~eligible)
    is_word = opens.ravel()[borders]
    start = borders[is_word]
    length = np.diff(borders, append=input_ids.size)[is_word]
    segment_begins = np.append(np.flatnonzero(first_of_segment.ravel()[start]), len(start))
    return _Words(opens, start, length, np.repeat(segment_begins[1:] - 1, np.diff(segment_begins)))


def _fitting(lengths: np.ndarray, sequence: np.ndarray, quota: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(which of the words, taken in order, fit into the quota [n] of their sequence, the others being skipped, bool
    [W]; what is left of the quota [n]).

    All words up to the first that overshoots are taken at once; then those behind it that still fit, and so on.
    """
    taken, left = np.zeros(len(lengths), bool), quota.copy()
    open_ = np.arange(len(lengths))
    while open_.size:
        open_ = open_[lengths[open_] <= left[sequence[open_]]]
        owner, total = sequence[open_], np.cumsum(lengths[open_])
        first = np.flatnonzero(np.diff(owner, prepend=-1))
        before = np.repeat((total - lengths[open_])[first], np.diff(np.append(first, len(open_))))
        fits = total - before <= left[owner]
        taken[open_[fits]] = True
        left -= np.bincount(owner[fits], lengths[open_[fits]], len(left)).astype(np.int64)
        open_ = open_[~fits]
    return taken, left
