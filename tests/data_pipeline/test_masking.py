"""Masking token by token against the reference in plain loops: draw by draw, and as distributions."""

import dataclasses
import random

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from synthetic import rows_of, sequence_of

from data_pipeline import masking, randomness
from data_pipeline.config import DataConfig

P_VALUE = 0.01
VOCABULARY = masking.Vocabulary(size=500, cls_id=2, sep_id=3, mask_id=4, word_starts=np.ones(500, bool))
SPECIAL = (VOCABULARY.cls_id, VOCABULARY.sep_id)
Text = list[int]
Rows = list[list[Text]]


def alone(texts: list[Text]) -> Rows:
    """Rows that hold one text each."""
    return [[text] for text in texts]


def texts(rows: int, length: int, seed: int = 0, full: bool = False) -> list[Text]:
    rng = np.random.default_rng(seed)
    sizes = np.full(rows, length - 3) if full else rng.integers(2, length - 2, rows)
    return [rng.integers(5, VOCABULARY.size, size).tolist() for size in sizes]


def packed_texts(rows: int, length: int, most: int, seed: int = 0) -> Rows:
    """Rows of up to `most` texts, as many as there is room for."""
    rng = np.random.default_rng(seed)
    found: Rows = []
    for _ in range(rows):
        row, left = [], length
        while left > 5 and len(row) < most:
            row.append(rng.integers(5, VOCABULARY.size, rng.integers(2, min(left - 2, 2 * length // most))).tolist())
            left -= len(row[-1]) + 3
        found.append(row)
    return found


def keys_of(rows: int, seed: int = 0) -> np.ndarray:
    return randomness.bits(randomness.key(seed, 9), np.arange(rows))


def masked(rows: Rows, config: DataConfig, seed: int = 0) -> dict[str, np.ndarray]:
    return masking.mask(*rows_of(rows, config.sequence_length), keys_of(len(rows), seed), VOCABULARY, config)


def by_the_reference(tokens: Text, config: DataConfig, dice: reference.Dice) -> reference.Masked:
    wanted = reference.number_to_predict(len(tokens), config.mask_rate, config.predictions_per_row)
    candidates = reference.token_candidates(tokens, SPECIAL)
    return reference.mask(tokens, candidates, wanted, VOCABULARY.mask_id, VOCABULARY.size, dice)


def assert_equal_to_the_reference(rows: Rows, config: DataConfig, seed: int) -> None:
    found, length = masked(rows, config, seed), config.sequence_length
    for row, (texts, key) in enumerate(zip(rows, keys_of(len(rows), seed), strict=True)):
        tokens, positions, labels = [], [], []
        for text in texts:
            start, sequence = len(tokens), sequence_of(text)
            dice = reference.MaskingDice(key, length, config.packing, start)
            expected = by_the_reference(sequence, config, dice)
            tokens += expected.tokens
            positions += [start + position for position in expected.positions]
            labels += expected.labels
        unused = [0] * (config.predictions_per_row - len(positions))
        assert found["input_ids"][row].tolist() == tokens + [0] * (length - len(tokens))
        assert found["masked_positions"][row].tolist() == positions + unused
        assert found["masked_ids"][row].tolist() == labels + unused
        assert found["masked_weights"][row].tolist() == [1] * len(positions) + unused


@pytest.mark.parametrize("masking_", ["token", "whole-word"])
def test_ids_in_16_bits_are_masked_as_those_in_32(masking_):
    """As the stream has them, beyond the signed ones."""
    config = DataConfig(sequence_length=64, masking=masking_)
    vocabulary = masking.Vocabulary(65_000, 2, 3, 4, np.random.default_rng(1).random(65_000) < 0.6)
    rows = [[np.random.default_rng(n).integers(5, 65_000, 50).tolist()] for n in range(30)]
    wide, layout = rows_of(rows, 64)
    narrow = {"input_ids": wide["input_ids"].astype(np.uint16), "sequence_ids": wide["sequence_ids"] > 0}
    expected = masking.mask(wide, layout, keys_of(30), vocabulary, config)
    found = masking.mask(narrow, layout, keys_of(30), vocabulary, config)
    assert expected["masked_ids"].max() > 1 << 15 and expected["input_ids"].max() > 1 << 15
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


@pytest.mark.parametrize("length", [5, 17, 128, 512])
def test_given_the_same_draws_the_rows_are_those_of_the_reference(length):
    for rate in (0.15, 0.3, 0.8):
        config = DataConfig(sequence_length=length, mask_rate=rate)
        assert_equal_to_the_reference(alone(texts(40, length, seed=length)), config, seed=length)


@pytest.mark.parametrize("packing", [2, 3, 16])
@pytest.mark.parametrize("length", [64, 97, 512])
def test_given_the_same_draws_packed_sequences_are_those_of_the_reference(length, packing):
    config = DataConfig(sequence_length=length, packing=packing, max_predictions=length)
    assert_equal_to_the_reference(packed_texts(40, length, packing, seed=length), config, seed=packing)


@pytest.mark.parametrize("length, packing", [(512, 128), (512, 129), (512, 512), (16_384, 4), (16_384, 5)])
def test_given_the_same_draws_rows_of_any_size_are_those_of_the_reference(length, packing):
    """At 16 bits for the places in a row, keys grow from 32 bits to 64."""
    config = DataConfig(sequence_length=length, packing=packing, max_predictions=length)
    assert_equal_to_the_reference(packed_texts(8, length, min(packing, 64), seed=length), config, seed=packing)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_given_the_same_draws_texts_of_any_kind_agree_with_the_reference(data):
    """Also where the text itself holds [CLS], [SEP] or padding ids, or nothing but these."""
    text = st.lists(st.integers(0, 499), min_size=1, max_size=20)
    rows = data.draw(st.lists(st.lists(text, min_size=0, max_size=5), min_size=1, max_size=6))
    used = max(sum(len(sequence_of(each)) for each in row) for row in rows)
    length = max(5, used + data.draw(st.integers(0, 9)))
    packing = max(1, *map(len, rows)) + data.draw(st.integers(0, 3))
    rate = data.draw(st.floats(0.01, 0.99))
    config = DataConfig(sequence_length=length, mask_rate=rate, packing=packing, max_predictions=length)
    assert_equal_to_the_reference(rows, config, data.draw(st.integers(0, 1000)))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 499), min_size=1, max_size=40), min_size=1, max_size=6), st.integers(1, 43))
