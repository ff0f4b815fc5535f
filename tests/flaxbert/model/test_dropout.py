"""Dropout's own random bits: good enough for masks, a function of key and place alone, wherever they are drawn.

Statistics are held to five standard deviations. Keys are fixed, so a test passes always or never.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from flaxbert.config import MeshConfig
from flaxbert.model import attention, encoder
from flaxbert.model.dropout import Places, dropout, hash_bits, row_seeds
from flaxbert.model.pretraining import BertForPreTraining, initialize, zero_batch
from flaxbert.sharding import make_mesh

SIGMAS = 5.0
KEY = jax.random.key(20181011)
# The multipliers of the hash, and steps that other generators take from key to key.
CONSTANTS = (1, 2, 3, 1 << 16, 1 << 31, 0x7FEB352D, 0x846CA68B, 0x9E3779B9, 0xFFFFFFFF, 0x7FEB352D ^ 0x846CA68B)


def drop(x, rate, key, places=None):
    """Dropout of rows 0, 1, …"""
    return dropout(x, rate, row_seeds(key, jnp.arange(len(x))), places)


def mask(rate, key, shape):
    return np.asarray(drop(jnp.ones(shape), rate, key)) != 0


def words(key, rows, places):
    """The 32 bits at each place of each row, as dropout draws them: [rows, places]."""
    return np.asarray(hash_bits(jax.random.bits(key, (rows, 2), jnp.uint32), (rows, places)))


def assert_uncorrelated(a, b, rate):
    """a and b are masks of places that are drawn apart: they agree by chance alone."""
    a, b = (np.asarray(x, np.float64).ravel() - (1 - rate) for x in (a, b))
    correlation = (a * b).mean() / (rate * (1 - rate))
    assert abs(correlation) * np.sqrt(a.size) < SIGMAS


def assert_no_copies(a, b):
    """Two rows of 32-bit words share next to none: neither is the other shifted, permuted or cut."""
    shared = np.intersect1d(a, b).size
    by_chance = a.size * b.size / 2**32
    assert shared < by_chance + SIGMAS * np.sqrt(by_chance) + 2


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9, 0.015])
def test_the_share_that_is_dropped_is_the_rate(rate):
    dropped = ~mask(rate, KEY, (8, 256, 256))
    assert abs(dropped.mean() - rate) < SIGMAS * np.sqrt(rate * (1 - rate) / dropped.size)


@pytest.mark.parametrize("rate, dtype", [(0.1, "float32"), (0.3, "float32"), (0.1, "bfloat16")])
def test_what_is_kept_is_scaled_so_that_the_mean_stays(rate, dtype):
    x = jax.random.normal(KEY, (4, 64, 64), dtype)
    y = drop(x, rate, KEY)
    kept = np.asarray(y) != 0
    np.testing.assert_array_equal(np.asarray(y)[kept], np.asarray(x * jnp.asarray(1 / (1 - rate), dtype))[kept])
    assert y.dtype == x.dtype
    mean = np.asarray(drop(jnp.ones((8, 256, 256)), rate, KEY)).mean()
    assert abs(mean - 1) < SIGMAS * np.sqrt(rate / (1 - rate) / (8 * 256 * 256))


def test_rate_zero_is_the_identity():
    x = jnp.arange(6.0).reshape(2, 3)
    assert drop(x, 0.0, KEY) is x


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_backward_pass_has_the_mask_of_the_forward_pass(dtype, compiled):
    x = jax.random.normal(KEY, (3, 4, 50), dtype)
    weight = jax.random.normal(jax.random.key(1), x.shape, dtype)

    def pull(x, key):
        y, back = jax.vjp(lambda x: drop(x, 0.3, key), x)
        return y, back(weight)[0]

    y, gradient = (jax.jit(pull) if compiled else pull)(x, KEY)
    np.testing.assert_array_equal(np.asarray(y) != 0, np.asarray(gradient) != 0)
    np.testing.assert_array_equal(gradient, drop(weight, 0.3, KEY))


def test_the_mask_is_a_function_of_the_key():
    first = mask(0.5, KEY, (4, 32, 32))
    np.testing.assert_array_equal(first, mask(0.5, KEY, (4, 32, 32)))
    assert_uncorrelated(first, mask(0.5, jax.random.key(1), (4, 32, 32)), 0.5)


def test_each_of_the_32_bits_is_one_half_of_the_time():
    """Over many places of one row, and over many rows at one place."""
    for drawn in (words(KEY, 1, 1 << 18).ravel(), words(KEY, 1 << 16, 3)[:, 2]):
        ones = ((drawn[:, None] >> np.arange(32, dtype=np.uint32)) & 1).mean(axis=0)
        assert np.abs(ones - 0.5).max() < SIGMAS * 0.5 / np.sqrt(drawn.size)


def test_no_word_comes_twice_in_a_row():
    """Every round can be undone, so the map from places to words is one to one."""
    row = words(KEY, 1, 1 << 18).ravel()
    assert np.unique(row).size == row.size


@pytest.mark.parametrize("column", [0, 1], ids=["place or first seed", "second seed"])
def test_a_flipped_bit_of_the_input_flips_half_of_the_output(column):
    """Avalanche: each input bit moves each output bit one half of the time. The place is xored with the first seed, so
    a bit of one is a bit of the other.
    """
    count = 1 << 16
    seeds = np.asarray(jax.random.bits(KEY, (count, 2), jnp.uint32))
    before = np.asarray(hash_bits(jnp.asarray(seeds), (count, 1)))
    for bit in range(32):
        flip = np.zeros(2, np.uint32)
        flip[column] = 1 << bit
        changed = before ^ np.asarray(hash_bits(jnp.asarray(seeds ^ flip), (count, 1)))
        flips = ((changed >> np.arange(32, dtype=np.uint32)) & 1).mean(axis=0)
        assert np.abs(flips - 0.5).max() < SIGMAS * 0.5 / np.sqrt(count)


def test_the_place_enters_as_the_flat_index_in_the_row():
    seeds = jax.random.bits(KEY, (2, 2), jnp.uint32)
    flat = hash_bits(seeds, (2, 3 * 4 * 5))
    np.testing.assert_array_equal(hash_bits(seeds, (2, 3, 4, 5)).reshape(2, -1), flat)


@pytest.mark.parametrize("shape", [(3, 8, 5), (3, 2, 8, 6)], ids=["hidden states", "probabilities"])
def test_some_places_have_the_masks_they_have_among_all(shape):
    """Forward and backward; each row has places of its own, some of them more than once."""
    x, weight = (jax.random.normal(jax.random.key(seed), shape) for seed in (1, 2))
    places = np.array([[0, 7, 7, 3], [5, 4, 3, 2], [1, 1, 1, 6]], np.int32)
    index = places.reshape(3, *(1,) * (len(shape) - 3), 4, 1)
    some, of_some = (np.take_along_axis(np.asarray(a), index, axis=-2) for a in (x, weight))
    expected = np.take_along_axis(np.asarray(drop(x, 0.4, KEY)), index, axis=-2)
    assert 0.2 < (expected == 0).mean() < 0.6

    found, back = jax.vjp(lambda some: drop(some, 0.4, KEY, Places(jnp.asarray(places), 8)), some)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(back(of_some)[0] == 0, expected == 0)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_rows_positions_and_steps_are_independent(rate):
    heads, length = 2, 64
    steps = [mask(rate, jax.random.fold_in(KEY, step), (8, heads, length, length)) for step in range(8)]
    for a, b in zip(steps, steps[1:]):
        assert_uncorrelated(a, b, rate)
    drawn = np.stack(steps)
    for a, b in (
        (drawn[:, 1:], drawn[:, :-1]),  # rows of the batch
        (drawn[:, :, 1:], drawn[:, :, :-1]),  # heads
        (drawn[..., 1:, :], drawn[..., :-1, :]),  # queries
        (drawn[..., 1:], drawn[..., :-1]),  # keys
        (drawn[..., 1:, 1:], drawn[..., :-1, :-1]),  # the diagonal
        (drawn[..., 2:], drawn[..., :-2]),
        (drawn[..., ::2], drawn[..., 1::2]),
        (drawn[..., :32], drawn[..., 32:]),
    ):
        assert_uncorrelated(a, b, rate)
        shared = drawn.size // 8
        assert abs((a.mean() - b.mean())) < SIGMAS * np.sqrt(2 * rate * (1 - rate) / shared)


def test_single_positions_are_dropped_at_the_rate_over_steps_and_rows():
    """A position that is dropped more often than another would be a fault that no average over positions shows."""
    rate, steps = 0.1, 64
    drawn = np.concatenate([~mask(rate, jax.random.fold_in(KEY, step), (64, 512)) for step in range(steps)])
    deviations = (drawn.mean(axis=0) - rate) / np.sqrt(rate * (1 - rate) / len(drawn))
    assert np.abs(deviations).max() < SIGMAS
    assert abs(deviations.std() - 1) < SIGMAS / np.sqrt(2 * deviations.size)


@pytest.mark.parametrize("shift", [0, 8, 14, 28], ids=lambda shift: f"bits-from-{shift}")
@pytest.mark.parametrize("direction", ["places", "rows"])
@pytest.mark.parametrize("together, bits", [(2, 4), (3, 3)])
def test_neighbours_fill_all_their_combinations_evenly(together, bits, direction, shift):
    """Chi-square over pairs and triples of neighbouring places, or of neighbouring rows at one place."""
    drawn = words(KEY, 3 << 7, 3 << 8)
    flat = (drawn if direction == "places" else drawn.T).reshape(-1, together)
    cells = (flat >> np.uint32(shift)) & np.uint32(2**bits - 1)
    combination = (cells << (bits * np.arange(together, dtype=np.uint32))).sum(axis=1)
    counts = np.bincount(combination, minlength=2 ** (bits * together))
    expected = counts.sum() / counts.size
    chi_square, freedom = ((counts - expected) ** 2 / expected).sum(), counts.size - 1
    assert abs(chi_square - freedom) < SIGMAS * np.sqrt(2 * freedom)


def test_triples_of_a_mask_come_as_often_as_they_should():
    rate = 0.1
    flat = (~mask(rate, KEY, (16, 3 << 14))).reshape(-1, 3)
    counts = np.bincount(flat @ np.array([1, 2, 4]), minlength=8)
    expected = np.array([rate ** bin(c).count("1") * (1 - rate) ** (3 - bin(c).count("1")) for c in range(8)])
    expected *= len(flat)
    assert ((counts - expected) ** 2 / expected).sum() < 7 + SIGMAS * np.sqrt(14)


@pytest.mark.parametrize("constant", CONSTANTS, ids=hex)
def test_keys_that_differ_by_a_constant_of_the_hash_give_no_copies(constant):
    base = 0x1234567
    first = words(jax.random.key(base), 1, 1 << 15)
    for other in {(base + constant) % 2**32, base ^ constant}:
        assert_no_copies(first, words(jax.random.key(other), 1, 1 << 15))
    assert_no_copies(words(jax.random.fold_in(KEY, 5), 1, 1 << 15),
                     words(jax.random.fold_in(KEY, (5 + constant) % 2**32), 1, 1 << 15))  # fmt: skip


@pytest.mark.parametrize("distance", [0, 1, 0x155], ids=hex)
def test_rows_whose_first_seeds_nearly_agree_are_kept_apart_by_the_second(distance):
    """The first seed is xored with the place: rows whose first seeds differ in low bits alone hold the same values, in
    another order, until the second seed enters. In a batch of hundreds of rows some do.
    """
    places = 1 << 16
    for second in np.asarray(jax.random.bits(KEY, (8,), jnp.uint32)):
        seeds = jnp.array([[0x7700, 88], [0x7700 ^ distance, second]], jnp.uint32)
        a, b = np.asarray(hash_bits(seeds, (2, places)))
        assert_no_copies(a, b)
        for rate in (0.1, 0.5):
            threshold = np.uint32(rate * 2**32)
            assert_uncorrelated(a >= threshold, b[np.arange(places) ^ distance] >= threshold, rate)


@pytest.mark.parametrize("constant", CONSTANTS, ids=hex)
def test_even_second_seeds_that_differ_by_a_constant_of_the_hash_give_no_like_masks(constant):
    """Two rows need 64 agreeing bits of their keys for this, so 2 % of correlation is asked and not five sigmas: a
    second seed that differs in its highest bit alone is told apart by the last rounds to 1.3 %.
    """
    for second in {(88 + constant) % 2**32, 88 ^ constant}:
        a, b = np.asarray(hash_bits(jnp.array([[77, 88], [77, second]], jnp.uint32), (2, 1 << 18)))
        assert (a != b).all()
        assert abs(np.corrcoef(a >> 31, b >> 31)[0, 1]) < 0.02


def test_rows_of_a_batch_share_no_words():
    rows = words(KEY, 64, 1 << 12)
    values, counts = np.unique(rows, return_counts=True)
    by_chance = rows.size**2 / 2 / 2**32
    assert (counts > 1).sum() < by_chance + SIGMAS * np.sqrt(by_chance) + 2


def seeds_of_passes(model_config, steps, monkeypatch):
    """The seeds with which a forward pass of the model calls dropout, [rows, 2] each, for each step."""
    found = []

    def record(seeds):
        found.append(np.array(seeds))
        return np.zeros((), np.float32)

    def spy(x, rate, seeds, places=None):
        # Its result is used, so it is called; flax refuses callbacks with effects in a scan.
        zero = jax.pure_callback(record, jax.ShapeDtypeStruct((), jnp.float32), seeds)
        return dropout(x + zero, rate, seeds, places)

    monkeypatch.setattr(encoder, "dropout", spy)
    monkeypatch.setattr(attention, "dropout", spy)
    model, batch = BertForPreTraining(model_config, deterministic=False), zero_batch(model_config)
    shapes = jax.eval_shape(lambda: initialize(model_config, KEY))
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
    predict = jax.jit(lambda step: model.apply(
        {"params": params}, batch, rngs={"dropout": jax.random.fold_in(KEY, step)}
    ))  # fmt: skip
    for step in range(steps):
        jax.block_until_ready(predict(step))
        yield found[:]
        found.clear()


def test_every_site_layer_and_step_has_seeds_of_its_own(small_config, monkeypatch):
    """More layers than one round of the scan holds: they must differ inside a round and from round to round."""
    monkeypatch.setitem(encoder.UNROLLED_LAYERS, "cpu", 4)
    config = dataclasses.replace(small_config, num_layers=6)
    sites = 1 + 3 * 6  # the embeddings; in each layer the attention probabilities and two outputs
    found = list(seeds_of_passes(config, 3, monkeypatch))
    assert [len(drawn) for drawn in found] == [sites] * 3
    each = np.concatenate([seeds for drawn in found for seeds in drawn])
    assert len(np.unique(each, axis=0)) == len(each)
    rows = [np.asarray(hash_bits(jnp.asarray(seeds[:1]), (1, 1 << 12))) for seeds in found[0]]
    for number, row in enumerate(rows):
        for other in rows[:number]:
            assert_no_copies(row, other)


def test_seeds_of_all_layers_at_once_are_those_of_each_by_itself():
    """A run goes on with the masks that it began with: these are the keys that each layer once split by itself."""
    rows = jnp.asarray([5, 0, 70_000])
    found = jax.jit(encoder.seeds_of_layers, static_argnums=1)(KEY, 4, rows)
    assert found.shape == (4, 3, 3, 2) and found.dtype == jnp.uint32
    for layer, key in zip(found, jax.random.split(KEY, 4), strict=True):
        for seeds, own in zip(layer, jax.random.split(key, 3), strict=True):
            np.testing.assert_array_equal(seeds, row_seeds(own, rows))


def test_the_mask_is_the_same_under_jit_and_vmap():
    x = jnp.ones((4, 6, 32))
    keys = jax.random.split(KEY, 3)
    plain = np.stack([drop(x, 0.3, key) for key in keys])
    np.testing.assert_array_equal(np.stack([jax.jit(drop, static_argnums=1)(x, 0.3, key) for key in keys]), plain)
    of_key = functools.partial(drop, x, 0.3)
    np.testing.assert_array_equal(jax.vmap(of_key)(keys), plain)
    np.testing.assert_array_equal(jax.jit(jax.vmap(of_key))(keys), plain)


@pytest.mark.parametrize("config, spec", [
    (MeshConfig(data=4), PartitionSpec(("data", "fsdp"))),
    (MeshConfig(data=2, tensor=2), PartitionSpec(("data", "fsdp"), "tensor")),
    (MeshConfig(data=2, fsdp=2), PartitionSpec("data", None, "fsdp")),
])  # fmt: skip
def test_the_mask_is_the_same_on_four_devices(config, spec):
    x = jax.random.normal(KEY, (8, 4, 64))
    weight = jax.random.normal(jax.random.key(1), x.shape)

    def value_and_gradient(x, weight, key):
        y, back = jax.vjp(lambda x: drop(x, 0.3, key), x)
        return y, back(weight)[0]

    expected = jax.jit(value_and_gradient)(x, weight, KEY)
    mesh = make_mesh(config)
    lie = NamedSharding(mesh, spec)
    with jax.set_mesh(mesh):
        found = jax.jit(value_and_gradient, out_shardings=lie)(jax.device_put(x, lie), jax.device_put(weight, lie), KEY)
    for one, four in zip(expected, found, strict=True):
        assert len(four.addressable_shards) == 4 and not four.is_fully_replicated
        np.testing.assert_array_equal(one, four)
