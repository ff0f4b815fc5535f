"""Random numbers as a function of key and counter."""

import itertools

import numpy as np
import pytest
from scipy import stats

from data_pipeline import randomness

P_VALUE = 0.01  # seeds are fixed: a healthy generator fails one such test in a hundred, once and for all
KEY = randomness.key(7, 1, 2)
COUNTERS = np.arange(100_000, dtype=np.uint64)


def test_each_of_the_64_bits_is_balanced():
    drawn = randomness.bits(KEY, COUNTERS)
    ones = [int((drawn >> np.uint64(bit) & np.uint64(1)).sum()) for bit in range(64)]
    z = (np.array(ones) - len(drawn) / 2) / np.sqrt(len(drawn) / 4)
    assert stats.chi2.sf((z**2).sum(), 64) > P_VALUE


@pytest.mark.parametrize("other", ["next counter", "next key", "next seed", "one more level"])
def test_neighbouring_places_are_independent(other):
    here = randomness.bits(KEY, COUNTERS)
    there = {
        "next counter": randomness.bits(KEY, COUNTERS + np.uint64(1)),
        "next key": randomness.bits(KEY + np.uint64(1), COUNTERS),
        "next seed": randomness.bits(randomness.key(8, 1, 2), COUNTERS),
        "one more level": randomness.bits(randomness.key(7, 1, 2, 0), COUNTERS),
    }[other]
    # Half of the bits differ, and the top bits of the two make a flat 16 x 16 table.
    flips = int(np.bitwise_count(here ^ there).sum())
    assert abs(flips - 32 * len(here)) < 3 * np.sqrt(16 * len(here))
    pairs = (here >> np.uint64(60)) * np.uint64(16) + (there >> np.uint64(60))
    assert stats.chisquare(np.bincount(pairs.astype(int), minlength=256)).pvalue > P_VALUE


def test_one_counter_under_many_keys_is_as_random_as_many_counters_under_one():
    keys = np.array([randomness.key(seed, epoch) for seed in range(100) for epoch in range(100)])
    drawn = randomness.uniform(keys, np.array([5]))
    assert stats.kstest(drawn, "uniform").pvalue > P_VALUE


def test_uniform_is_uniform_and_below_one():
    drawn = randomness.uniform(KEY, COUNTERS)
    assert drawn.min() >= 0 and drawn.max() < 1
    assert stats.kstest(drawn, "uniform").pvalue > P_VALUE