def test_given_the_same_draws_a_limit_of_predictions_is_the_reference_s(rows, most):
    config = DataConfig(sequence_length=43, mask_rate=0.6, max_predictions=most)
    assert_equal_to_the_reference(alone(rows), config, seed=most)


def test_special_tokens_and_padding_are_never_masked():
    for rows, packing in ((alone(texts(3000, 40)), 1), (packed_texts(1000, 40, 3), 3)):
        config = DataConfig(sequence_length=40, mask_rate=0.5, packing=packing, max_predictions=30)
        batch, found = rows_of(rows, 40)[0], masked(rows, config)
        taken = found["masked_weights"] > 0
        assert taken.any() and not np.isin(found["masked_ids"][taken], SPECIAL).any()
        at = np.take_along_axis(batch["sequence_ids"], found["masked_positions"], axis=1)
        assert (at[taken] > 0).all()
        untouched = np.isin(batch["input_ids"], SPECIAL) | (batch["sequence_ids"] == 0)
        np.testing.assert_array_equal(found["input_ids"][untouched], batch["input_ids"][untouched])


@pytest.mark.parametrize(
    "tokens, rate, most, expected",
    [
        (128, 0.15, None, 19),  # 19.2
        (10, 0.15, None, 2),  # 1.5 rounds to even
        (30, 0.15, None, 4),  # 4.5 too
        (50, 0.15, None, 8),  # 7.5
        (5, 0.15, None, 1),  # 0.75
        (5, 0.05, None, 1),  # at least one
        (128, 0.15, 10, 10),
        (128, 0.9, 128, 115),
        (7, 0.99, 128, 4),  # all there are: three of the seven are special
    ],
)
def test_the_number_of_predictions_counts_special_tokens_and_rounds_half_to_even(tokens, rate, most, expected):
    config = DataConfig(sequence_length=128, mask_rate=rate, max_predictions=most)
    found = masked(alone([[9] * (tokens - 3)] * 50), config)
    assert (found["masked_weights"].sum(axis=1) == expected).all()


