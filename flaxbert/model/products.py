"""Matrix products of rounded operands with float32 sums, forward and backward, as a platform does them fast."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from flaxbert.sharding import platform


def einsum(subscripts: str, left: jax.Array, right: jax.Array, dtype: Any) -> jax.Array:
    """`jnp.einsum` of two arrays rounded to `dtype`; float32. Each letter is in two of the three places.

    In the backward pass the gradient is rounded too: left as it is, it would make both products there float32 ones.
    """
    if dtype == jnp.float32:
        return jnp.einsum(subscripts, left, right, preferred_element_type=jnp.float32)
    return _einsum(subscripts, jnp.dtype(dtype), left, right)


def results_dtype(dtype: Any) -> Any:
    """What a dense layer gives whose product is in `dtype`. A CPU knows bfloat16 as the operand of a product alone:
    to work on it otherwise it converts back and forth.
    """
    return jnp.dtype(jnp.float32) if platform() == "cpu" else jnp.dtype(dtype)


def dense_product(dtype: Any, left: jax.Array, kernel: jax.Array, dimensions: Any, **unused: Any) -> jax.Array:
    """`einsum` of left [N, ...] and a kernel over all axes of left but the first, as `nn.DenseGeneral` asks for it.

    Both are matrices by then: the gradient of a kernel with more axes would be written once more, transposed.
    """
    out = kernel.shape[len(dimensions[0][0]):]
    left = left.reshape(len(left), -1)
    return einsum("nd,df->nf", left, kernel.reshape(left.shape[1], -1), dtype).reshape(-1, *out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _einsum(subscripts: str, dtype: Any, left: jax.Array, right: jax.Array) -> jax.Array:
    left, right = left.astype(dtype), right.astype(dtype)
    if platform() == "cpu":
        if left.ndim == right.ndim == 2:
            return _arranged(subscripts, left, right)
        left, right = left.astype(jnp.float32), right.astype(jnp.float32)
    return jnp.einsum(subscripts, left, right, preferred_element_type=jnp.float32)


def _forward(subscripts: str, dtype: Any, left: jax.Array, right: jax.Array) -> tuple[jax.Array, tuple[Any, ...]]:
    types = jnp.zeros(0, left.dtype), jnp.zeros(0, right.dtype)
    left, right = left.astype(dtype), right.astype(dtype)
    return _einsum(subscripts, dtype, left, right), (left, right, *types)


def _backward(subscripts: str, dtype: Any, kept: tuple[Any, ...], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    left, right, left_type, right_type = kept
    operands, out = subscripts.split("->")
    first, second = operands.split(",")
    of_left = _einsum(f"{out},{second}->{first}", dtype, gradient, right)
    of_right = _einsum(f"{first},{out}->{second}", dtype, left, gradient)
    return of_left.astype(left_type.dtype), of_right.astype(right_type.dtype)


_einsum.defvjp(_forward, _backward)


def _arranged(subscripts: str, left: jax.Array, right: jax.Array) -> jax.Array:
    """The product of two matrices in the one form that XLA gives to its library for CPUs, at twice the rate of float32:
    the left one's last axis is summed over, and both lie row by row. Anything else it converts to float32.
    """
    operands, out = subscripts.split("->")
    first, second = operands.split(",")
    if out[0] in second:
        first, second, left, right = second, first, right, left
    summed = next(letter for letter in first if letter in second)
    if first[-1] != summed:
        left = left.T
    axes = ((1,), (second.index(summed),)), ((), ())
    product = jax.lax.dot_general(_in_rows(left), _in_rows(right), axes, preferred_element_type=jnp.float32)
    return _in_rows(product)  # a transposition of it would be made one of the operands


def _in_rows(x: jax.Array) -> jax.Array:
    found: jax.Array = with_layout_constraint(x, Layout((0, 1)))
    return found
