"""What all ways of drawing sequences share, against plain loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import Pair, PairingDice
from reference import truncate as truncate_in_a_loop
from scipy import stats
from synthetic import flat, nested

from data_pipeline import pairing, randomness
from data_pipeline.sequences import (
    Sequences, cut_long_sentences, document_of_sentence, reached, target_lengths, truncate, with_separators
)

P_VALUE = 0.01
KEYS = (randomness.key(0, 1), randomness.key(0, 2))
SHAPES = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=8), min_size=1, max_size=8)


# --- target lengths --------------------------------------------------------------------------------------------------


def test_targets_are_the_longest_or_now_and_then_uniform_from_2_to_the_longest():
    targets = target_lengths(100_000, 61, 0.1, KEYS)
    short = targets[targets < 61]
    # A short one that is drawn as the longest does not show.
    assert stats.binomtest(len(short), 100_000, 0.1 * 59 / 60).pvalue > P_VALUE
    assert short.min() == 2 and stats.chisquare(np.bincount(short, minlength=61)[2:61]).pvalue > P_VALUE


@pytest.mark.parametrize("longest", [2, 3, 125])
def test_targets_are_never_short_or_always_drawn_if_so_asked(longest):
    assert set(target_lengths(1000, longest, 0.0, KEYS)) == {longest}
    assert set(target_lengths(5000, longest, 1.0, KEYS)) == set(range(2, longest + 1))


# --- walks -----------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(SHAPES)
def test_each_sentence_has_the_number_of_its_document(shape):
    expected = [number for number, sentences in enumerate(shape) for _ in sentences]
    assert document_of_sentence(flat(shape)).tolist() == expected


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=30), min_size=1, max_size=10))
def test_the_sentences_reached_are_those_of_a_walk_in_a_loop(jumps):
    borders = np.cumsum([0] + [len(each) for each in jumps])
    successor, expected = np.zeros(borders[-1], np.int64), []
    for each, first, end in zip(jumps, borders, borders[1:]):
        successor[first:end] = np.minimum(np.arange(first, end) + each, end)
        place = first
        while place < end:
            expected.append(place)
            place = successor[place]
    assert reached(successor, borders).tolist() == expected


def test_a_walk_of_a_hundred_thousand_stops_is_no_loop_over_them():
    count = 100_000
    assert len(reached(np.arange(1, count + 1), np.array([0, count]))) == count
    assert reached(np.full(count, count), np.array([0, count])).tolist() == [0]


# --- cutting and joining sentences -----------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(SHAPES, st.integers(1, 20))
def test_long_sentences_are_cut_into_the_fewest_parts_that_fit_all_about_equally_long(shape, longest):
    documents = flat(shape)
    found = nested(cut_long_sentences(documents, longest))
    assert [sum(document, []) for document in found] == [sum(document, []) for document in nested(documents)]
    for cut, whole in zip(found, nested(documents), strict=True):
        ends = np.cumsum([len(part) for part in cut]).tolist()
        for end in np.cumsum([len(sentence) for sentence in whole]).tolist():
            assert end in ends  # no part spans two sentences
        parts = iter(cut)
        for sentence in whole:
            own = [len(next(parts)) for _ in range(-(-len(sentence) // longest))]
            assert sum(own) == len(sentence) and max(own) <= longest and max(own) - min(own) <= 1


def test_sentences_that_fit_are_left_as_they_are():
    documents = flat([[3, 7], [7], [1, 1]])
    for found, expected in zip(cut_long_sentences(documents, 7), documents):
        np.testing.assert_array_equal(found, expected)


def test_offsets_beyond_2_31_tokens_are_cut():
    far = flat([[3, 7], [9]])._replace(sentence_offsets=np.array([0, 3, 10, 19]) + 2**33)
    assert (cut_long_sentences(far, 4).sentence_offsets - 2**33).tolist() == [0, 3, 6, 10, 13, 16, 19]


@settings(max_examples=200, deadline=None)
@given(SHAPES)
def test_a_separator_ends_each_document_as_a_sentence_of_its_own(shape):
    documents = flat(shape)
    found = nested(with_separators(documents, 99_999))
    assert found == [[*document, [99_999]] for document in nested(documents)]


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_separators_keep_the_type_of_the_tokens(dtype):
    documents = flat([[3], [2, 2]])
    found = with_separators(documents._replace(tokens=documents.tokens.astype(dtype)), 65_000)
    assert found.tokens.dtype == dtype and found.tokens.tolist() == [0, 1, 2, 65_000, 3, 4, 5, 6, 65_000]


# --- truncation ------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=8),
    st.integers(2, 60),
    st.integers(0, 1000),
)
def test_pairs_are_truncated_as_a_loop_does_token_by_token(lengths, max_tokens, seed):
    draws = pairing._draws(randomness.key(seed))
    a_length, b_length = np.array(lengths).T
    count = np.arange(len(lengths))
    pairs = Sequences(1000 * count, a_length, 1000 * count + 500, b_length, count % 2)
    found = truncate(pairs, max_tokens, count, (draws["front_a"], draws["front_b"]))
    dice = PairingDice(np.array([0]), randomness.key(seed))
    for number, (a, b) in enumerate(lengths):
        start = 1000 * number
        pair = Pair([*range(start, start + a)], [*range(start + 500, start + 500 + b)], False)
        truncate_in_a_loop(pair, max_tokens, (0, number), dice)
        expected = (pair.a[0], len(pair.a), pair.b[0], len(pair.b), number % 2)
        assert tuple(int(array[number]) for array in found) == expected


def test_a_sequence_s_length_counts_its_special_tokens():
    nothing = np.zeros(3, np.int64)
    sequences = Sequences(nothing, np.array([4, 1, 7]), nothing, np.array([5, 1, 0]), nothing)
    assert sequences.lengths.tolist() == [12, 5, 9]
