"""What the fused attention kernels of all platforms share: one block of scores, and dropout on it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flaxbert.model.dropout import mixed, threshold


class Inputs(NamedTuple):
    """What the kernels read beside the gradient."""

    query: jax.Array
    """[B, S, H, K], as key and value."""
    key: jax.Array
    value: jax.Array
    sequence_ids: jax.Array
    """[B, S]."""
    numbers: jax.Array
    """int32 [1 + 2 B]: the number of the first head among all, and the two seeds of each row."""


class Draw(NamedTuple):
    """What dropout draws with in one program; scalars."""

    rate: float
    length: int
    """S."""
    head: jax.Array
    """The number, among all heads, of the program's first one."""
    first: jax.Array
    """uint32, as the second: the seeds of the row."""
    second: jax.Array


def draw_of(rate: float, length: int, numbers: Any, row: Any, head: Any) -> Draw:
    """Of a row and of a head, counted from the first one here. Call it before any loop: inside one the interpreter
    does not know which program it is.
    """
    first, second = (numbers[1 + 2 * row + word].astype(jnp.uint32) for word in (0, 1))
    return Draw(rate, length, numbers[0] + head, first, second)


def kept(draw: Draw, query: Any, key: Any, size: tuple[int, ...]) -> jax.Array | None:
    """Which of [Q, T] probabilities dropout leaves, the first of them that of so manieth query and key, by the hash of
    their place in [H, S, S]; None: all.
    """
    if draw.rate == 0.0:
        return None
    query = draw.head * draw.length + query + jax.lax.broadcasted_iota(jnp.int32, size, 0)
    place = query * draw.length + key + jax.lax.broadcasted_iota(jnp.int32, size, 1)
    return mixed(place.astype(jnp.uint32), draw.first, draw.second) >= threshold(draw.rate)


def dropped(draw: Draw, x: jax.Array, which: jax.Array | None) -> jax.Array:
    """x [Q, T] without what is not kept, and the rest scaled."""
    return x if which is None else jnp.where(which, x * (1 / (1 - draw.rate)), 0.0)


def masked_scores(query: jax.Array, key: jax.Array, own: jax.Array, ids: jax.Array) -> jax.Array:
    """float32 [Q, T] of query [Q, K] and key [T, K] with the ids own [Q, 1] and ids [1, T], as `attention_weights`
    computes them.
    """
    scores = product(query, key, 1, 1)
    return jnp.where(own == ids, scores * query.shape[-1] ** -0.5, jnp.finfo(jnp.float32).min)


def product(left: jax.Array, right: jax.Array, left_axis: int, right_axis: int) -> jax.Array:
    """float32 sums over an axis of each."""
    axes = (((left_axis,), (right_axis,)), ((), ()))
    return jax.lax.dot_general(left, right, axes, preferred_element_type=jnp.float32)
