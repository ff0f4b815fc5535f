"""Matrix products of rounded operands with float32 sums, forward and backward, as a platform does them fast."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from flaxbert.sharding import platform


def einsum(subscripts: str, left: jax.Array, right: jax.Array, dtype: Any) -> jax.Array:
    """`jnp.einsum` of two arrays rounded to `dtype`; float32. Each letter is in two of the three places.

    In the backward pass the gradient is rounded too: left as it is, it would make both products there float32 ones,
    but on a TPU, which rounds what it multiplies by itself and else had to write it down once more. Below float32 there
    is no forward-mode derivative.
    """
    if dtype == jnp.float32 or platform() == "tpu":
        left, right = left.astype(dtype), right.astype(dtype)
        return jnp.einsum(subscripts, left, right, preferred_element_type=jnp.float32)
    return _einsum(subscripts, jnp.dtype(dtype), left, right)


def results_dtype(dtype: Any) -> Any:
    """What a dense layer gives whose product is in `dtype`. A CPU knows bfloat16 as the operand of a product alone:
    to work on it otherwise it converts back and forth.
    """
    return jnp.dtype(jnp.float32) if platform() == "cpu" else jnp.dtype(dtype)


def einsum_in_type(subscripts: str, left: jax.Array, right: jax.Array) -> jax.Array:
    """`einsum` in the type of `right`, which is that of the result too."""
    if platform() == "cpu":
        return einsum(subscripts, left, right, right.dtype).astype(right.dtype)
    return jnp.einsum(subscripts, left.astype(right.dtype), right)


def dense_product(dtype: Any, left: jax.Array, kernel: jax.Array, dimensions: Any, **unused: Any) -> jax.Array:
    """`einsum` of left [N, ...] and a kernel over all axes of left but the first, as `nn.DenseGeneral` asks for it.

    Both are matrices by then: the gradient of a kernel with more axes would be written once more, transposed.
    """
    out = kernel.shape[len(dimensions[0][0]):]
    left = left.reshape(len(left), -1)
    return einsum("nd,df->nf", left, kernel.reshape(left.shape[1], -1), dtype).reshape(-1, *out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _einsum(subscripts: str, dtype: Any, left: jax.Array, right: jax.Array) -> jax.Array:
    return _product(subscripts, left.astype(dtype), right.astype(dtype))


def _forward(subscripts: str, dtype: Any, left: jax.Array, right: jax.Array) -> tuple[jax.Array, tuple[Any, ...]]:
    types = jnp.zeros(0, left.dtype), jnp.zeros(0, right.dtype)
    left, right = left.astype(dtype), right.astype(dtype)
    return _product(subscripts, left, right), (left, right, *types)  # bare: rematerialization looks for products


def _backward(subscripts: str, dtype: Any, kept: tuple[Any, ...], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    left, right, left_type, right_type = kept
    operands, out = subscripts.split("->")
    first, second = operands.split(",")
    of_left = _einsum(f"{out},{second}->{first}", dtype, gradient, right)
    of_right = _einsum(f"{first},{out}->{second}", dtype, left, gradient)
    return of_left.astype(left_type.dtype), of_right.astype(right_type.dtype)


_einsum.defvjp(_forward, _backward)


def _product(subscripts: str, left: jax.Array, right: jax.Array) -> jax.Array:
    if platform() == "cpu":
        if jax.sharding.get_abstract_mesh().size <= 1:  # 0: none is set
            return _arranged(subscripts, left, right)
        # XLA does not divide what has its layout said, and each device would gather all of it.
        left, right = left.astype(jnp.float32), right.astype(jnp.float32)
    return jnp.einsum(subscripts, left, right, preferred_element_type=jnp.float32)


def _arranged(subscripts: str, left: jax.Array, right: jax.Array) -> jax.Array:
    """The product in the one form that XLA gives to its library for CPUs, at twice the rate of float32: axes that all
    have come first, the left operand's last axis is summed over, and everything lies row by row. What is not in this
    form it converts to float32. Either operand may be the left one: of the two ways, the one that moves less memory.
    """
    operands, out = subscripts.split("->")
    first, second = operands.split(",")
    sizes = dict(zip(first + second, left.shape + right.shape))
    batch = "".join(axis for axis in first if axis in second and axis in out)
    (summed,) = set(first) & set(second) - set(out)

    def way(first: str, second: str) -> tuple[int, str, str, str]:
        """(bytes moved, axes of the left operand, of the right one, of the result)."""
        own, other = ("".join(axis for axis in axes if axis not in batch + summed) for axes in (first, second))
        rows, columns, result = (
            f"{batch}{own}{summed}", batch + "".join(axis for axis in second if axis not in batch), batch + own + other
        )  # fmt: skip
        turned = ((first, rows, 2), (second, columns, 2), (out, result, 4))
        moved = sum(size * math.prod(sizes[axis] for axis in old) for old, new, size in turned if old != new)
        return moved, rows, columns, result

    if way(second, first)[0] < way(first, second)[0]:
        first, second, left, right = second, first, right, left
    _, rows, columns, result = way(first, second)
    axes = (rows.index(summed),), (columns.index(summed),)
    together = tuple(range(len(batch)))
    product = jax.lax.dot_general(
        _in_rows(_turned(left, first, rows)), _in_rows(_turned(right, second, columns)), (axes, (together, together)),
        preferred_element_type=jnp.float32,
    )
    return _turned(_in_rows(product), result, out)  # bare, a transposition of it is made one of the operands


def _turned(x: jax.Array, axes: str, wanted: str) -> jax.Array:
    return x if axes == wanted else jnp.transpose(x, [axes.index(axis) for axis in wanted])


def _in_rows(x: jax.Array) -> jax.Array:
    found: jax.Array = with_layout_constraint(x, Layout(tuple(range(x.ndim))))
    return found