@pytest.mark.parametrize("rate", [0.01, 0.15, 0.3, 0.5, 0.99])
@pytest.mark.parametrize(
    "settings", [{}, {"packing": 8}, {"max_predictions": 20}, {"packing": 8, "max_predictions": 9}], ids=str
)
def test_each_length_asks_for_as_many_predictions_as_the_reference_makes(rate, settings):
    config = DataConfig(sequence_length=512, mask_rate=rate, **settings)
    expected = [reference.number_to_predict(length, rate, config.predictions_per_row) for length in range(1, 513)]
    assert masking.predictions_of_length(config).tolist() == [0, *expected]


def test_a_sequence_that_fills_its_row_asks_for_all_that_its_rate_wants():
    """The width that follows from rate and length cuts nothing off."""
    for length in range(5, 700):
        config = DataConfig(sequence_length=length)
        assert masking.predictions_of_length(config)[length] == max(1, round(0.15 * length)), length


def test_positions_ascend_and_unused_slots_have_position_0_and_weight_0():
    found = masked(alone(texts(2000, 64)), DataConfig(sequence_length=64, max_predictions=20, mask_rate=0.4))
    for positions, weights, ids in zip(found["masked_positions"], found["masked_weights"], found["masked_ids"]):
        count = int(weights.sum())
        assert weights.tolist() == [1] * count + [0] * (20 - count)
        assert not positions[count:].any() and not ids[count:].any()
        assert (np.diff(positions[:count]) > 0).all() and positions[0] > 0


@pytest.mark.parametrize("name", masking.MASKINGS)
def test_labels_are_what_stood_there_and_all_else_is_unchanged(name):
    rows = packed_texts(500, 64, 4)
    config = DataConfig(sequence_length=64, masking=name, packing=4, max_predictions=40)
    found = masked(rows, config)
    restored = found["input_ids"].copy()
    taken, slots = np.nonzero(found["masked_weights"])
    restored[taken, found["masked_positions"][taken, slots]] = found["masked_ids"][taken, slots]
    np.testing.assert_array_equal(restored, rows_of(rows, 64)[0]["input_ids"])


@pytest.mark.parametrize("name", masking.MASKINGS)
def test_a_row_does_not_depend_on_its_batch(name):
    rows, keys = [*packed_texts(20, 64, 4), [], *alone(texts(3, 64))], keys_of(24)
    config = DataConfig(sequence_length=64, masking=name, packing=4, max_predictions=40)
    together = masking.mask(*rows_of(rows, 64), keys, VOCABULARY, config)
    for row in range(24):
        by_itself = masking.mask(*rows_of(rows[row : row + 1], 64), keys[row : row + 1], VOCABULARY, config)
        for name, array in by_itself.items():
            np.testing.assert_array_equal(array[0], together[name][row])


@pytest.mark.parametrize("name", masking.MASKINGS)
def test_the_batch_that_came_in_is_left_as_it_was(name):
    batch, layout = rows_of(alone(texts(20, 64)), 64)
    before = {name: array.copy() for name, array in batch.items()}
    masking.mask(batch, layout, keys_of(20), VOCABULARY, DataConfig(sequence_length=64, masking=name))
    for name, array in before.items():
        np.testing.assert_array_equal(batch[name], array)


@pytest.mark.parametrize("name", masking.MASKINGS)
@pytest.mark.parametrize("packing", [1, 4])
def test_a_batch_without_rows_and_rows_without_tokens(name, packing):
    config = DataConfig(sequence_length=16, masking=name, packing=packing, max_predictions=5)
    assert masked([], config)["masked_positions"].shape == (0, 5)
    assert not any(array.any() for array in masked([[], []], config).values())
    found = masked([[], [[7, 8, 9]], []], config)
    assert found["masked_weights"].sum(axis=1).tolist() == [0, 1, 0]


def test_fewer_predictions_than_the_sequences_of_a_row_are_refused():
    """Each sequence has one at least: rows would hold less than was asked for."""
    assert DataConfig(packing=8, max_predictions=8).predictions_per_row == 8
    with pytest.raises(ValueError, match="^data.max_predictions 7 is less than data.packing 8: each sequence of a row"):
        DataConfig(packing=8, max_predictions=7)


