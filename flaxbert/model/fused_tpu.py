"""The fused attention kernels for TPU (Mosaic): scores and probabilities live on the chip and are never written out."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from flaxbert.model.fused_blocks import Draw, Inputs, draw_of, dropped, kept, masked_scores, product

LANES = 128
WIDEST_BLOCK = 512  # columns of a program: beyond it what it reads and writes at S = 1024 outgrows the chip's memory
QUERIES = 256  # that are computed at once, at most: [QUERIES, 1024] float32 is 1 MB, and several such live together


class _Shape(NamedTuple):
    """What is known of a kernel when it is compiled. Its first letters are those of the house's axes."""

    rate: float
    length: int
    together: int
    """Heads of one program."""
    head_size: int


def heads_together(heads: int, head_size: int) -> int | None:
    """How many heads one program computes: the fewest whose columns fill whole lanes, as blocks must be cut, or all of
    them. None where neither can be.
    """
    for count in range(1, heads + 1):
        whole = count * head_size % LANES == 0 or count == heads
        if heads % count == 0 and whole and count * head_size <= WIDEST_BLOCK:
            return count
    return None


def forward(rate: float, interpret: bool, inputs: Inputs) -> jax.Array:
    """The output [B, S, H, K]."""
    found, = _run(_forward, 1, rate, interpret, inputs, inputs[:3])
    return found


def backward(rate: float, interpret: bool, inputs: Inputs, gradient: jax.Array) -> tuple[jax.Array, ...]:
    """The gradients of query, key and value [B, S, H, K] from that of the output. Probabilities are computed again:
    the whole of a row's keys is there, so nothing of the forward pass is kept for it.
    """
    size = (inputs.query.shape[1], inputs.query.shape[3])
    sums = [pltpu.VMEM(size, jnp.float32)] * 2
    return _run(_backward, 3, rate, interpret, inputs, (*inputs[:3], gradient), scratch_shapes=sums)


def _run(
    kernel: Callable[..., None], outputs: int, rate: float, interpret: bool, inputs: Inputs, arrays: Any, **options: Any
) -> tuple[jax.Array, ...]:
    """Runs a kernel over a grid of rows and groups of heads, on arrays [B, S, H, K].

    They are read as [B, S, H * K], which is how a dense layer leaves them: nothing is transposed, and no lane is lost
    to heads that are narrower than 128.
    """
    batch, length, heads, size = inputs.query.shape
    together = heads_together(heads, size)
    assert together is not None, "attention refuses what cannot be cut"
    block = pl.BlockSpec((None, length, together * size), lambda row, group: (row, 0, group))
    ids = pl.BlockSpec((None, 1, length), lambda row, group: (row, 0, 0))
    found = pl.pallas_call(
        functools.partial(kernel, _Shape(rate, length, together, size)),
        grid=(batch, heads // together),
        in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), ids, *[block] * len(arrays)],
        out_specs=[block] * outputs,
        out_shape=[jax.ShapeDtypeStruct((batch, length, heads * size), inputs.query.dtype)] * outputs,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        interpret=interpret,
        **options,
    )(inputs.numbers, inputs.sequence_ids[:, None], *(x.reshape(batch, length, heads * size) for x in arrays))
    return tuple(x.reshape(inputs.query.shape) for x in found)


def _forward(shape: _Shape, numbers: Any, ids: Any, query: Any, key: Any, value: Any, output: Any) -> None:
    for draw, columns in _heads(shape, numbers):

        def block(rows: Any, start: Any) -> None:
            weights = _probabilities(query[rows, columns], key[:, columns], ids, rows)
            weights = dropped(draw, weights, kept(draw, start, 0, weights.shape))
            output[rows, columns] = product(weights.astype(value.dtype), value[:, columns], 1, 0).astype(output.dtype)

        _for_queries(shape, block)


def _backward(
    shape: _Shape, numbers: Any, ids: Any, query: Any, key: Any, value: Any, gradient: Any,
    query_gradient: Any, key_gradient: Any, value_gradient: Any, key_sum: Any, value_sum: Any,
) -> None:  # fmt: skip
    for draw, columns in _heads(shape, numbers):
        key_sum[...] = jnp.zeros_like(key_sum)
        value_sum[...] = jnp.zeros_like(value_sum)

        def block(rows: Any, start: Any) -> None:
            own, above = query[rows, columns], gradient[rows, columns]
            weights = _probabilities(own, key[:, columns], ids, rows)
            which = kept(draw, start, 0, weights.shape)
            value_sum[...] += product(dropped(draw, weights, which).astype(above.dtype), above, 0, 0)
            of_weights = dropped(draw, product(above, value[:, columns], 1, 1), which)  # [Q, S]
            mean = jnp.sum(weights * of_weights, axis=-1, keepdims=True)
            of_scores = (weights * (of_weights - mean) * shape.head_size**-0.5).astype(own.dtype)
            query_gradient[rows, columns] = product(of_scores, key[:, columns], 1, 0).astype(own.dtype)
            key_sum[...] += product(of_scores, own, 0, 0)

        _for_queries(shape, block)
        key_gradient[:, columns] = key_sum[...].astype(key_gradient.dtype)
        value_gradient[:, columns] = value_sum[...].astype(value_gradient.dtype)


def _heads(shape: _Shape, numbers: Any) -> Iterator[tuple[Draw, slice]]:
    """The heads of a program: what dropout draws with, and their columns."""
    first = draw_of(shape.rate, shape.length, numbers, pl.program_id(0), pl.program_id(1) * shape.together)
    for number in range(shape.together):
        columns = slice(number * shape.head_size, (number + 1) * shape.head_size)
        yield first._replace(head=first.head + number), columns


def _for_queries(shape: _Shape, block: Callable[[Any, Any], None]) -> None:
    """Calls `block` with a slice of the queries and with where it begins, for all of them."""
    size = QUERIES if shape.length % QUERIES == 0 else LANES

    def step(number: jax.Array, carry: None) -> None:
        start = pl.multiple_of(number * size, size)
        block(pl.ds(start, size), start)

    jax.lax.fori_loop(0, shape.length // size, step, None)


def _probabilities(query: jax.Array, key: jax.Array, ids: Any, rows: Any) -> jax.Array:
    """float32 [Q, S] of query [Q, K] and key [S, K]; ids [1, S]."""
    scores = masked_scores(query, key, ids[:, rows].reshape(-1, 1), ids[...])
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    return weights / jnp.sum(weights, axis=-1, keepdims=True)
