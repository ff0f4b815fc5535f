"""Masking against the reference in plain loops: draw by draw, and as distributions."""

import dataclasses
import random

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from data_pipeline import masking, randomness
from data_pipeline.config import DataConfig

P_VALUE = 0.01
VOCABULARY = masking.Vocabulary(size=500, cls_id=2, sep_id=3, mask_id=4)
SPECIAL = (VOCABULARY.cls_id, VOCABULARY.sep_id)


def batch_of(sequences: list[list[int]], length: int) -> dict[str, np.ndarray]:
    """Rows of [CLS] A [SEP] B [SEP], one for each text of two tokens and more."""
    ids, used = np.zeros((2, len(sequences), length), np.int32)
    for row, tokens in enumerate(sequences):
        half = len(tokens) // 2
        tokens = [VOCABULARY.cls_id, *tokens[:half], VOCABULARY.sep_id, *tokens[half:], VOCABULARY.sep_id]
        ids[row, : len(tokens)], used[row, : len(tokens)] = tokens, 1
    return {"input_ids": ids, "sequence_ids": used}


def texts(rows: int, length: int, seed: int = 0, full: bool = False) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    sizes = np.full(rows, length - 3) if full else rng.integers(2, length - 2, rows)
    return [rng.integers(5, VOCABULARY.size, size).tolist() for size in sizes]


def keys_of(rows: int, seed: int = 0) -> np.ndarray:
    return randomness.bits(randomness.key(seed, 9), np.arange(rows))


def masked(batch: dict[str, np.ndarray], config: DataConfig, seed: int = 0) -> dict[str, np.ndarray]:
    return masking.mask_tokens(batch, keys_of(len(batch["input_ids"]), seed), VOCABULARY, config)


class SameDice(reference.Dice):
    """Throws what the vectorised code throws for one row."""

    def __init__(self, row_key: np.uint64, length: int):
        low = 2 ** (length - 1).bit_length() - 1
        drawn = randomness.bits(row_key, np.arange(length)).tolist()
        self.keys = [key >> 32 & ~low | column for column, key in enumerate(drawn)]
        self.replacement_key = randomness.bits(row_key, np.array([1 << 32]))[0]

    def order(self, candidates: list[list[int]]) -> list[list[int]]:
        return sorted(candidates, key=lambda candidate: self.keys[candidate[0]])

    def kind(self, position: int) -> float:
        return float(randomness.uniform(self.replacement_key, np.array([2 * position]))[0])

    def token(self, position: int, vocab_size: int) -> int:
        return int(randomness.integers(self.replacement_key, np.array([2 * position + 1]), vocab_size)[0])


def by_the_reference(tokens: list[int], config: DataConfig, dice: reference.Dice) -> reference.Masked:
    wanted = reference.number_to_predict(len(tokens), config.mask_rate, config.predictions_per_row)
    candidates = reference.token_candidates(tokens, SPECIAL)
    return reference.mask(tokens, candidates, wanted, VOCABULARY.mask_id, VOCABULARY.size, dice)


def assert_equal_to_the_reference(batch: dict[str, np.ndarray], config: DataConfig, seed: int) -> None:
    found = masked(batch, config, seed)
    for row, key in enumerate(keys_of(len(batch["input_ids"]), seed)):
        length = int(batch["sequence_ids"][row].sum())
        dice = SameDice(key, batch["input_ids"].shape[1])
        expected = by_the_reference(batch["input_ids"][row, :length].tolist(), config, dice)
        count = len(expected.positions)
        unused = [0] * (config.predictions_per_row - count)
        assert found["input_ids"][row].tolist() == expected.tokens + [0] * (batch["input_ids"].shape[1] - length)
        assert found["masked_positions"][row].tolist() == expected.positions + unused
        assert found["masked_ids"][row].tolist() == expected.labels + unused
        assert found["masked_weights"][row].tolist() == [1] * count + unused