@pytest.mark.parametrize("count", [1, 2, 3, 10, 101, 30_522])
def test_integers_are_uniform(count):
    drawn = randomness.integers(KEY, COUNTERS, count)
    assert drawn.dtype == np.int64 and drawn.min() >= 0 and drawn.max() < count
    cells = min(count, 100)
    share = np.bincount(np.arange(count) * cells // count) / count
    found = np.bincount(drawn * cells // count, minlength=cells)
    assert count == 1 or stats.chisquare(found, share * len(drawn)).pvalue > P_VALUE


def test_integers_take_a_count_for_each_counter():
    counts = np.array([1, 2, 3, 1000] * 1000)
    drawn = randomness.integers(KEY, np.arange(4000), counts)
    assert (drawn < counts).all() and all(drawn[n::4].max() == counts[n] - 1 for n in range(3))


def test_counters_may_be_of_any_integer_type():
    for dtype in (np.int32, np.int64, np.uint32, np.uint64):
        drawn = randomness.bits(KEY, np.arange(9).astype(dtype))
        np.testing.assert_array_equal(drawn, randomness.bits(KEY, COUNTERS[:9]))


@pytest.mark.parametrize("flips", [1, 2, 10, 63, 64, 65, 200])
def test_coin_flips_are_binomial(flips):
    heads = randomness.coin_flips(KEY, np.arange(20_000), np.full(20_000, flips))
    expected = stats.binom.pmf(np.arange(flips + 1), flips, 0.5) * len(heads)
    found = np.bincount(heads, minlength=flips + 1)
    common = expected >= 5  # the rare ends are lumped together
    found, expected = [np.append(x[common], x[~common].sum()) for x in (found, expected)]
    keep = expected > 0
    assert stats.chisquare(found[keep], expected[keep]).pvalue > P_VALUE


def test_coin_flips_of_different_lengths_are_prefixes_of_one_sequence():
    same = np.zeros(300, np.int64)
    heads = randomness.coin_flips(KEY, same, np.arange(300))
    assert heads[0] == 0 and set(np.diff(heads)) == {0, 1}
    own = randomness.bits(KEY, same[:1])
    words = [int(randomness.bits(own[0], np.array([word]))[0]) for word in range(5)]
    coins = [word >> 63 - bit & 1 for word in words for bit in range(64)]
    np.testing.assert_array_equal(heads, np.cumsum([0, *coins])[:300])


def test_long_runs_of_coin_flips_are_those_of_a_plain_count_in_a_few_rounds(monkeypatch):
    flips, rounds = np.array([4_000_000, 0, 5_000, 64, 3_999_999, 1]), []
    bits = randomness.bits
    own = bits(KEY, np.arange(6))
    expected = []
    for key, count in zip(own, flips.tolist()):
        coins = np.unpackbits(bits(key, np.arange(count // 64 + 1)).astype(">u8").view(np.uint8))
        expected.append(coins[:count].sum())
    monkeypatch.setattr(randomness, "bits", lambda *arguments: rounds.append(1) or bits(*arguments))
    np.testing.assert_array_equal(randomness.coin_flips(KEY, np.arange(6), flips), expected)
    assert len(rounds) < 20


def test_coin_flips_of_nothing():
    assert randomness.coin_flips(KEY, np.arange(0), np.arange(0)).shape == (0,)
    np.testing.assert_array_equal(randomness.coin_flips(KEY, np.arange(3), np.zeros(3, int)), [0, 0, 0])


def test_neighbouring_coins_do_not_share_flips():
    heads = randomness.coin_flips(KEY, np.arange(20_000), np.full(20_000, 500)).astype(float)
    assert abs(np.corrcoef(heads[:-1], heads[1:])[0, 1]) < 3 / np.sqrt(len(heads))


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_a_permutation_holds_every_number_once(count):
    np.testing.assert_array_equal(np.sort(randomness.permutation(KEY, count)), np.arange(count))


def test_equal_draws_are_permuted_alike_by_every_way_of_sorting(monkeypatch):
    drawn = np.random.default_rng(0).integers(0, 700, 1_000).astype(np.uint64)
    monkeypatch.setattr(randomness, "bits", lambda *_: drawn)
    np.testing.assert_array_equal(randomness.permutation(KEY, 1_000), np.argsort(drawn, kind="stable"))


def test_all_permutations_are_equally_likely():
    rows = [tuple(randomness.permutation(randomness.key(0, n), 4)) for n in range(6000)]
    found = [rows.count(each) for each in itertools.permutations(range(4))]
    assert stats.chisquare(found).pvalue > P_VALUE


def test_keys_of_different_paths_differ():
    paths = [path for depth in range(4) for path in itertools.product(range(12), repeat=depth)]
    keys = [int(randomness.key(seed, *path)) for seed in (0, 1, 2, 2**63) for path in paths]
    assert len(set(keys)) == len(keys)


def test_streams_under_different_keys_do_not_overlap():
    """Keys that lie a multiple of the counter's step apart would give one stream twice, shifted."""
    keys = [randomness.key(seed, *path) for seed in range(5) for path in itertools.product(range(6), repeat=2)]
    drawn = np.concatenate([randomness.bits(key, COUNTERS[:1000]) for key in keys])
    assert len(np.unique(drawn)) == len(drawn)


def test_a_key_takes_any_seed_and_large_parts():
    assert len({int(randomness.key(seed, 2**50)) for seed in (-1, 0, 1, 2**64 - 2, 12**30)}) == 5


def test_the_numbers_never_change():
    """SplitMix64's own first outputs from seed 1234567, as its authors publish them: a stream outlives a release."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert randomness.bits(np.uint64(1234567), np.arange(4)).tolist() == expected
