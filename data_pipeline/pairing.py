"""Sentences → sequences: which sentences make segment A and segment B of each training example.

Each way of pairing is a function of its own from a window's documents to sequences, vectorised over all sentences;
`PAIRINGS` at the end gives them their names.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from data_pipeline import randomness
from data_pipeline.config import DataConfig
from data_pipeline.sequences import (
    Sequences, cut_long_sentences, document_of_sentence, reached, target_lengths, truncate
)
from data_pipeline.store import Documents

RANDOM_DOCUMENT_TRIES = 10  # the reference gives up after ten draws and pairs a document with itself


def next_sentence_pairs(documents: Documents, config: DataConfig, key: np.uint64) -> Sequences:
    """Draws one pass of the reference's sentence pairs (`create_pretraining_data.py`, BERT section A.1).

    The reference walks each document: a chunk of sentences up to a target length is cut at a random place; if its
    second part is replaced by random text, the walk goes on right after A, else after the chunk. A chunk of one
    sentence is always given random text, so more than half of the labels are 1.
    """
    offsets, max_tokens, draws = documents.sentence_offsets, config.sequence_length - 3, _draws(key)
    chunks = _chunks(documents, config, max_tokens, draws)
    is_random = (chunks.size == 1) | _coin(draws["is_random"], chunks.start)
    chunks, is_random = _walked(chunks, np.where(is_random, chunks.a_end, chunks.end), documents, is_random)

    start, a_end = chunks.start, chunks.a_end
    a_length = offsets[a_end] - offsets[start]
    b_first, b_end = a_end.copy(), chunks.end.copy()
    chosen = np.flatnonzero(is_random)
    other = _other_document(start[chosen], chunks.document[chosen], documents, draws)
    borders = documents.document_offsets
    first = borders[other] + randomness.integers(draws["sentence"], start[chosen], borders[other + 1] - borders[other])
    b_first[chosen] = first
    b_end[chosen] = _end_of_segment(documents, other, offsets[first], chunks.target[chosen] - a_length[chosen])
    pairs = Sequences(offsets[start], a_length, offsets[b_first], offsets[b_end] - offsets[b_first],
                      is_random.astype(np.int64))  # fmt: skip
    return truncate(pairs, max_tokens, start, (draws["front_a"], draws["front_b"]))


def balanced_next_sentence_pairs(documents: Documents, config: DataConfig, key: np.uint64) -> Sequences:
    """The reference's chunks with a label that is a fair coin, and that nothing but the text gives away.

    Chunks are cut as in sentence-order prediction. Each finds a partner of another document whose B is about as long,
    and a coin for the two decides whether they exchange their Bs: a random B begins, ends and is as long as a true
    one, because it is one. A chunk that finds none tosses its own coin for as many tokens of another document.
    """
    max_tokens, draws = config.sequence_length - 3, _draws(key)
    documents, chunks, coin, a_length = _halves(documents, config, max_tokens, draws)
    offsets = documents.sentence_offsets
    b_start = offsets[chunks.start] + a_length
    b_length = offsets[chunks.end] - b_start
    own = np.arange(len(b_start))
    partner = _partners(chunks.document, b_length, draws)
    is_random = coin[np.where(partner < 0, own, np.minimum(own, partner))]
    source = np.where(is_random & (partner >= 0), partner, own)
    pairs = Sequences(offsets[chunks.start], a_length, b_start[source], b_length[source], is_random.astype(np.int64))
    alone = np.flatnonzero(is_random & (partner < 0))
    start, length = _as_long_elsewhere(chunks, alone, b_start, b_length, documents, draws)
    found = length > 0
    pairs.b_start[alone[found]], pairs.b_length[alone[found]] = start[found], length[found]
    pairs.next_sentence_labels[alone[~found]] = 0
    return truncate(pairs, max_tokens, chunks.start, (draws["front_a"], draws["front_b"]))


def sentence_order_pairs(documents: Documents, config: DataConfig, key: np.uint64) -> Sequences:
    """Sentence-order prediction (ALBERT, arXiv 1909.11942, section 3.1): A and B are neighbours in the text; with
    probability 0.5 they have changed places, and the label is 1.

    Chunks are the reference's, one after another. So that each can be cut, sentences of more than half a row are cut
    into parts first, and a chunk of one part is cut at a random token; single tokens are left out.
    """
    max_tokens, draws = config.sequence_length - 3, _draws(key)
    documents, chunks, swapped, length = _halves(documents, config, max_tokens, draws)
    offsets = documents.sentence_offsets
    first, middle, end = offsets[chunks.start], offsets[chunks.start] + length, offsets[chunks.end]
    pairs = Sequences(
        a_start=np.where(swapped, middle, first),
        a_length=np.where(swapped, end - middle, length),
        b_start=np.where(swapped, first, middle),
        b_length=np.where(swapped, length, end - middle),
        next_sentence_labels=swapped.astype(np.int64),
    )
    return truncate(pairs, max_tokens, chunks.start, (draws["front_a"], draws["front_b"]))


def full_sentences(documents: Documents, config: DataConfig, key: np.uint64) -> Sequences:
    """[CLS] A [SEP]: as many whole sentences of one document as fit (DOC-SENTENCES of RoBERTa, arXiv 1907.11692,
    section 4.2), for masked-language modelling alone. A sentence longer than a row is cut; no token is left out.
    """
    return _filled(documents, config, key, documents.document_offsets)


def full_sentences_across_documents(documents: Documents, config: DataConfig, key: np.uint64) -> Sequences:
    """As `full_sentences`, but a row goes on in the next document (FULL-SENTENCES of RoBERTa).

    Documents end in a separator, as `with_separators` puts it there; one at the end of a sequence is left out.
    """
    separators = documents.sentence_offsets[documents.document_offsets[1:]] - 1
    drawn = _filled(documents, config, key, documents.document_offsets[[0, -1]])
    last = drawn.a_start + drawn.a_length - 1
    starts_so, ends_so = np.isin(drawn.a_start, separators), np.isin(last, separators)
    length = drawn.a_length - starts_so - ends_so
    kept = length > 0
    drawn = drawn._replace(a_start=drawn.a_start + starts_so, a_length=length)
    return Sequences(*(values[kept] for values in drawn))


def _filled(documents: Documents, config: DataConfig, key: np.uint64, borders: np.ndarray) -> Sequences:
    """Sentences up to each document's target length, on walks that begin at the sentences `borders` [n + 1]."""
    max_tokens, draws = config.sequence_length - 2, _draws(key)
    whole = cut_long_sentences(documents, max_tokens)
    offsets = whole.sentence_offsets
    borders = np.searchsorted(offsets, documents.sentence_offsets[borders])
    sentences, document = np.arange(len(offsets) - 1), document_of_sentence(whole)
    targets = target_lengths(len(whole.document_offsets) - 1, max_tokens, config.short_sequence_probability,
                             (draws["short"], draws["target"]))  # fmt: skip
    fitting = np.searchsorted(offsets, offsets[sentences] + targets[document], side="right") - 1
    walk_end = np.repeat(borders[1:], np.diff(borders))
    end = np.minimum(np.maximum(fitting, sentences + 1), walk_end)
    start = reached(end, borders)
    nothing = np.zeros(len(start), np.int64)
    return Sequences(offsets[start], offsets[end[start]] - offsets[start], nothing, nothing, nothing)


