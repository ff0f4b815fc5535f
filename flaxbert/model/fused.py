"""Fused attention as one differentiable function: the kernels of the platform that it is compiled for."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from flaxbert.model import fused_tpu
from flaxbert.model.fused_tpu import Inputs

LONGEST = 1024  # a whole row of keys and values stays on the chip, and a block of queries' scores beside it


def fused_refusal(request: Any) -> str | None:
    """See `flaxbert.model.attention.refusal`."""
    if request.length % fused_tpu.LANES or request.length > LONGEST:
        return (
            f"needs a sequence length that is a multiple of {fused_tpu.LANES} and at most {LONGEST}, "
            f"found {request.length}"
        )
    if fused_tpu.heads_together(request.heads, request.head_size) is None:
        return (
            f"cannot put {request.heads} heads of size {request.head_size} together to blocks that are a multiple of "
            f"{fused_tpu.LANES} wide and at most {fused_tpu.WIDEST_BLOCK}"
        )
    return None


def fused_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, sequence_ids: jax.Array, rate: float, seeds: jax.Array,
    first_head: jax.Array | int = 0,
) -> jax.Array:  # fmt: skip
    """Maps query, key, value [B, S, H, K] to [B, S, H, K] and writes nothing of the size [B, H, S, S], forward or
    backward.

    `seeds` uint32 [B, 2] are those of `row_seeds`; `first_head` is the number of the first head among all, of which
    others may lie on other devices. Off the TPU the kernels are interpreted: correct, and slow.
    """
    words = jax.lax.bitcast_convert_type(seeds, jnp.int32).reshape(-1)
    numbers = jnp.concatenate([jnp.asarray(first_head, jnp.int32)[None], words])
    return _fused(rate, Inputs(query, key, value, sequence_ids, numbers))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(rate: float, inputs: Inputs) -> jax.Array:
    return jax.lax.platform_dependent(
        inputs, tpu=functools.partial(fused_tpu.forward, rate, False),
        default=functools.partial(fused_tpu.forward, rate, True),
    )  # fmt: skip


def _forward(rate: float, inputs: Inputs) -> tuple[jax.Array, Inputs]:
    return _fused(rate, inputs), inputs


def _backward(rate: float, inputs: Inputs, gradient: jax.Array) -> tuple[Inputs]:
    query, key, value = jax.lax.platform_dependent(
        inputs, gradient, tpu=functools.partial(fused_tpu.backward, rate, False),
        default=functools.partial(fused_tpu.backward, rate, True),
    )  # fmt: skip
    return Inputs(query, key, value, None, None),  # type: ignore[arg-type]  # integers have no gradient


_fused.defvjp(_forward, _backward)
