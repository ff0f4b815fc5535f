"""Sentence pairs against the reference in plain loops: draw by draw, and as distributions."""

import functools
import random
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import Dice, Document, Pair, Place, next_pair, pairs_of_document, target_length
from scipy import stats

from data_pipeline import pairing, randomness
from data_pipeline.config import DataConfig
from data_pipeline.store import Documents

P_VALUE = 0.01  # seeds are fixed: what agrees now agrees for good
CORPORA = {  # tokens in a sentence, sentences in a document
    "encyclopedia": (lambda rng: 1 + rng.negative_binomial(3, 0.12), lambda rng: 1 + rng.geometric(0.06)),
    "a paragraph a line": (lambda rng: 40 + rng.negative_binomial(3, 0.03), lambda rng: 1 + rng.poisson(6)),
    "one sentence a document": (lambda rng: 1 + rng.negative_binomial(3, 0.12), lambda rng: 1),
}


def flat(documents: Iterable[Iterable[int]]) -> Documents:
    """Documents given by the lengths of their sentences. A token is its own number."""
    lengths = [list(sentences) for sentences in documents]
    sentence_offsets = np.cumsum([0] + [length for sentences in lengths for length in sentences])
    document_offsets = np.cumsum([0] + [len(sentences) for sentences in lengths])
    return Documents(np.arange(sentence_offsets[-1], dtype=np.uint32), sentence_offsets, document_offsets)


def nested(documents: Documents) -> list[Document]:
    tokens, offsets, borders = (array.tolist() for array in documents)
    return [
        [tokens[offsets[n] : offsets[n + 1]] for n in range(first, last)] for first, last in zip(borders, borders[1:])
    ]


def corpus(name: str, documents: int, seed: int) -> Documents:
    rng = np.random.default_rng(seed)
    tokens, sentences = CORPORA[name]
    return flat([tokens(rng) for _ in range(sentences(rng))] for _ in range(documents))


def spans(pair: Pair) -> tuple[int, int, int, int, int]:
    assert pair.a == list(range(pair.a[0], pair.a[-1] + 1)) and pair.b == list(range(pair.b[0], pair.b[-1] + 1))
    return pair.a[0], len(pair.a), pair.b[0], len(pair.b), int(pair.is_random)


class SameDice(Dice):
    """Throws what the vectorised code throws, asked for one decision at a time."""

    def __init__(self, documents: Documents, key: np.uint64):
        self.borders, self.draws = documents.document_offsets, pairing._Draws(key)

    def is_short(self, document: int, probability: float) -> bool:
        return randomness.uniform(self.draws.short, np.array([document]))[0] < probability

    def target(self, document: int, least: int, most: int) -> int:
        return least + self._integer(self.draws.target, document, most - least + 1)

    def a_end(self, place: Place, most: int) -> int:
        return 1 + self._integer(self.draws.a_end, self._sentence(place), most)

    def is_random(self, place: Place) -> bool:
        return bool(self._integer(self.draws.is_random, self._sentence(place), 2))

    def other_document(self, place: Place, attempt: int, documents: int) -> int:
        return self._integer(self.draws.document[attempt], self._sentence(place), documents)

    def first_sentence(self, place: Place, sentences: int) -> int:
        return self._integer(self.draws.sentence, self._sentence(place), sentences)

    def cut_front(self, place: Place, segment: str, cut_before: int) -> bool:
        key = {"a": self.draws.front_a, "b": self.draws.front_b}[segment]
        return bool(_coins(key, self._sentence(place), cut_before // 64) >> 63 - cut_before % 64 & 1)

    def _sentence(self, place: Place) -> int:
        return int(self.borders[place[0]]) + place[1]

    def _integer(self, key: np.uint64, counter: int, count: int) -> int:
        return int(randomness.integers(key, np.array([counter]), count)[0])


@functools.cache
def _coins(key: np.uint64, counter: int, word: int) -> int:
    """64 of the flips that `coin_flips` counts, the first one on top."""
    own = randomness.bits(key, np.array([counter]))[0]
    return int(randomness.bits(own, np.array([word]))[0])


def assert_equal_to_the_reference(documents: Documents, config: DataConfig, key: np.uint64) -> list[tuple[int, ...]]:
    texts, dice = nested(documents), SameDice(documents, key)
    expected = [
        spans(pair)
        for index in range(len(texts))
        for pair in pairs_of_document(texts, index, config.sequence_length, config.short_sequence_probability, dice)
    ]
    found = pairing.next_sentence_pairs(documents, config, key)
    assert all(array.dtype == np.int64 for array in found)
    assert list(zip(*(array.tolist() for array in found), strict=True)) == expected
    return expected


@pytest.mark.parametrize("name", CORPORA)
@pytest.mark.parametrize("length", [5, 6, 7, 16, 64, 128, 512])
def test_given_the_same_draws_the_sequences_are_those_of_the_reference(name, length):
    documents = corpus(name, 60, seed=length)
    for probability in (0.1, 1.0):
        config = DataConfig(sequence_length=length, short_sequence_probability=probability)
        assert_equal_to_the_reference(documents, config, randomness.key(length, 3))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=12), min_size=2, max_size=12),
    st.integers(5, 48),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.integers(0, 2**64 - 1),
)
def test_given_the_same_draws_corpora_of_any_shape_agree_with_the_reference(shape, length, probability, seed):
    config = DataConfig(sequence_length=length, short_sequence_probability=probability)
    documents = flat(shape)
    for a_start, a_length, b_start, b_length, _ in assert_equal_to_the_reference(documents, config, np.uint64(seed)):
        assert a_length >= 1 and b_length >= 1 and a_length + b_length <= length - 3
        assert 0 <= min(a_start, b_start) and max(a_start + a_length, b_start + b_length) <= len(documents.tokens)


