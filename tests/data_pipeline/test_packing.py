"""Which sequences share a row: every one once, within all limits, and as full as a plain loop makes the rows."""

import collections
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from synthetic import text_like

from data_pipeline import masking, pairing, randomness
from data_pipeline.config import DataConfig
from data_pipeline.packing import Rows, pack

P_VALUE = 0.01
KEY = randomness.key(0, 5)


def no_predictions(capacity: int) -> np.ndarray:
    return np.zeros(capacity + 1, np.int64)


def fifteen_in_a_hundred(capacity: int) -> np.ndarray:
    return np.maximum(1, np.rint(0.15 * np.arange(capacity + 1))).astype(np.int64)


def rows_of(rows: Rows) -> list[list[int]]:
    return [part.tolist() for part in np.split(rows.order, rows.offsets[1:-1])] if len(rows.offsets) > 1 else []


def first_fit_decreasing(
    lengths: list[int], predictions: np.ndarray, capacity: int, most_predictions: int, most_sequences: int
) -> int:
    """How many rows: each sequence, longest first, goes into the first row with room, or into a new one."""
    rows: list[list[int]] = []  # tokens, predictions, sequences
    for length in sorted(lengths, reverse=True):
        asked = int(predictions[length])
        for row in rows:
            if row[0] + length <= capacity and row[1] + asked <= most_predictions and row[2] < most_sequences:
                break
        else:
            row = [0, 0, 0]
            rows.append(row)
        row[0], row[1], row[2] = row[0] + length, row[1] + asked, row[2] + 1
    return len(rows)


@st.composite
def problems(draw) -> tuple[np.ndarray, np.ndarray, int, int, int]:
    """lengths, predictions, capacity, most predictions, most sequences: few lengths in many copies, or many lengths."""
    capacity = draw(st.integers(5, 128))
    kinds = draw(st.lists(st.integers(1, capacity), min_size=1, max_size=12))
    lengths = np.array(draw(st.lists(st.sampled_from(kinds), max_size=150)), np.int64)
    predictions = draw(st.sampled_from([no_predictions, fifteen_in_a_hundred]))(capacity)
    most_predictions = int(predictions[capacity]) + draw(st.integers(0, 4))
    return lengths, predictions, capacity, most_predictions, draw(st.sampled_from([1, 2, 3, 4, 8, 1000]))


@settings(max_examples=400, deadline=None)
@given(problems(), st.integers(0, 1000))
def test_every_sequence_is_in_one_row_and_no_row_breaks_a_limit(problem, seed):
    lengths, predictions, capacity, most_predictions, most_sequences = problem
    rows = pack(*problem, randomness.key(seed))
    assert sorted(rows.order.tolist()) == list(range(len(lengths)))
    assert rows.offsets[0] == 0 and rows.offsets[-1] == len(lengths) and (np.diff(rows.offsets) > 0).all()
    for row in rows_of(rows):
        assert lengths[row].sum() <= capacity
        assert predictions[lengths[row]].sum() <= most_predictions
        assert len(row) <= most_sequences


@settings(max_examples=400, deadline=None, derandomize=True)
@given(problems())
def test_rows_are_about_as_full_as_those_of_a_plain_loop(problem):
    """Best fit is not below first fit on every histogram (neither is the other way round): here and there by a row."""
    rows, by_the_loop = len(rows_of(pack(*problem, KEY))), first_fit_decreasing(problem[0].tolist(), *problem[1:])
    assert rows <= by_the_loop + 1 + by_the_loop // 25


def test_over_many_histograms_rows_are_as_full_as_those_of_a_plain_loop():
    rng = np.random.default_rng(0)
    rows = by_the_loop = 0
    for _ in range(2000):
        capacity = int(rng.integers(5, 129))
        kinds = rng.integers(1, capacity + 1, rng.integers(1, 12))
        lengths = rng.choice(kinds, rng.integers(1, 120))
        predictions = fifteen_in_a_hundred(capacity)
        problem = predictions, capacity, int(predictions[-1]) + 3, int(rng.integers(1, 9))
        rows += len(rows_of(pack(lengths, *problem, KEY)))
        by_the_loop += first_fit_decreasing(lengths.tolist(), *problem)
    assert rows <= by_the_loop * 1.0002


@pytest.mark.parametrize("text", ["encyclopedia", "a paragraph a line", "one sentence a document"])
@pytest.mark.parametrize("length, packing", [(128, 4), (512, 8), (512, 512)])
@pytest.mark.parametrize("name", ["nsp", "none"])
def test_on_text_rows_are_no_less_full_than_those_of_a_plain_loop(text, length, packing, name):
    config = DataConfig(sequence_length=length, packing=packing)
    documents = text_like(text, 300 if text != "one sentence a document" else 3000, seed=0)
    lengths = pairing.PAIRINGS[name].draw(documents, config, KEY).lengths
    limits = masking.predictions_of_length(config), length, config.predictions_per_row, packing
    rows = len(rows_of(pack(lengths, *limits, KEY)))
    assert rows <= first_fit_decreasing(lengths.tolist(), *limits)


def test_packing_fills_rows_of_512_that_would_be_padding():
    config = DataConfig(sequence_length=512, packing=8)
    lengths = pairing.next_sentence_pairs(text_like("encyclopedia", 3000, seed=0), config, KEY).lengths
    limits = masking.predictions_of_length(config), 512, config.predictions_per_row, 8
    rows = rows_of(pack(lengths, *limits, KEY))
    assert lengths.sum() / (512 * len(lengths)) < 0.6 and lengths.sum() / (512 * len(rows)) > 0.97


