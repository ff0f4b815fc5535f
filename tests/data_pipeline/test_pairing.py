"""Every way of pairing: the reference's against its plain loops, draw by draw and as distributions; the others against
what they promise on any text.
"""

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import (
    Dice, Pair, PairingDice, Place, difference, difference_between_labels, next_pair, pairs_of_document, seen_of_pairs,
    target_length, truncate
)
from scipy import stats
from synthetic import TEXTS, flat, nested, text_like

from data_pipeline import pairing, randomness
from data_pipeline.config import DataConfig
from data_pipeline.sequences import Sequences, cut_long_sentences, with_separators
from data_pipeline.store import Documents

P_VALUE = 0.01  # seeds are fixed: what agrees now agrees for good
SEPARATOR = 4_000_000_000
SHAPES = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=12), min_size=2, max_size=12)


def spans(pair: Pair) -> tuple[int, int, int, int, int]:
    assert pair.a == list(range(pair.a[0], pair.a[-1] + 1)) and pair.b == list(range(pair.b[0], pair.b[-1] + 1))
    return pair.a[0], len(pair.a), pair.b[0], len(pair.b), int(pair.is_random)


def assert_equal_to_the_reference(documents: Documents, config: DataConfig, key: np.uint64) -> list[tuple[int, ...]]:
    texts, dice = nested(documents), PairingDice(documents.document_offsets, key)
    expected = [
        spans(pair)
        for index in range(len(texts))
        for pair in pairs_of_document(texts, index, config.sequence_length, config.short_sequence_probability, dice)
    ]
    found = pairing.next_sentence_pairs(documents, config, key)
    assert all(array.dtype == np.int64 for array in found)
    assert list(zip(*(array.tolist() for array in found), strict=True)) == expected
    return expected


# --- nsp: given the same draws ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("length", [5, 6, 7, 16, 64, 128, 512])
def test_given_the_same_draws_the_sequences_are_those_of_the_reference(name, length):
    documents = text_like(name, 40, seed=length)
    for probability in (0.1, 1.0):
        config = DataConfig(sequence_length=length, short_sequence_probability=probability)
        assert_equal_to_the_reference(documents, config, randomness.key(length, 3))