def test_sentences_far_longer_than_a_row_are_cut_as_the_reference_cuts_them():
    for length in (5, 128):
        documents = flat([[3000, 700], [1, 2500], [900], [1, 1, 5000, 1]] * 3)
        assert_equal_to_the_reference(documents, DataConfig(sequence_length=length), randomness.key(length))


def test_between_two_documents_the_other_one_is_found_in_ten_tries_or_given_up():
    documents = flat([[5]] * 2)
    labels, own = [], 0
    for seed in range(2000):
        pairs = pairing.next_sentence_pairs(documents, DataConfig(sequence_length=16), randomness.key(seed))
        own += int((pairs.b_start == pairs.a_start).sum())
        labels += pairs.next_sentence_labels.tolist()
    assert labels == [1] * 4000  # paired with itself, it still counts as random
    assert stats.binomtest(own, 4000, 0.5**10).pvalue > P_VALUE
    for seed in range(100):
        assert_equal_to_the_reference(documents, DataConfig(sequence_length=16), randomness.key(seed))


def test_documents_of_one_sentence_give_random_labels_alone():
    documents = corpus("one sentence a document", 500, seed=1)
    pairs = pairing.next_sentence_pairs(documents, DataConfig(), randomness.key(0))
    assert len(pairs.a_start) == 500 and pairs.next_sentence_labels.all()


@pytest.mark.parametrize("length", [128, 512])
def test_a_random_segment_comes_from_another_document_and_a_true_one_follows_its_first(length):
    documents = corpus("encyclopedia", 2000, seed=2)
    pairs = pairing.next_sentence_pairs(documents, DataConfig(sequence_length=length), randomness.key(4))
    starts = documents.sentence_offsets[documents.document_offsets]
    of_a, of_b = (np.searchsorted(starts, start, side="right") for start in (pairs.a_start, pairs.b_start))
    is_random = pairs.next_sentence_labels == 1
    assert (of_a[is_random] != of_b[is_random]).all() and (of_a[~is_random] == of_b[~is_random]).all()
    follows = pairs.b_start[~is_random] >= (pairs.a_start + pairs.a_length)[~is_random]
    assert follows.all()
    others = np.bincount(of_b[is_random] % 50, minlength=50)
    assert stats.chisquare(others).pvalue > P_VALUE


def test_every_token_of_a_document_is_reached_where_nothing_is_cut():
    """After random text the walk goes on behind A, else behind B: between starts no sentence is passed over."""
    documents = corpus("encyclopedia", 300, seed=3)
    config = DataConfig(sequence_length=4096, short_sequence_probability=0.0)  # longer than a chunk and a sentence
    pairs = pairing.next_sentence_pairs(documents, config, randomness.key(5))
    is_true = pairs.next_sentence_labels == 0
    used = np.zeros(len(documents.tokens), int)
    for start, length in [
        *zip(pairs.a_start, pairs.a_length), *zip(pairs.b_start[is_true], pairs.b_length[is_true])
    ]:
        used[start : start + length] += 1
    whole = np.add.reduceat(used, documents.sentence_offsets[documents.document_offsets[:-1]])
    sizes = np.diff(documents.sentence_offsets[documents.document_offsets])
    assert used.max() == 1 and (whole == sizes).mean() > 0.99  # truncation of a chunk beyond 4093 tokens is rare


def test_offsets_beyond_2_31_tokens_are_addressed():
    near = corpus("encyclopedia", 200, seed=6)
    far = near._replace(sentence_offsets=near.sentence_offsets + 2**33)
    pairs, shifted = (pairing.next_sentence_pairs(each, DataConfig(), randomness.key(6)) for each in (near, far))
    expected = pairs._replace(a_start=pairs.a_start + 2**33, b_start=pairs.b_start + 2**33)
    np.testing.assert_array_equal(np.stack(shifted), np.stack(expected))


# --- distributions ---------------------------------------------------------------------------------------------------

Examples = list[list[tuple[int, int, int, int, int]]]  # for each document


def ours(documents: Documents, config: DataConfig, seed: int) -> Examples:
    rows = np.stack(pairing.next_sentence_pairs(documents, config, randomness.key(seed)), axis=1)
    # A random B may lie anywhere; the document is A's.
    starts = documents.sentence_offsets[documents.document_offsets]
    of_document = np.searchsorted(starts, rows[:, 0], side="right") - 1
    cuts = np.searchsorted(of_document, np.arange(1, len(documents.document_offsets) - 1))
    return [[tuple(row) for row in part.tolist()] for part in np.split(rows, cuts)]