@pytest.mark.parametrize("length", [5, 17, 128, 512])
def test_given_the_same_draws_the_rows_are_those_of_the_reference(length):
    for rate in (0.15, 0.3, 0.8):
        config = DataConfig(sequence_length=length, mask_rate=rate)
        assert_equal_to_the_reference(batch_of(texts(40, length, seed=length), length), config, seed=length)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(5, 70).flatmap(
        lambda length: st.tuples(
            st.just(length),
            st.lists(st.lists(st.integers(0, 499), min_size=2, max_size=length - 3), min_size=1, max_size=6),
            st.one_of(st.none(), st.integers(1, length)),
        )
    ),
    st.floats(0.01, 0.99),
    st.integers(0, 1000),
)
def test_given_the_same_draws_texts_of_any_kind_agree_with_the_reference(shape, rate, seed):
    """Also where the text itself holds [CLS], [SEP] or padding ids, or nothing but these."""
    length, rows, max_predictions = shape
    config = DataConfig(sequence_length=length, mask_rate=rate, max_predictions=max_predictions)
    assert_equal_to_the_reference(batch_of(rows, length), config, seed)


def test_special_tokens_and_padding_are_never_masked():
    batch = batch_of(texts(3000, 40), 40)
    found = masked(batch, DataConfig(sequence_length=40, mask_rate=0.5))
    taken = found["masked_weights"] > 0
    assert taken.any() and not np.isin(found["masked_ids"][taken], SPECIAL).any()
    at = np.take_along_axis(batch["sequence_ids"], found["masked_positions"], axis=1)
    assert (at[taken] == 1).all()
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
    found = masked(batch_of([[9] * (tokens - 3)] * 50, 128), config)
    assert (found["masked_weights"].sum(axis=1) == expected).all()


def test_positions_ascend_and_unused_slots_have_position_0_and_weight_0():
    found = masked(batch_of(texts(2000, 64), 64), DataConfig(sequence_length=64, max_predictions=20, mask_rate=0.4))
    for positions, weights, ids in zip(found["masked_positions"], found["masked_weights"], found["masked_ids"]):
        count = int(weights.sum())
        assert weights.tolist() == [1] * count + [0] * (20 - count)
        assert not positions[count:].any() and not ids[count:].any()
        assert (np.diff(positions[:count]) > 0).all() and positions[0] > 0


def test_labels_are_what_stood_there_and_all_else_is_unchanged():
    batch = batch_of(texts(500, 64), 64)
    found = masked(batch, DataConfig(sequence_length=64))
    restored = found["input_ids"].copy()
    rows, slots = np.nonzero(found["masked_weights"])
    restored[rows, found["masked_positions"][rows, slots]] = found["masked_ids"][rows, slots]
    np.testing.assert_array_equal(restored, batch["input_ids"])


def test_a_row_does_not_depend_on_its_batch():
    batch, keys = batch_of(texts(20, 64), 64), keys_of(20)
    config = DataConfig(sequence_length=64)
    together = masking.mask_tokens(batch, keys, VOCABULARY, config)
    for row in range(20):
        part = {name: array[row : row + 1] for name, array in batch.items()}
        alone = masking.mask_tokens(part, keys[row : row + 1], VOCABULARY, config)
        for name, array in alone.items():
            np.testing.assert_array_equal(array[0], together[name][row])


def test_the_batch_that_came_in_is_left_as_it_was():
    batch = batch_of(texts(20, 64), 64)
    before = {name: array.copy() for name, array in batch.items()}
    masked(batch, DataConfig(sequence_length=64))
    for name, array in before.items():
        np.testing.assert_array_equal(batch[name], array)


def test_a_batch_without_rows_and_rows_without_tokens():
    config = DataConfig(sequence_length=16)
    assert masked(batch_of([], 16), config)["masked_positions"].shape == (0, 3)
    padding = {name: np.zeros((2, 16), np.int32) for name in ("input_ids", "sequence_ids")}
    assert not any(array.any() for array in masked(padding, config).values())


