"""Dropout whose random bits are a hash of key and place, drawn inside the pass that uses them."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.random import threefry_2x32


class Places(NamedTuple):
    """Which places of an axis are there, where not all are."""

    numbers: jax.Array
    """int32 [B, N], of each row its own."""
    size: int
    """Of the whole axis."""


def dropout(x: jax.Array, rate: float, seeds: jax.Array, places: Places | None = None) -> jax.Array:
    """Zeroes each element of x [B, ...] with probability `rate` and scales the others by 1 / (1 - rate).

    Library generators write the bits to memory first, which costs 14 to 32 % of a BERT step. Here each row of the
    batch has 64 bits of a key, its `seeds` [B, 2] (see `row_seeds`), and an integer hash of them and of the place in
    the row gives an element's 32 bits; XLA fuses it into the consumer. The backward pass draws the same bits again, so
    no mask is kept. An element's are the same where x has but some `places` of its last axis but one.
    """
    if rate == 0.0:
        return x
    numbers, size = (None, None) if places is None else places
    return _dropout(rate, size, x, seeds, numbers)


def row_seeds(key: jax.Array, rows: jax.Array) -> jax.Array:
    """64 bits of `key` for each of rows [B], their numbers in the whole batch: uint32 [B, 2], the same for a row in
    whatever part of the batch it is. One block of the generator, counted by the row.
    """
    words, zero = jax.random.key_data(key), jnp.zeros((), jnp.uint32)
    # One row at a time: given all rows at once the generator puts them in one line, which moves them between devices.
    return jax.vmap(lambda row: threefry_2x32(words, jnp.stack([row, zero])))(rows.astype(jnp.uint32))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _dropout(rate: float, size: int | None, x: jax.Array, seeds: jax.Array, numbers: jax.Array | None) -> jax.Array:
    places = None if numbers is None or size is None else Places(numbers, size)
    kept = hash_bits(seeds, x.shape, places) >= threshold(rate)
    return jnp.where(kept, x * jnp.asarray(1 / (1 - rate), x.dtype), jnp.zeros((), x.dtype))


def _forward(
    rate: float, size: int | None, x: jax.Array, seeds: jax.Array, numbers: jax.Array | None
) -> tuple[jax.Array, tuple[jax.Array, jax.Array | None]]:
    return _dropout(rate, size, x, seeds, numbers), (seeds, numbers)


def _backward(
    rate: float, size: int | None, drawn_with: tuple[jax.Array, jax.Array | None], gradient: jax.Array
) -> tuple[jax.Array, None, None]:
    return _dropout(rate, size, gradient, *drawn_with), None, None


_dropout.defvjp(_forward, _backward)


def hash_bits(seeds: jax.Array, shape: tuple[int, ...], places: Places | None = None) -> jax.Array:
    """uint32 of `shape` [B, ...] from seeds [B, 2] uint32: the hash of each element's place in its row, whose last
    axis but one may have some `places` alone.
    """
    place, stride = jnp.zeros((1,) * len(shape), jnp.uint32), 1
    for axis in range(len(shape) - 1, 0, -1):
        if places is not None and axis == len(shape) - 2:
            index, size = places.numbers.astype(jnp.uint32).reshape(-1, *(1,) * (axis - 1), shape[axis], 1), places.size
        else:
            index, size = jax.lax.broadcasted_iota(jnp.uint32, (1, *shape[1:]), axis), shape[axis]
        place, stride = place + index * jnp.uint32(stride), stride * size
    first, second = (seeds[:, i].reshape(-1, *(1,) * (len(shape) - 1)) for i in (0, 1))
    return mixed(place, first, second)


def mixed(place: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
    """uint32 bits of places, uint32, under two seeds: two rounds of multiply and xor-shift, a seed before each.

    The multipliers are those of Wellons' `lowbias32`. The second seed keeps two rows whose first seeds agree in
    their high bits from being permutations of each other.
    """
    x = place ^ first
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) + second
    x = (x ^ (x >> 16)) * jnp.uint32(0x846CA68B)
    x = (x ^ (x >> 15)) * jnp.uint32(0x7FEB352D)
    return x ^ (x >> 16)


def threshold(rate: float) -> jax.Array:
    """An element is kept where its 32 bits are not below this."""
    return jnp.uint32(min(round(rate * 2**32), 2**32 - 1))