def theirs(
    documents: Documents, config: DataConfig, seed: int, walk: Callable[..., list[Pair]] = pairs_of_document,
    dice: type[Dice] = Dice,
) -> Examples:  # fmt: skip
    texts, throws = nested(documents), dice(random.Random(seed))
    settings = (config.sequence_length, config.short_sequence_probability, throws)
    return [[spans(pair) for pair in walk(texts, index, *settings)] for index in range(len(texts))]


def facts(documents: Documents, examples: Examples) -> dict[str, np.ndarray]:
    """One number of each kind from each document, so that all are independent: what a document gives as a whole,
    and what one of its examples is like.
    """
    offsets = documents.sentence_offsets
    picked = np.array([pairs[number % len(pairs)] for number, pairs in enumerate(examples)])
    a_start, a_length, b_start, b_length, label = picked.T
    b_end = b_start + b_length
    sentence_a, sentence_b = (np.searchsorted(offsets, start, side="right") - 1 for start in (a_start, b_start))
    totals = [[a + b for _, a, _, b, _ in pairs] for pairs in examples]
    return {
        "examples of a document": np.array([len(pairs) for pairs in examples]),
        "random examples of a document": np.array([sum(pair[4] for pair in pairs) for pairs in examples]),
        "tokens in all examples": np.array([sum(total) for total in totals]),
        "shortest example": np.array([min(total) for total in totals]),
        "length of A": a_length,
        "length of B": b_length,
        "length of a random B": b_length[label == 1],
        "length of a true B": b_length[label == 0],
        "total length": a_length + b_length,
        "label": label,
        "tokens cut off the front of A": a_start - offsets[sentence_a],
        "tokens cut off the front of B": b_start - offsets[sentence_b],
        "tokens used of B's last sentence": b_end - offsets[np.searchsorted(offsets, b_end) - 1],
        "place of B's sentence": sentence_b,
    }


def difference(first: np.ndarray, second: np.ndarray) -> float:
    """p-value of a chi-square test that two samples come from one distribution, in at most 20 equally full cells."""
    if not len(first) or not len(second):
        return float(len(first) == len(second))
    edges = np.unique(np.quantile(np.concatenate([first, second]), np.linspace(0, 1, 21), method="inverted_cdf"))
    table = np.array([np.bincount(np.searchsorted(edges, sample), minlength=len(edges)) for sample in (first, second)])
    table = table[:, table.sum(axis=0) > 0]
    return 1.0 if table.shape[1] == 1 else float(stats.chi2_contingency(table, correction=False).pvalue)


def differences(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: difference(first[name], second[name]) for name in first}


@pytest.mark.parametrize("name", CORPORA)
@pytest.mark.parametrize("length", [128, 512])
def test_distributions_agree_with_the_reference(name, length):
    documents, config = corpus(name, 8000, seed=0), DataConfig(sequence_length=length)
    found, expected = facts(documents, ours(documents, config, 1)), facts(documents, theirs(documents, config, 1))
    p_values = differences(found, expected)
    # One bound for all: the chance that the smallest of so many p-values is this small.
    assert min(p_values.values()) * len(p_values) > P_VALUE, p_values


def target_of_each_example(texts, index, length, short_probability, dice):
    pairs, start = [], 0
    while start < len(texts[index]):
        target = target_length(index, length - 3, short_probability, dice)
        pair, start = next_pair(texts, index, start, target, length - 3, dice)
        pairs.append(pair)
    return pairs


def unused_sentences_dropped(texts, index, length, short_probability, dice):
    target, pairs, start = target_length(index, length - 3, short_probability, dice), [], 0
    while start < len(texts[index]):
        end, size = start, 0
        while end < len(texts[index]) and size < target:
            end, size = end + 1, size + len(texts[index][end])
        pairs.append(next_pair(texts, index, start, target, length - 3, dice)[0])
        start = end
    return pairs


class CutAtTheBack(Dice):
    def cut_front(self, *place: object) -> bool:
        return False


class RandomFromTheStart(Dice):
    def first_sentence(self, place: Place, sentences: int) -> int:
        return 0


class MoreRandom(Dice):
    def is_random(self, place: Place) -> bool:
        return self.rng.random() < 0.57


class NeverShort(Dice):
    def is_short(self, document: int, probability: float) -> bool:
        return False


FAULTS = [
    {"walk": target_of_each_example},
    {"walk": unused_sentences_dropped},
    {"dice": CutAtTheBack},
    {"dice": RandomFromTheStart},
    {"dice": MoreRandom},
    {"dice": NeverShort},
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: next(iter(fault.values())).__name__)
def test_the_comparison_of_distributions_would_notice(fault):
    documents, config = corpus("encyclopedia", 8000, seed=0), DataConfig(sequence_length=128)
    broken = facts(documents, theirs(documents, config, 1, **fault))
    p_values = differences(facts(documents, ours(documents, config, 1)), broken)
    assert min(p_values.values()) * len(p_values) < P_VALUE / 10, p_values