@pytest.fixture(scope="module", params=[128, 512])
def many(request) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(batch, masked batch) of full rows, more than 100,000 predictions."""
    length = request.param
    batch = batch_of(texts(800_000 // length, length, full=True), length)
    return batch, masked(batch, DataConfig(sequence_length=length), seed=3)


def test_of_the_chosen_80_in_100_are_masked_10_kept_and_10_drawn(many):
    _, found = many
    taken = found["masked_weights"] > 0
    now = np.take_along_axis(found["input_ids"], found["masked_positions"], axis=1)[taken]
    was = found["masked_ids"][taken]
    size = VOCABULARY.size  # the drawn id is now and then the mask or what stood there
    counts = [(now == VOCABULARY.mask_id).sum(), (now == was).sum(), 0]
    counts[2] = len(now) - sum(counts)
    shares = np.array([0.8 + 0.1 / size, 0.1 + 0.1 / size, 0.1 * (size - 2) / size])
    assert len(now) > 100_000 and stats.chisquare(counts, shares * len(now)).pvalue > P_VALUE


def test_drawn_tokens_are_uniform_over_the_whole_vocabulary(many):
    _, found = many
    taken = found["masked_weights"] > 0
    now = np.take_along_axis(found["input_ids"], found["masked_positions"], axis=1)[taken]
    drawn = now[(now != found["masked_ids"][taken]) & (now != VOCABULARY.mask_id)]
    counts = np.delete(np.bincount(drawn, minlength=VOCABULARY.size), VOCABULARY.mask_id)
    # What was drawn as the token that stood there does not show: it stood there with a chance of one in 495.
    expected = np.where(np.arange(len(counts)) < VOCABULARY.mask_id, 1.0, 1 - 1 / (VOCABULARY.size - 5))
    assert counts[:4].all() and len(counts) == VOCABULARY.size - 1
    assert stats.chisquare(counts, expected / expected.sum() * len(drawn)).pvalue > P_VALUE


def test_every_position_is_chosen_equally_often(many):
    batch, found = many
    taken = found["masked_weights"] > 0
    counts = np.bincount(found["masked_positions"][taken], minlength=batch["input_ids"].shape[1])
    candidates = ~np.isin(batch["input_ids"][0], SPECIAL)
    assert not counts[~candidates].any()
    assert stats.chisquare(counts[candidates]).pvalue > P_VALUE


def test_pairs_of_positions_are_chosen_independently_of_their_distance(many):
    """Neighbours are chosen together as often as tokens far apart: w (w - 1) / (n (n - 1)) of the rows."""
    batch, found = many
    rows, slots = np.nonzero(found["masked_weights"])
    chosen = np.zeros(batch["input_ids"].shape, bool)
    chosen[rows, found["masked_positions"][rows, slots]] = True
    text = chosen[:, ~np.isin(batch["input_ids"][0], SPECIAL)]
    wanted, count = int(text[0].sum()), text.shape[1]
    expected = len(text) * (count - 1) * wanted * (wanted - 1) / (count * (count - 1))
    for distance in (1, 2, 16, 50):
        together = int((text[:, distance:] & text[:, :-distance]).sum())
        share = expected * (count - distance) / (count - 1)
        assert abs(together - share) < 3 * np.sqrt(share), distance


def test_distributions_agree_with_the_reference_in_plain_loops():
    length, rows = 64, 3000
    config, dice = DataConfig(sequence_length=length), reference.Dice(random.Random(5))
    batch = batch_of(texts(rows, length, seed=8), length)
    found = masked(batch, config, seed=4)
    sizes = batch["sequence_ids"].sum(axis=1)
    theirs = [by_the_reference(batch["input_ids"][n, : sizes[n]].tolist(), config, dice) for n in range(rows)]
    np.testing.assert_array_equal(found["masked_weights"].sum(axis=1), [len(each.positions) for each in theirs])
    first = found["masked_positions"][:, 0] / sizes, np.array([each.positions[0] for each in theirs]) / sizes
    assert stats.ks_2samp(*first).pvalue > P_VALUE
    masks = [(found["input_ids"] == VOCABULARY.mask_id).sum(axis=1), [each.tokens.count(4) for each in theirs]]
    table = [np.bincount(counts, minlength=12)[:8] for counts in masks]
    assert stats.chi2_contingency(table).pvalue > P_VALUE


def test_other_keys_mask_other_tokens():
    batch, config = batch_of(texts(100, 128, full=True), 128), DataConfig()
    first, second = masked(batch, config, seed=1), masked(batch, config, seed=2)
    assert (first["masked_positions"] != second["masked_positions"]).any(axis=1).all()


def test_ids_near_the_top_of_a_large_vocabulary_are_drawn():
    large = dataclasses.replace(DataConfig(), mask_rate=0.5)
    batch = batch_of(texts(2000, 128, full=True), 128)
    found = masking.mask_tokens(batch, keys_of(2000), VOCABULARY._replace(size=250_000), large)
    assert 249_000 < found["input_ids"].max() < 250_000
