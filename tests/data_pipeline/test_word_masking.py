"""Whole words and spans against the reference in plain loops: draw by draw, and as distributions."""

import dataclasses
import random
from typing import NamedTuple

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from synthetic import IDS, rows_of, sequence_of

from data_pipeline import masking, randomness, word_masking
from data_pipeline.config import DataConfig

P_VALUE = 0.01
VOCAB_SIZE = 100
STARTS = np.arange(VOCAB_SIZE) % 5 < 3  # two of five pieces go on with a word
VOCABULARY = masking.Vocabulary(VOCAB_SIZE, IDS["cls_id"], IDS["sep_id"], IDS["mask_id"], STARTS)
SPECIAL = (IDS["cls_id"], IDS["sep_id"])
OPENS, GOES_ON = 10, 13
NAMES = ["whole-word", "span"]
Rows = list[list[list[int]]]


class Expected(NamedTuple):
    tokens: list[int]
    positions: list[int]
    labels: list[int]


def words_of(tokens: list[int]) -> list[list[int]]:
    return reference.word_candidates(tokens, SPECIAL, lambda token: not STARTS[token])


def by_the_reference(tokens: list[int], config: DataConfig, dice: reference.Dice) -> reference.Masked:
    wanted = reference.number_to_predict(len(tokens), config.mask_rate, config.predictions_per_row)
    mask = {"whole-word": reference.mask, "span": reference.mask_spans}[config.masking]
    return mask(tokens, words_of(tokens), wanted, VOCABULARY.mask_id, VOCAB_SIZE, dice)


def row_by_the_reference(texts: list[list[int]], key: np.uint64, config: DataConfig) -> Expected:
    row = Expected([], [], [])
    for text in texts:
        start = len(row.tokens)
        dice = reference.MaskingDice(key, config.sequence_length, config.packing, start)
        tokens, positions, labels = by_the_reference(sequence_of(text), config, dice)
        row.tokens.extend(tokens)
        row.positions.extend(start + position for position in positions)
        row.labels.extend(labels)
    return row


def keys_of(rows: int, seed: int) -> np.ndarray:
    return randomness.bits(randomness.key(seed, 9), np.arange(rows))


def masked(rows: Rows, config: DataConfig, seed: int = 0) -> dict[str, np.ndarray]:
    return masking.mask(*rows_of(rows, config.sequence_length), keys_of(len(rows), seed), VOCABULARY, config)


def assert_equal_to_the_reference(rows: Rows, config: DataConfig, seed: int) -> None:
    found = masked(rows, config, seed)
    for row, key in enumerate(keys_of(len(rows), seed)):
        expected = row_by_the_reference(rows[row], key, config)
        used = int(found["masked_weights"][row].sum())
        length = len(expected.tokens)
        assert found["input_ids"][row].tolist() == expected.tokens + [0] * (config.sequence_length - length)
        assert found["masked_positions"][row, :used].tolist() == expected.positions
        assert found["masked_ids"][row, :used].tolist() == expected.labels
        for name in ("masked_positions", "masked_ids", "masked_weights"):
            assert not found[name][row, used:].any()