@settings(max_examples=300, deadline=None)
@given(
    SHAPES,
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
    documents = text_like("one sentence a document", 500, seed=1)
    pairs = pairing.next_sentence_pairs(documents, DataConfig(), randomness.key(0))
    assert len(pairs.a_start) == 500 and pairs.next_sentence_labels.all()


@pytest.mark.parametrize("length", [128, 512])
def test_a_random_segment_comes_from_another_document_and_a_true_one_follows_its_first(length):
    documents = text_like("encyclopedia", 2000, seed=2)
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
    documents = text_like("encyclopedia", 300, seed=3)
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
    near = text_like("encyclopedia", 200, seed=6)
    far = near._replace(sentence_offsets=near.sentence_offsets + 2**33)
    pairs, shifted = (pairing.next_sentence_pairs(each, DataConfig(), randomness.key(6)) for each in (near, far))
    expected = pairs._replace(a_start=pairs.a_start + 2**33, b_start=pairs.b_start + 2**33)
    np.testing.assert_array_equal(np.stack(shifted), np.stack(expected))


# --- nsp: distributions ----------------------------------------------------------------------------------------------

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


def differences(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: difference(first[name], second[name]) for name in first}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("length", [128, 512])
def test_distributions_agree_with_the_reference(name, length):
    count = {"a paragraph a line": 4000, "lines longer than a row": 2000}.get(name, 8000)
    documents, config = text_like(name, count, seed=0), DataConfig(sequence_length=length)
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
    documents, config = text_like("encyclopedia", 8000, seed=0), DataConfig(sequence_length=128)
    broken = facts(documents, theirs(documents, config, 1, **fault))
    p_values = differences(facts(documents, ours(documents, config, 1)), broken)
    assert min(p_values.values()) * len(p_values) < P_VALUE / 10, p_values


# --- what holds of every pairing -------------------------------------------------------------------------------------


def draw(name: str, documents: Documents, config: DataConfig, seed: int) -> Sequences:
    """One pass; documents come with their separators where the pairing asks for them."""
    way = pairing.PAIRINGS[name]
    return way.draw(with_separators(documents, SEPARATOR) if way.separated else documents, config, randomness.key(seed))


def document_at(documents: Documents, token: np.ndarray) -> np.ndarray:
    """The number of the document that each token belongs to."""
    return np.searchsorted(documents.sentence_offsets[documents.document_offsets], token, side="right") - 1


@pytest.mark.parametrize("name", pairing.PAIRINGS)
@settings(max_examples=150, deadline=None)
@given(shape=SHAPES, length=st.integers(5, 48), short=st.sampled_from([0.0, 0.5, 1.0]), seed=st.integers(0, 999))
def test_any_text_gives_sequences_that_fit_into_a_row_and_lie_in_the_text(name, shape, length, short, seed):
    documents = flat(shape)
    drawn = draw(name, documents, DataConfig(sequence_length=length, short_sequence_probability=short), seed)
    tokens = len(documents.tokens) + (len(shape) if name == "none-across" else 0)
    assert all(array.dtype == np.int64 and len(array) == len(drawn.a_start) for array in drawn)
    assert (drawn.a_length >= 1).all() and (drawn.lengths <= length).all()
    assert ((drawn.b_length >= 1) if name in ("nsp", "nsp-balanced", "sop") else (drawn.b_length == 0)).all()
    for start, count in ((drawn.a_start, drawn.a_length), (drawn.b_start, drawn.b_length)):
        assert (start >= 0).all() and (start + count <= tokens).all()
        if name != "none-across":
            assert (document_at(documents, start) == document_at(documents, np.maximum(start, start + count - 1))).all()
    assert np.isin(drawn.next_sentence_labels, [0, 1]).all()


@pytest.mark.parametrize("name", pairing.PAIRINGS)
@pytest.mark.parametrize("shape", [[[1]] * 3, [[1], [1, 1]], [[500]] * 2, [[2], [1]]], ids=str)
@pytest.mark.parametrize("length", [5, 6, 128])
def test_the_smallest_documents_and_the_longest_sentences_are_paired(name, shape, length):
    drawn = draw(name, flat(shape), DataConfig(sequence_length=length), 0)
    assert len(drawn.a_start) or (name in ("nsp-balanced", "sop") and max(map(sum, shape)) == 1)


@pytest.mark.parametrize("name", pairing.PAIRINGS)
def test_another_key_draws_other_sequences_and_the_same_key_the_same(name):
    documents, config = text_like("encyclopedia", 300, 0), DataConfig()
    first, again, other = (np.stack(draw(name, documents, config, seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert first.shape != other.shape or (first != other).any()


# --- nsp-balanced ----------------------------------------------------------------------------------------------------


def many(name: str, text: str, length: int, least: int = 50_000) -> tuple[Documents, Sequences]:
    """The sequences of as many passes over a text as make `least` of them."""
    documents, parts, count, seed = text_like(text, 3000, 1), [], 0, 0
    while count < least:
        parts.append(np.stack(draw(name, documents, DataConfig(sequence_length=length), seed)))
        count, seed = count + parts[-1].shape[1], seed + 1
    return documents, Sequences(*np.concatenate(parts, axis=1))


@pytest.fixture(scope="module", params=TEXTS)
def balanced(request) -> tuple[Documents, Sequences]:
    return many("nsp-balanced", request.param, 128, least=100_000)


def in_standard_deviations(labels: np.ndarray) -> float:
    """How far the share of label 1 is from a half."""
    return abs(labels.mean() - 0.5) * 2 * np.sqrt(len(labels))


def test_balanced_labels_are_half_and_half_on_any_text(balanced):
    assert in_standard_deviations(balanced[1].next_sentence_labels) < 3


@pytest.mark.parametrize("small", [[500], [100], [20], [4], [2, 2, 2], [1] * 10], ids=str)
def test_balanced_labels_are_half_and_half_even_where_one_document_holds_most_of_the_text(small):
    """A book among letters: its pairs find their random text in those."""
    documents = flat([[20] * 1000, *([20] * sentences for sentences in small)])
    labels = [draw("nsp-balanced", documents, DataConfig(), seed).next_sentence_labels for seed in range(60)]
    # Two that exchange their Bs share a label: they count as one.
    assert in_standard_deviations(np.concatenate(labels)) < 3 * np.sqrt(2)


def test_where_the_balanced_label_is_0_b_follows_a_in_the_text(balanced):
    documents, pairs = balanced
    true = Sequences(*(array[pairs.next_sentence_labels == 0] for array in pairs))
    assert (document_at(documents, true.a_start) == document_at(documents, true.b_start)).all()
    gap = true.b_start - (true.a_start + true.a_length)
    assert (gap >= 0).all() and (gap == 0).any()
    assert (true.lengths[gap > 0] == 128).all()  # what stands between was truncated


def test_where_the_balanced_label_is_1_b_is_that_of_a_pair_of_another_document(balanced):
    documents, pairs = balanced
    chosen = pairs.next_sentence_labels == 1
    of_a, of_b = (document_at(documents, start[chosen]) for start in (pairs.a_start, pairs.b_start))
    assert (of_a != of_b).all()
    # Two that exchange their Bs: each document gives as many as it gets, but for what found no partner.
    given_and_taken = [np.bincount(each, minlength=len(documents.document_offsets)) for each in (of_a, of_b)]
    assert abs(np.subtract(*given_and_taken)).sum() < 0.01 * chosen.sum()


def test_balanced_pairs_use_every_token_once():
    documents = text_like("encyclopedia", 300, seed=3)
    config = DataConfig(sequence_length=4096, short_sequence_probability=0.0)  # longer than nearly every document
    pairs = draw("nsp-balanced", documents, config, 5)
    used = np.zeros(len(documents.tokens), int)
    for start, length in [*zip(pairs.a_start, pairs.a_length), *zip(pairs.b_start, pairs.b_length)]:
        used[start : start + length] += 1
    assert pairs.next_sentence_labels.any() and used.max() == 1
    assert (used == 0).mean() < 0.001, "but for a token that is a document's last, alone, or was truncated"


@pytest.mark.parametrize("fact", ["length of A", "length of B", "total length", "B begins inside a sentence"])
def test_the_balanced_label_cannot_be_told_from(balanced, fact):
    documents, pairs = balanced
    assert len(pairs.a_start) >= 100_000
    # One bound for four facts of four texts.
    p_value = difference_between_labels(seen_of_pairs(documents, pairs)[fact], pairs.next_sentence_labels)
    assert p_value > P_VALUE / 16


def test_what_the_reference_s_labels_give_away_would_be_noticed():
    documents, pairs = many("nsp", "encyclopedia", 128)
    for fact, values in seen_of_pairs(documents, pairs).items():
        assert difference_between_labels(values, pairs.next_sentence_labels) < 1e-6, fact


# --- sop -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=TEXTS)
def in_order_or_not(request) -> tuple[Documents, Sequences]:
    return many("sop", request.param, 128)


def in_text_order(pairs: Sequences) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(start and length of the segment that comes first in the text, start and length of the other)."""
    first = pairs.a_start < pairs.b_start
    a, b = (pairs.a_start, pairs.a_length), (pairs.b_start, pairs.b_length)
    return tuple(np.where(first, one, two) for one, two in (*zip(a, b), *zip(b, a)))


def test_segments_have_changed_places_if_and_only_if_the_label_is_1(in_order_or_not):
    _, pairs = in_order_or_not
    np.testing.assert_array_equal(pairs.b_start < pairs.a_start, pairs.next_sentence_labels == 1)
    assert in_standard_deviations(pairs.next_sentence_labels) < 3


def test_both_segments_are_neighbours_in_one_document(in_order_or_not):
    documents, pairs = in_order_or_not
    assert (document_at(documents, pairs.a_start) == document_at(documents, pairs.b_start)).all()
    start, length, next_start, _ = in_text_order(pairs)
    gap = next_start - (start + length)
    assert (gap >= 0).all() and (pairs.lengths[gap > 0] == 128).all()  # what stands between was truncated
    for swapped in (0, 1):
        assert (gap[pairs.next_sentence_labels == swapped] == 0).mean() > 0.02


def sentence_order_in_a_loop(documents: Documents, config: DataConfig, seed: int) -> list[tuple[int, ...]]:
    """Chunk after chunk of each document up to its target, cut in two between sentences, or at a token where there is
    one sentence; swapped or not, then truncated.
    """
    max_tokens = config.sequence_length - 3
    documents = cut_long_sentences(documents, max(1, max_tokens // 2))
    dice, found = PairingDice(documents.document_offsets, randomness.key(seed)), []
    for index, document in enumerate(nested(documents)):
        target = target_length(index, max_tokens, config.short_sequence_probability, dice)
        start = 0
        while start < len(document):
            place, chunk = (index, start), [document[start]]
            while start + len(chunk) < len(document) and sum(map(len, chunk)) < target:
                chunk.append(document[start + len(chunk)])
            start += len(chunk)
            tokens = sum(chunk, [])
            if len(tokens) > 1:
                cut = len(sum(chunk[: dice.a_end(place, len(chunk) - 1)], [])) if len(chunk) > 1 else None
                cut = cut or dice.cut(place, len(tokens))
                swapped = dice.is_random(place)
                parts = (tokens[cut:], tokens[:cut]) if swapped else (tokens[:cut], tokens[cut:])
                pair = Pair(*parts, swapped)
                truncate(pair, max_tokens, place, dice)
                found.append(spans(pair))
    return found


@settings(max_examples=200, deadline=None)
@given(SHAPES, st.integers(5, 60), st.sampled_from([0.0, 0.1, 1.0]), st.integers(0, 999))
def test_given_the_same_draws_sentence_order_pairs_are_those_of_a_loop(shape, length, short, seed):
    config = DataConfig(sequence_length=length, short_sequence_probability=short)
    drawn = draw("sop", flat(shape), config, seed)
    found = list(zip(*(array.tolist() for array in drawn), strict=True))
    assert found == sentence_order_in_a_loop(flat(shape), config, seed)


@pytest.mark.parametrize("shape", [[[9, 12, 7, 30, 8] * 40], [[6000]], [[2]]], ids=["many", "long", "two tokens"])
def test_one_document_is_enough_for_sentence_order(shape):
    pairs = [draw("sop", flat(shape), DataConfig(sequence_length=64), seed) for seed in range(400)]
    labels = np.concatenate([each.next_sentence_labels for each in pairs])
    assert len(labels) >= 400 and in_standard_deviations(labels) < 3


# --- none, none-across -----------------------------------------------------------------------------------------------


def filled_in_a_loop(documents: Documents, config: DataConfig, seed: int, across: bool) -> list[list[int]]:
    """The texts of all sequences: sentences are appended while they fit into the target of the first one's document."""
    dice = PairingDice(documents.document_offsets, randomness.key(seed))
    max_tokens = config.sequence_length - 2
    texts, sequence, target = [], [], 0
    for index, document in enumerate(nested(cut_long_sentences(documents, max_tokens))):
        own = target_length(index, max_tokens, config.short_sequence_probability, dice)
        for number, sentence in enumerate(document):
            new_document = number == 0 and not across
            if sequence and (new_document or len(sequence) + len(sentence) > target):
                texts.append(sequence)
                sequence = []
            target = target if sequence else own
            sequence = sequence + sentence
    texts = [*texts, sequence]
    return [stripped for text in texts if (stripped := without_separators(text))] if across else texts


def without_separators(text: list[int]) -> list[int]:
    """The text without a separator in front or at its end."""
    text = text[1:] if text[0] == SEPARATOR else text
    return text[:-1] if text and text[-1] == SEPARATOR else text


def texts_of(documents: Documents, drawn: Sequences) -> list[list[int]]:
    return [
        documents.tokens[start : start + length].tolist() for start, length in zip(drawn.a_start, drawn.a_length)
    ]


@pytest.mark.parametrize("name", ["none", "none-across"])
@settings(max_examples=200, deadline=None)
@given(shape=SHAPES, length=st.integers(5, 60), short=st.sampled_from([0.0, 0.1, 0.5, 1.0]), seed=st.integers(0, 999))
def test_full_sentences_are_those_of_a_loop(name, shape, length, short, seed):
    config = DataConfig(sequence_length=length, short_sequence_probability=short)
    documents = flat(shape) if name == "none" else with_separators(flat(shape), SEPARATOR)
    drawn = pairing.PAIRINGS[name].draw(documents, config, randomness.key(seed))
    assert texts_of(documents, drawn) == filled_in_a_loop(documents, config, seed, name == "none-across")


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("length", [16, 128, 512])
def test_full_sentences_hold_every_token_of_the_text_once_and_in_order(text, length):
    documents = text_like(text, 200, seed=2)
    for short in (0.0, 0.1, 1.0):
        config = DataConfig(sequence_length=length, short_sequence_probability=short)
        drawn = draw("none", documents, config, 3)
        assert drawn.a_start[0] == 0 and drawn.a_start[-1] + drawn.a_length[-1] == len(documents.tokens)
        np.testing.assert_array_equal(drawn.a_start[1:], (drawn.a_start + drawn.a_length)[:-1])
        last = drawn.a_start + drawn.a_length - 1
        np.testing.assert_array_equal(document_at(documents, drawn.a_start), document_at(documents, last))
        assert drawn.a_length.max() <= length - 2


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("length", [16, 128, 512])
def test_across_documents_every_token_is_there_once_and_separators_stand_between_documents_alone(text, length):
    documents = text_like(text, 200, seed=2)
    for short in (0.0, 0.1, 1.0):
        separated = with_separators(documents, SEPARATOR)
        config = DataConfig(sequence_length=length, short_sequence_probability=short)
        sequences = texts_of(separated, draw("none-across", documents, config, 3))
        assert [token for each in sequences for token in each if token != SEPARATOR] == documents.tokens.tolist()
        between = 0
        for each in sequences:
            assert len(each) <= length - 2 and SEPARATOR not in (each[0], each[-1])
            of = document_at(documents, np.array([token for token in each if token != SEPARATOR]))
            # The number of the document grows by one behind each separator and nowhere else.
            assert [0 if token == SEPARATOR else 1 for token in each] == [
                mark for here, after in zip(of, [*of[1:], of[-1]]) for mark in ([1, 0] if after > here else [1])
            ]
            between += each.count(SEPARATOR)
        assert between > 20 or text != "one sentence a document" or length == 16


@pytest.mark.parametrize("name", ["none", "none-across"])
def test_full_sentences_have_no_label(name):
    drawn = draw(name, text_like("encyclopedia", 50, 0), DataConfig(), 0)
    assert not drawn.b_length.any() and not drawn.next_sentence_labels.any()


def test_a_sentence_longer_than_a_row_is_cut_into_parts_about_equally_long():
    drawn = draw("none", flat([[1000], [3]]), DataConfig(sequence_length=128, short_sequence_probability=0.0), 0)
    assert drawn.a_length.tolist() == [125] * 8 + [3]