# --- distributions ---------------------------------------------------------------------------------------------------


def full_rows(length: int, packing: int) -> Rows:
    """Rows without padding: of one sequence, or of as many as they may hold, all equally long."""
    size = length // packing
    drawn = texts(800_000 // size, size, full=True)
    return [drawn[n : n + packing] for n in range(0, len(drawn) - packing + 1, packing)]


@pytest.fixture(scope="module", params=[(128, 1), (512, 1), (512, 16)], ids=lambda shape: f"{shape[0]} of {shape[1]}")
def many(request) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(batch, masked batch) of more than 100,000 predictions."""
    length, packing = request.param
    rows = full_rows(length, packing)
    config = DataConfig(sequence_length=length, packing=packing, max_predictions=100)
    return rows_of(rows, length)[0], masked(rows, config, seed=3)


def what_became(found: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(what stands now, what stood before) at each prediction."""
    taken = found["masked_weights"] > 0
    return np.take_along_axis(found["input_ids"], found["masked_positions"], axis=1)[taken], found["masked_ids"][taken]


def p_value_of_shares(found: dict[str, np.ndarray], shares: tuple[float, float, float]) -> float:
    """That [MASK], the same, another: the drawn id is now and then the mask or what stood there."""
    (now, was), size = what_became(found), VOCABULARY.size
    counts = [(now == VOCABULARY.mask_id).sum(), (now == was).sum(), 0]
    counts[2] = len(now) - sum(counts)
    to_mask, to_same, to_any = shares
    expected = np.array([to_mask + to_any / size, to_same + to_any / size, to_any * (size - 2) / size])
    return stats.chisquare(counts, expected * len(now)).pvalue


def test_of_the_chosen_80_in_100_are_masked_10_kept_and_10_drawn(many):
    _, found = many
    assert found["masked_weights"].sum() > 100_000
    assert p_value_of_shares(found, (0.8, 0.1, 0.1)) > P_VALUE
    assert p_value_of_shares(found, (0.79, 0.105, 0.105)) < P_VALUE  # the test would tell


@pytest.mark.parametrize("shares", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.8, 0.2, 0), (0.5, 0.2, 0.3)], ids=str)
def test_the_shares_of_what_stands_in_a_token_s_place_are_those_asked_for(shares):
    found = masked(full_rows(128, 1), DataConfig(mask_replacement=shares))
    (now, was), expected = what_became(found), np.array(shares)
    if not expected[2]:
        assert np.isin(now[now != was], VOCABULARY.mask_id).all()
        assert stats.binomtest(int((now == was).sum()), len(now), expected[1]).pvalue > P_VALUE
    else:
        assert p_value_of_shares(found, shares) > P_VALUE


def test_drawn_tokens_are_uniform_over_the_whole_vocabulary(many):
    now, was = what_became(many[1])
    drawn = now[(now != was) & (now != VOCABULARY.mask_id)]
    counts = np.delete(np.bincount(drawn, minlength=VOCABULARY.size), VOCABULARY.mask_id)
    # What was drawn as the token that stood there does not show: it stood there with a chance of one in 495.
    expected = np.where(np.arange(len(counts)) < VOCABULARY.mask_id, 1.0, 1 - 1 / (VOCABULARY.size - 5))
    assert counts[:4].all() and len(counts) == VOCABULARY.size - 1
    assert stats.chisquare(counts, expected / expected.sum() * len(drawn)).pvalue > P_VALUE