def texts_in_rows(rows: int, length: int, most: int, seed: int) -> Rows:
    rng = np.random.default_rng(seed)
    found: Rows = []
    for _ in range(rows):
        row, left = [], length
        while left > 5 and len(row) < most:
            size = rng.integers(2, min(left - 2, 2 * length // most))
            row.append(rng.integers(len(IDS), VOCAB_SIZE, size).tolist())
            left -= size + 3
        found.append(row)
    return found


# --- given the same draws --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length, packing", [(5, 1), (17, 1), (128, 1), (512, 1), (64, 3), (97, 8), (512, 16)])
def test_given_the_same_draws_the_rows_are_those_of_the_reference(name, length, packing):
    for rate in (0.15, 0.3, 0.8):
        config = DataConfig(
            sequence_length=length, masking=name, mask_rate=rate, packing=packing, max_predictions=length
        )
        assert_equal_to_the_reference(texts_in_rows(30, length, packing, seed=length), config, seed=packing)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_given_the_same_draws_texts_of_any_kind_agree_with_the_reference(name, data):
    """Words of any length, words cut in two, special ids within the text, several sequences in a row, any quota."""
    piece = st.one_of(st.just(GOES_ON), st.just(OPENS), st.integers(0, VOCAB_SIZE - 1))
    rows = data.draw(st.lists(st.lists(st.lists(piece, min_size=1, max_size=24), max_size=4), min_size=1, max_size=5))
    used = max(sum(len(sequence_of(each)) for each in row) for row in rows)
    config = DataConfig(
        sequence_length=max(5, used + data.draw(st.integers(0, 9))),
        masking=name,
        mask_rate=data.draw(st.floats(0.01, 0.99)),
        packing=max(1, *map(len, rows)) + data.draw(st.integers(0, 3)),
        max_predictions=None,
    )
    config = dataclasses.replace(config, max_predictions=config.sequence_length)
    assert_equal_to_the_reference(rows, config, data.draw(st.integers(0, 1000)))


# --- what holds of any draw ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=NAMES)
def many(request) -> tuple[Rows, DataConfig, dict[str, np.ndarray]]:
    """Rows of packed sequences and what masking makes of them."""
    rows = texts_in_rows(3000, 128, 3, seed=1)
    config = DataConfig(masking=request.param, packing=3)
    return rows, config, masked(rows, config, seed=2)


def sequences_of(rows: Rows, found: dict[str, np.ndarray]) -> list[tuple[list[int], set[int]]]:
    """(tokens before masking, positions chosen) of each sequence."""
    sequences = []
    for row, texts in enumerate(rows):
        chosen = found["masked_positions"][row, : int(found["masked_weights"][row].sum())]
        start = 0
        for text in texts:
            tokens = sequence_of(text)
            inside = chosen[(chosen >= start) & (chosen < start + len(tokens))] - start
            sequences.append((tokens, set(inside.tolist())))
            start += len(tokens)
    return sequences


def test_words_are_predicted_as_a_whole_or_not_at_all(many):
    rows, _, found = many
    cut = 0
    for tokens, chosen in sequences_of(rows, found):
        for word in words_of(tokens):
            assert set(word) <= chosen or not chosen & set(word)
            cut += len(word) > 1 and set(word) <= chosen
    assert cut > 1000


def test_no_more_tokens_are_predicted_than_asked_for_and_none_that_would_fit_is_left_out(many):
    """A word that was skipped is longer than what is left of the quota."""
    rows, config, found = many
    left_over = 0
    for tokens, chosen in sequences_of(rows, found):
        wanted = reference.number_to_predict(len(tokens), config.mask_rate, config.predictions_per_row)
        left = wanted - len(chosen)
        assert left >= 0
        assert all(len(word) > left for word in words_of(tokens) if word[0] not in chosen)
        left_over += left > 0
    assert left_over > 50


def test_a_word_that_alone_overshoots_the_quota_is_never_predicted():
    """Its row has no prediction at all, and stays as it was."""
    rows = [[[OPENS, GOES_ON, GOES_ON, GOES_ON]]] * 20
    for name in NAMES:
        config = DataConfig(sequence_length=8, masking=name, mask_rate=0.15)
        found = masked(rows, config)
        assert not found["masked_weights"].any()
        np.testing.assert_array_equal(found["input_ids"], rows_of(rows, 8)[0]["input_ids"])


@pytest.mark.parametrize("name", NAMES)
def test_the_first_token_of_a_segment_opens_a_word_even_if_truncation_cut_one_in_two(name):
    """A: one word of three; B begins with two pieces that go on with a word: they make one of their own."""
    rows = [[[OPENS, GOES_ON, GOES_ON, GOES_ON, GOES_ON, OPENS]]] * 300
    config = DataConfig(sequence_length=9, masking=name, mask_rate=0.34)  # three tokens
    found = masked(rows, config)
    chosen = {tuple(p[w > 0].tolist()) for p, w in zip(found["masked_positions"], found["masked_weights"])}
    assert chosen == {(1, 2, 3), (5, 6, 7)}


def test_a_word_goes_on_over_no_border_between_packed_sequences():
    """The second sequence begins where the first one ends; both hold nothing but pieces that go on."""
    rows = [[[GOES_ON] * 4, [GOES_ON] * 4]] * 50
    config = DataConfig(sequence_length=14, masking="whole-word", mask_rate=0.3, packing=2, max_predictions=8)
    found = masked(rows, config)
    seen = {tuple(p[w > 0].tolist()) for p, w in zip(found["masked_positions"], found["masked_weights"])}
    assert seen == {(a, a + 1, b, b + 1) for a in (1, 4) for b in (8, 11)}


def test_where_every_piece_opens_a_word_whole_word_masking_is_token_masking():
    every = VOCABULARY._replace(word_starts=np.ones(VOCAB_SIZE, bool))
    rows, keys = texts_in_rows(300, 128, 3, seed=4), keys_of(300, 1)
    both = [
        masking.mask(*rows_of(rows, 128), keys, every, DataConfig(masking=name, packing=3))
        for name in ("token", "whole-word")
    ]
    for name, array in both[0].items():
        np.testing.assert_array_equal(array, both[1][name])


# --- spans -----------------------------------------------------------------------------------------------------------


def test_lengths_of_spans_are_geometric_with_a_mean_of_3_8_words():
    """SpanBERT, section 3.1."""
    assert word_masking.SPAN_SHARES.sum() == pytest.approx(1)
    assert (word_masking.SPAN_LENGTHS * word_masking.SPAN_SHARES).sum() == pytest.approx(3.8, abs=0.03)
    dice = reference.Dice(random.Random(1))
    counts = np.bincount([dice.span_length(0) for _ in range(20_000)], minlength=11)[1:]
    assert stats.chisquare(counts, word_masking.SPAN_SHARES * 20_000).pvalue > P_VALUE
    theirs = np.bincount(
        [reference.MaskingDice(key, 64).span_length(n) for key in keys_of(400, 5) for n in range(50)], minlength=11
    )[1:]
    assert stats.chisquare(theirs, word_masking.SPAN_SHARES * 20_000).pvalue > P_VALUE


def test_a_span_of_one_draw_has_its_length_and_stays_in_its_segment():
    """With a quota that one span cannot fill up, the first run of words is as long as drawn."""
    rows = [[[OPENS] * 200]] * 4000
    config = DataConfig(sequence_length=203, masking="span", mask_rate=0.05)  # ten tokens
    found = masked(rows, config)
    spans = []
    for positions, key in zip(found["masked_positions"], keys_of(4000, 0)):
        dice = reference.MaskingDice(key, 203)
        [anchor] = dice.order([[n] for n in range(203) if n not in (0, 101, 202)])[0]
        length = dice.span_length(anchor)
        end = min(anchor + length, 101 if anchor < 101 else 202)
        assert set(range(anchor, end)) <= set(positions.tolist())
        spans.append(length)
    assert stats.chisquare(np.bincount(spans, minlength=11)[1:], word_masking.SPAN_SHARES * 4000).pvalue > P_VALUE


def test_what_stands_in_place_of_a_span_is_decided_once_for_it():
    rows = [[[OPENS] * 9]] * 6000
    config = DataConfig(sequence_length=12, masking="span", mask_rate=0.25, max_predictions=3)
    found = masked(rows, config, seed=3)
    neighbours = np.diff(found["masked_positions"], axis=1) == 1
    one_span = neighbours.all(axis=1)
    now = np.take_along_axis(found["input_ids"], found["masked_positions"], axis=1)[one_span]
    masks, kept = (now == VOCABULARY.mask_id).sum(axis=1), (now == OPENS).sum(axis=1)
    # Three neighbours are now and then of two spans that meet, and a drawn id is [MASK] or the same in 2 of 100.
    assert one_span.sum() > 2000
    assert ((masks == 3) | (kept == 3) | (masks + kept == 0)).mean() > 0.85
    assert np.abs((masks == 3).mean() - 0.8) < 0.1


# --- distributions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_distributions_agree_with_the_reference_in_plain_loops(name):
    rng = np.random.default_rng(7)
    sequences = [sequence_of(rng.integers(len(IDS), VOCAB_SIZE, 60).tolist()) for _ in range(4000)]
    config = DataConfig(sequence_length=63, masking=name)
    rows = [[[*tokens[1:31], *tokens[32:62]]] for tokens in sequences]
    found = masked(rows, config, seed=4)
    ours = [facts(tokens, chosen) for tokens, chosen in sequences_of(rows, found)]
    dice = reference.Dice(random.Random(5))
    theirs = [facts(tokens, set(by_the_reference(tokens, config, dice).positions)) for tokens in sequences]
    names = ("predictions", "words", "words of one piece", "words of three pieces and more", "runs", "first", "last")
    p_values = dict(zip(names, map(reference.difference, np.array(ours).T, np.array(theirs).T), strict=True))
    assert min(p_values.values()) * len(p_values) > P_VALUE, p_values


def facts(tokens: list[int], chosen: set[int]) -> tuple[int, ...]:
    words = [len(word) for word in words_of(tokens) if word[0] in chosen]
    runs = sum(position - 1 not in chosen for position in chosen)
    return len(chosen), len(words), words.count(1), sum(n > 2 for n in words), runs, min(chosen), max(chosen)