# --- what is drawn ---------------------------------------------------------------------------------------------------


def packed(lengths: np.ndarray, most_sequences: int, key: np.uint64) -> list[list[int]]:
    return rows_of(pack(lengths, no_predictions(128), 128, 0, most_sequences, key))


def test_the_same_key_packs_the_same_rows_and_another_key_others():
    lengths = np.random.default_rng(0).integers(5, 129, 500)
    first, again, other = (packed(lengths, 4, randomness.key(seed)) for seed in (1, 1, 2))
    assert first == again and first != other
    # What a row is made of does not depend on the key, in which order the rows come does.
    made_of = [[sorted(lengths[row].tolist()) for row in rows] for rows in (first, other)]
    assert made_of[0] != made_of[1] and sorted(made_of[0]) == sorted(made_of[1])


def test_the_key_decides_which_of_the_sequences_of_one_length_goes_where():
    """Each of ten sequences of 60 tokens shares its row with each of ten of 68 equally often."""
    lengths = np.array([60] * 10 + [68] * 10)
    partners = collections.Counter()
    for seed in range(3000):
        for row in packed(lengths, 2, randomness.key(seed)):
            partners[tuple(sorted(row))] += 1
    assert set(partners) == {(short, long) for short in range(10) for long in range(10, 20)}
    assert stats.chisquare(list(partners.values())).pvalue > P_VALUE


@pytest.mark.parametrize("most_sequences", [1, 3])
def test_the_order_of_the_rows_is_any_with_equal_chance(most_sequences):
    """Each row stands at each place, and before each other row, equally often."""
    lengths = np.array([128, 127, 100, 28, 64, 64, 50, 40, 30]) if most_sequences > 1 else np.arange(100, 105)
    places, orders = collections.Counter(), collections.Counter()
    for seed in range(4000):
        rows = packed(lengths, most_sequences, randomness.key(seed))
        made_of = [tuple(sorted(lengths[row].tolist())) for row in rows]
        places.update(zip(made_of, range(len(made_of))))
        orders[tuple(made_of)] += 1
    assert len(made_of) == 5 and len(places) == 25
    assert stats.chisquare(list(places.values()), ddof=8).pvalue > P_VALUE
    assert len(orders) == 120 and stats.chisquare(list(orders.values())).pvalue > P_VALUE


# --- edges -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [255, 256, 257, 512, 1_000])
def test_no_row_of_any_length_holds_more_than_it_has_room_for(capacity):
    lengths = np.random.default_rng(capacity).integers(2, capacity + 1, 3_000)
    rows = pack(lengths, np.ones(capacity + 1, np.int64), capacity, 20, 8, KEY)
    np.testing.assert_array_equal(np.sort(rows.order), np.arange(3_000))
    assert np.add.reduceat(lengths[rows.order], rows.offsets[:-1]).max() <= capacity


def test_one_sequence_to_a_row_is_a_permutation():
    lengths = np.random.default_rng(1).integers(5, 129, 1000)
    rows = pack(lengths, no_predictions(128), 128, 0, 1, KEY)
    np.testing.assert_array_equal(np.sort(rows.order), np.arange(1000))
    np.testing.assert_array_equal(rows.offsets, np.arange(1001))
    assert (np.corrcoef(rows.order, np.arange(1000))[0, 1] < 0.1) and (rows.order != np.arange(1000)).mean() > 0.9


def test_no_sequences_make_no_rows():
    rows = pack(np.empty(0, np.int64), no_predictions(16), 16, 3, 4, KEY)
    assert rows.order.tolist() == [] and rows.offsets.tolist() == [0]


@pytest.mark.parametrize(
    "lengths, capacity, most_predictions, most_sequences, expected",
    [
        ([5], 5, 9, 1, [[5]]),
        ([3, 2], 5, 9, 2, [[2, 3]]),
        ([3, 2], 5, 9, 1, [[2], [3]]),  # one to a row
        ([3, 3], 5, 9, 2, [[3], [3]]),  # too long together
        ([2, 2, 2, 2], 8, 9, 3, [[2], [2, 2, 2]]),  # three to a row
        ([2, 2, 2, 2], 8, 3, 9, [[2], [2, 2, 2]]),  # three predictions to a row
        ([6, 4, 4, 2], 8, 9, 9, [[2, 6], [4, 4]]),  # the fullest row that has room
    ],
)
def test_small_problems(lengths, capacity, most_predictions, most_sequences, expected):
    predictions = np.minimum(np.arange(capacity + 1), 1)
    rows = rows_of(pack(np.array(lengths), predictions, capacity, most_predictions, most_sequences, KEY))
    assert sorted(sorted(np.array(lengths)[row].tolist()) for row in rows) == expected


def test_a_million_sequences_are_packed_in_seconds():
    """The loop is over lengths: a sequence more costs what sorting it costs."""
    lengths = np.random.default_rng(0).integers(5, 513, 1_000_000)
    begin = time.perf_counter()
    rows = pack(lengths, fifteen_in_a_hundred(512), 512, 80, 8, KEY)
    assert time.perf_counter() - begin < 10
    assert lengths.sum() / (len(rows.offsets) - 1) / 512 > 0.97
