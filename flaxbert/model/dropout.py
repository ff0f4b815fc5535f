"""Dropout whose random bits are a hash of key and place, drawn inside the pass that uses them."""

import functools

import jax
import jax.numpy as jnp
from jax.extend.random import threefry_2x32


def dropout(x: jax.Array, rate: float, key: jax.Array, rows: jax.Array | None = None) -> jax.Array:
    """Zeroes each element of x [B, ...] with probability `rate` and scales the others by 1 / (1 - rate).

    Library generators write the bits to memory first, which costs 14 to 32 % of a BERT step. Here each row of the
    batch gets 64 bits of `key`, and an integer hash of them and of the place in the row gives an element's 32 bits;
    XLA fuses it into the consumer. The backward pass draws the same bits again, so no mask is kept. `rows` [B] are the
    numbers of the rows in the whole batch (None: 0, 1, …): a row's mask is the same in whatever part it is computed.
    """
    if rate == 0.0:
        return x
    return _dropout(rate, x, row_seeds(key, jnp.arange(x.shape[0]) if rows is None else rows))


def row_seeds(key: jax.Array, rows: jax.Array) -> jax.Array:
    """64 bits of `key` for each of rows [B]: uint32 [B, 2]. One block of the generator, counted by the row."""
    words, zero = jax.random.key_data(key), jnp.zeros((), jnp.uint32)
    # One row at a time: given all rows at once the generator puts them in one line, which moves them between devices.
    return jax.vmap(lambda row: threefry_2x32(words, jnp.stack([row, zero])))(rows.astype(jnp.uint32))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dropout(rate: float, x: jax.Array, seeds: jax.Array) -> jax.Array:
    kept = hash_bits(seeds, x.shape) >= threshold(rate)
    return jnp.where(kept, x * jnp.asarray(1 / (1 - rate), x.dtype), jnp.zeros((), x.dtype))


def _forward(rate: float, x: jax.Array, seeds: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _dropout(rate, x, seeds), seeds


def _backward(rate: float, seeds: jax.Array, gradient: jax.Array) -> tuple[jax.Array, None]:
    return _dropout(rate, gradient, seeds), None


_dropout.defvjp(_forward, _backward)


def hash_bits(seeds: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """uint32 of `shape` [B, ...] from seeds [B, 2] uint32: the hash of each element's place in its row."""
    strides = [1]
    for size in reversed(shape[2:]):
        strides.append(strides[-1] * size)
    place = jnp.zeros((1,) * len(shape), jnp.uint32)
    for axis, stride in zip(range(len(shape) - 1, 0, -1), strides):
        place = place + jax.lax.broadcasted_iota(jnp.uint32, (1, *shape[1:]), axis) * jnp.uint32(stride)
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