class _Chunks(NamedTuple):
    """The chunk that would begin at each sentence; all int64 [N]."""

    start: np.ndarray
    document: np.ndarray
    target: np.ndarray
    end: np.ndarray
    size: np.ndarray
    """Sentences in the chunk."""
    a_end: np.ndarray
    """Where A ends if it is cut between sentences: after the first, if there is but one."""


def _chunks(documents: Documents, config: DataConfig, max_tokens: int, draws: dict[str, np.uint64]) -> _Chunks:
    offsets, borders = documents.sentence_offsets, documents.document_offsets
    start, document = np.arange(len(offsets) - 1), document_of_sentence(documents)
    keys = (draws["short"], draws["target"])
    target = target_lengths(len(borders) - 1, max_tokens, config.short_sequence_probability, keys)[document]
    full = np.searchsorted(offsets, offsets[start] + target, side="left")
    end = np.minimum(full, borders[document + 1])
    size = end - start
    return _Chunks(start, document, target, end, size, start + 1 + randomness.integers(draws["a_end"], start, size - 1))


def _walked(
    chunks: _Chunks, successor: np.ndarray, documents: Documents, label: np.ndarray
) -> tuple[_Chunks, np.ndarray]:
    """The chunks, and their labels, that walks over the documents reach."""
    start = reached(successor, documents.document_offsets)
    return _Chunks(*(values[start] for values in chunks)), label[start]


