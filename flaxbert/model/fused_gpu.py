"""The fused attention kernels for GPU (Triton): blocks of queries against blocks of keys, so that registers suffice."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from flaxbert.model.fused_blocks import Draw, Inputs, draw_of, dropped, kept, masked_scores, product

BLOCK = 64  # queries or keys: [BLOCK, BLOCK] float32 are 32 registers of each thread of four warps
HEAD_SIZES = (32, 64, 128)  # powers of two, as Triton's blocks must be


def forward(rate: float, interpret: bool, inputs: Inputs) -> jax.Array:
    """The output [B, S, H, K] (FlashAttention-2, Dao 2023, algorithm 1)."""
    found, = _run(_forward, ["own"], rate, interpret, inputs, ["own", "all", "all"], inputs[:3])
    return found


def backward(rate: float, interpret: bool, inputs: Inputs, gradient: jax.Array) -> tuple[jax.Array, ...]:
    """The gradients of query, key and value [B, S, H, K] from that of the output (same, algorithm 2). What the softmax
    needs of a whole row is computed again, so nothing of the forward pass is kept for it.
    """
    arrays = (*inputs[:3], gradient)
    of_query, logs, means = _run(
        _query_backward, ["own", "row", "row"], rate, interpret, inputs, ["own", "all", "all", "own"], arrays
    )
    of_key, of_value = _run(
        _key_backward, ["own", "own"], rate, interpret, inputs,
        ["all", "own", "own", "all", "whole row", "whole row"], (*arrays, logs, means),
    )  # fmt: skip
    return of_query, of_key, of_value


def _run(
    kernel: Callable[..., None], outputs: list[str], rate: float, interpret: bool, inputs: Inputs, kinds: list[str],
    arrays: tuple[jax.Array, ...],
) -> tuple[jax.Array, ...]:  # fmt: skip
    """Runs a kernel over a grid of blocks, rows and heads. Kinds of arrays, by what a program sees: of [B, S, H, K] its
    `own` block or `all` of the head; of float32 [B, H, S] its `row` of a block or the `whole row`.
    """
    batch, length, heads, size = inputs.query.shape
    specs = {
        "own": pl.BlockSpec((None, BLOCK, None, size), lambda block, row, head: (row, block, head, 0)),
        "all": pl.BlockSpec((None, length, None, size), lambda block, row, head: (row, 0, head, 0)),
        "row": pl.BlockSpec((None, None, BLOCK), lambda block, row, head: (row, head, block)),
        "whole row": pl.BlockSpec((None, None, length), lambda block, row, head: (row, head, 0)),
    }
    numbers = pl.BlockSpec(inputs.numbers.shape, lambda block, row, head: (0,))
    ids = pl.BlockSpec((None, length), lambda block, row, head: (row, 0))
    own = jax.ShapeDtypeStruct(inputs.query.shape, inputs.query.dtype)
    rows = jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)
    found: tuple[jax.Array, ...] = pl.pallas_call(
        functools.partial(kernel, rate, length),
        grid=(length // BLOCK, batch, heads),
        in_specs=[numbers, ids, *(specs[kind] for kind in kinds)],
        out_specs=[specs[kind] for kind in outputs],
        out_shape=[own if kind == "own" else rows for kind in outputs],
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
    )(inputs.numbers, inputs.sequence_ids, *arrays)
    return found


def _begin(rate: float, length: int, numbers: Any) -> tuple[Draw, jax.Array]:
    """(what dropout draws with, where the program's own block begins)."""
    return draw_of(rate, length, numbers, pl.program_id(1), pl.program_id(2)), pl.program_id(0) * BLOCK


def _for_blocks(length: int, step: Callable[[Any, Any], Any], carry: Any) -> Any:
    """Carries through `step` with each start of a block."""
    return jax.lax.fori_loop(0, length // BLOCK, lambda number, carry: step(number * BLOCK, carry), carry)


def _scores(query: jax.Array, key: jax.Array, ids: Any, first: Any, second: Any) -> jax.Array:
    """[Q, T] of blocks of queries and of keys that begin there."""
    return masked_scores(query, key, ids[pl.ds(first, BLOCK)][:, None], ids[pl.ds(second, BLOCK)][None, :])


def _forward(
    rate: float, length: int, numbers: Any, ids: Any, query: Any, key: Any, value: Any, output: Any
) -> None:
    draw, start = _begin(rate, length, numbers)
    own = query[...]

    def step(at: Any, carry: Any) -> Any:
        sums, most, total = carry
        scores = _scores(own, key[pl.ds(at, BLOCK), :], ids, start, at)
        most, before = jnp.maximum(most, jnp.max(scores, axis=1)), most
        weights, correction = jnp.exp(scores - most[:, None]), jnp.exp(before - most)
        total = total * correction + jnp.sum(weights, axis=1)
        left = dropped(draw, weights, kept(draw, start, at, weights.shape)).astype(own.dtype)
        return sums * correction[:, None] + product(left, value[pl.ds(at, BLOCK), :], 1, 0), most, total

    zeros, none = jnp.zeros(own.shape, jnp.float32), jnp.full(BLOCK, -jnp.inf, jnp.float32)
    sums, _, total = _for_blocks(length, step, (zeros, none, jnp.zeros(BLOCK, jnp.float32)))
    output[...] = (sums / total[:, None]).astype(output.dtype)


def _query_backward(
    rate: float, length: int, numbers: Any, ids: Any, query: Any, key: Any, value: Any, gradient: Any,
    query_gradient: Any, logs: Any, means: Any,
) -> None:  # fmt: skip
    """The gradient of a block of queries, and of each the logarithm of its softmax's sum and the mean, under its
    probabilities, of their gradients.
    """
    draw, start = _begin(rate, length, numbers)
    own, above = query[...], gradient[...]

    def of_block(at: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        keys = key[pl.ds(at, BLOCK), :]
        scores, of_weights = _scores(own, keys, ids, start, at), product(above, value[pl.ds(at, BLOCK), :], 1, 1)
        return keys, scores, dropped(draw, of_weights, kept(draw, start, at, scores.shape))

    def statistics(at: Any, carry: Any) -> Any:
        most, total, weighted = carry
        _, scores, of_weights = of_block(at)
        most, before = jnp.maximum(most, jnp.max(scores, axis=1)), most
        weights, correction = jnp.exp(scores - most[:, None]), jnp.exp(before - most)
        total = total * correction + jnp.sum(weights, axis=1)
        return most, total, weighted * correction + jnp.sum(weights * of_weights, axis=1)

    none, zeros = jnp.full(BLOCK, -jnp.inf, jnp.float32), jnp.zeros(BLOCK, jnp.float32)
    most, total, weighted = _for_blocks(length, statistics, (none, zeros, zeros))
    log, mean = most + jnp.log(total), weighted / total

    def step(at: Any, sums: jax.Array) -> jax.Array:
        keys, scores, of_weights = of_block(at)
        return sums + product(_of_scores(own, scores, log, of_weights, mean), keys, 1, 0)

    sums = _for_blocks(length, step, jnp.zeros(own.shape, jnp.float32))
    query_gradient[...], logs[...], means[...] = sums.astype(query_gradient.dtype), log, mean


def _key_backward(
    rate: float, length: int, numbers: Any, ids: Any, query: Any, key: Any, value: Any, gradient: Any, logs: Any,
    means: Any, key_gradient: Any, value_gradient: Any,
) -> None:  # fmt: skip
    """The gradients of a block of keys and values."""
    draw, start = _begin(rate, length, numbers)
    keys, values = key[...], value[...]

    def step(at: Any, carry: Any) -> Any:
        of_keys, of_values = carry
        rows = pl.ds(at, BLOCK)
        own, above = query[rows, :], gradient[rows, :]
        scores, log = _scores(own, keys, ids, at, start), logs[rows]
        which = kept(draw, at, start, scores.shape)
        left = dropped(draw, jnp.exp(scores - log[:, None]), which).astype(above.dtype)
        of_weights = dropped(draw, product(above, values, 1, 1), which)
        of_scores = _of_scores(own, scores, log, of_weights, means[rows])
        return of_keys + product(of_scores, own, 0, 0), of_values + product(left, above, 0, 0)

    zeros = jnp.zeros(keys.shape, jnp.float32)
    of_keys, of_values = _for_blocks(length, step, (zeros, zeros))
    key_gradient[...] = of_keys.astype(key_gradient.dtype)
    value_gradient[...] = of_values.astype(value_gradient.dtype)


def _of_scores(query: jax.Array, scores: jax.Array, log: jax.Array, of_weights: jax.Array, mean: jax.Array) -> Any:
    """The gradient of products before they are scaled, in the type of the query."""
    weights = jnp.exp(scores - log[:, None])
    return (weights * (of_weights - mean[:, None]) * query.shape[-1] ** -0.5).astype(query.dtype)