def chosen_cells(batch: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> np.ndarray:
    """[B, S] bool."""
    rows, slots = np.nonzero(found["masked_weights"])
    chosen = np.zeros(batch["input_ids"].shape, bool)
    chosen[rows, found["masked_positions"][rows, slots]] = True
    return chosen


def test_every_position_is_chosen_equally_often(many):
    batch, found = many
    counts = chosen_cells(batch, found).sum(axis=0)
    candidates = ~np.isin(batch["input_ids"][0], SPECIAL)
    assert not counts[~candidates].any()
    assert stats.chisquare(counts[candidates]).pvalue > P_VALUE


def test_pairs_of_positions_are_chosen_independently_of_their_distance(many):
    """Neighbours are chosen together as often as tokens far apart: w (w - 1) / (n (n - 1)) of the sequences."""
    batch, found = many
    first = batch["sequence_ids"][0] == 1
    chosen = chosen_cells(batch, found)[:, first]
    text = chosen[:, ~np.isin(batch["input_ids"][0, first], SPECIAL)]
    wanted, count = int(text[0].sum()), text.shape[1]
    expected = len(text) * (count - 1) * wanted * (wanted - 1) / (count * (count - 1))
    for distance in (1, 2, 16, 50):
        if distance < count - 1:
            together = int((text[:, distance:] & text[:, :-distance]).sum())
            share = expected * (count - distance) / (count - 1)
            assert abs(together - share) < 3 * np.sqrt(share), distance


def test_sequences_of_a_row_are_masked_independently_of_each_other():
    """The same place in two sequences of a row is chosen together as often as chance has it."""
    rows = full_rows(128, 4)
    found = masked(rows, DataConfig(packing=4, max_predictions=40))
    cells = chosen_cells(rows_of(rows, 128)[0], found)
    text = ~np.isin(sequence_of(rows[0][0]), SPECIAL)
    sequences = cells.reshape(len(rows), 4, 32)[:, :, text]
    share = sequences[0, 0].sum() / text.sum()
    together = [(sequences[:, one] & sequences[:, two]).sum() for one in range(4) for two in range(one)]
    expected = share**2 * len(rows) * text.sum()
    assert (np.abs(np.array(together) - expected) < 3.5 * np.sqrt(expected)).all()


def test_distributions_agree_with_the_reference_in_plain_loops():
    length, rows = 64, 3000
    config, dice = DataConfig(sequence_length=length), reference.Dice(random.Random(5))
    drawn = texts(rows, length, seed=8)
    found = masked(alone(drawn), config, seed=4)
    sizes = np.array([len(text) + 3 for text in drawn])
    theirs = [by_the_reference(sequence_of(text), config, dice) for text in drawn]
    np.testing.assert_array_equal(found["masked_weights"].sum(axis=1), [len(each.positions) for each in theirs])
    first = found["masked_positions"][:, 0] / sizes, np.array([each.positions[0] for each in theirs]) / sizes
    assert stats.ks_2samp(*first).pvalue > P_VALUE
    masks = [(found["input_ids"] == VOCABULARY.mask_id).sum(axis=1), [each.tokens.count(4) for each in theirs]]
    table = [np.bincount(counts, minlength=12)[:8] for counts in masks]
    assert stats.chi2_contingency(table).pvalue > P_VALUE


def test_other_keys_mask_other_tokens():
    rows, config = alone(texts(100, 128, full=True)), DataConfig()
    first, second = masked(rows, config, seed=1), masked(rows, config, seed=2)
    assert (first["masked_positions"] != second["masked_positions"]).any(axis=1).all()


def test_ids_near_the_top_of_a_large_vocabulary_are_drawn():
    large = dataclasses.replace(DataConfig(), mask_rate=0.5)
    vocabulary = VOCABULARY._replace(size=250_000)
    found = masking.mask(*rows_of(alone(texts(2000, 128, full=True)), 128), keys_of(2000), vocabulary, large)
    assert 249_000 < found["input_ids"].max() < 250_000


@pytest.mark.parametrize("length, packing", [(512, 100), (4096, 64), (16_384, 16), (16_384, 5_000)])
def test_however_many_sequences_a_row_may_hold_all_its_tokens_have_the_same_chance(length, packing):
    """Ties keep the order of the text: with too few random bits the tokens at the front would be chosen more often."""
    config = DataConfig(sequence_length=length, packing=packing, max_predictions=length)
    rows = alone(texts(max(60, 400_000 // length), length, full=True))
    cells = chosen_cells(rows_of(rows, length)[0], masked(rows, config))
    half = np.flatnonzero(~np.isin(sequence_of(rows[0][0]), SPECIAL))[: (length - 3) // 2]
    share = (length - 3) // 2 / (length - 3)
    front, total = int(cells[:, half].sum()), int(cells.sum())
    # Without replacement the spread is smaller than a binomial one: the bound is on the safe side.
    assert abs(front - share * total) < 3.5 * np.sqrt(share * (1 - share) * total)