def _halves(
    documents: Documents, config: DataConfig, max_tokens: int, draws: dict[str, np.uint64]
) -> tuple[Documents, _Chunks, np.ndarray, np.ndarray]:
    """Chunks one after another, each with a coin and the length of its first half: up to a sentence, or to a token
    where there is one sentence. Sentences of more than half a row are cut first: the documents are those that the
    chunks count in. Single tokens are left out.
    """
    documents = cut_long_sentences(documents, max(1, max_tokens // 2))
    offsets, chunks = documents.sentence_offsets, _chunks(documents, config, max_tokens, draws)
    chunks, coin = _walked(chunks, chunks.end, documents, _coin(draws["is_random"], chunks.start))
    tokens = offsets[chunks.end] - offsets[chunks.start]
    inside = 1 + randomness.integers(draws["cut"], chunks.start, np.maximum(tokens - 1, 1))
    length = np.where(chunks.size > 1, offsets[chunks.a_end] - offsets[chunks.start], inside)
    kept = tokens > 1
    return documents, _Chunks(*(values[kept] for values in chunks)), coin[kept], length[kept]


def _partners(document: np.ndarray, length: np.ndarray, draws: dict[str, np.uint64]) -> np.ndarray:
    """For each of N chunks one of another document, neighbours in the order of their length and partners of each other;
    -1 for what is left when all neighbours are of the same document.
    """
    count = len(document)
    left = np.lexsort((randomness.bits(draws["partner"], np.arange(count)), length))
    partner = np.full(count, -1)
    for attempt in range(RANDOM_DOCUMENT_TRIES):
        shifted = left[attempt % 2:]
        even, odd = shifted[:len(shifted) // 2 * 2].reshape(-1, 2).T
        different = document[even] != document[odd]
        partner[even[different]], partner[odd[different]] = odd[different], even[different]
        left = left[partner[left] < 0]
    return partner


def _as_long_elsewhere(
    chunks: _Chunks, chosen: np.ndarray, b_start: np.ndarray, b_length: np.ndarray, documents: Documents,
    draws: dict[str, np.uint64],
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """For each chosen chunk, start and length of text in another document that is as long as its B and begins as it
    does, with a sentence or inside of one; length 0 where no other document has a chunk."""
    document, offsets = chunks.document, documents.sentence_offsets
    first, last = (np.searchsorted(document, document[chosen], side) for side in ("left", "right"))
    others = len(document) - (last - first)
    drawn = randomness.integers(draws["elsewhere"], chosen, np.maximum(others, 1))
    other = np.minimum(drawn + np.where(drawn < first, 0, last - first), len(document) - 1)
    begin, end = (offsets[documents.document_offsets[document[other] + n]] for n in (0, 1))
    latest = np.maximum(end - b_length[chosen], begin)
    sentence = np.searchsorted(offsets, np.minimum(b_start[other], latest), side="right") - 1
    room = np.maximum(np.minimum(offsets[sentence + 1] - 1, latest) - offsets[sentence], 0)
    inside = np.minimum(1 + randomness.integers(draws["inside"], chosen, np.maximum(room, 1)), room)
    start = offsets[sentence] + np.where(chunks.size[chosen] == 1, inside, 0)
    return start, np.minimum(b_length[chosen], end - start) * (others > 0)


def _other_document(
    start: np.ndarray, document: np.ndarray, documents: Documents, draws: dict[str, np.uint64]
) -> np.ndarray:
    """For each chunk another document, or after ten draws its own."""
    other = document.copy()
    for attempt in range(RANDOM_DOCUMENT_TRIES):
        same = np.flatnonzero(other == document)
        if not same.size:
            break
        count = len(documents.document_offsets) - 1
        other[same] = randomness.integers(randomness.key(int(draws["document"]), attempt), start[same], count)
    return other


def _end_of_segment(documents: Documents, document: np.ndarray, start: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The sentence before which a segment from token `start` ends, holding `target` tokens or the document's rest."""
    end = np.searchsorted(documents.sentence_offsets, start + np.maximum(target, 1), side="left")
    return np.minimum(end, documents.document_offsets[document + 1])


_KINDS = (
    "short", "target", "a_end", "is_random", "sentence", "front_a", "front_b", "document", "cut", "partner",
    "elsewhere", "inside",
)  # fmt: skip


def _draws(key: np.uint64) -> dict[str, np.uint64]:
    """One key for each kind of random decision."""
    return {kind: randomness.key(int(key), number) for number, kind in enumerate(_KINDS)}


def _coin(key: np.uint64, counters: np.ndarray) -> np.ndarray:
    return (randomness.bits(key, counters) >> np.uint64(63)).astype(bool)


class Pairing(NamedTuple):
    """A way of pairing and what it asks of a window."""

    draw: Callable[[Documents, DataConfig, np.uint64], Sequences]
    """One pass over a window's documents."""
    documents: int
    """The fewest it can do with."""
    separated: bool = False
    """Whether each document is to end in a separator."""


# What `data.pairing` names.
PAIRINGS = {
    "nsp": Pairing(next_sentence_pairs, 2),
    "nsp-balanced": Pairing(balanced_next_sentence_pairs, 2),
    "sop": Pairing(sentence_order_pairs, 1),
    "none": Pairing(full_sentences, 1),
    "none-across": Pairing(full_sentences_across_documents, 1, separated=True),
}
