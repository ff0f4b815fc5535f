"""Fused attention as one differentiable function: the kernels of the platform that it is compiled for."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flaxbert.model import fused_gpu, fused_tpu
from flaxbert.model.fused_blocks import Inputs

LONGEST = 1024  # a whole row of keys and values stays on the chip, and a block of queries' scores beside it


def fused_refusal(request: Any, platform: str | None) -> str | None:
    """See `flaxbert.model.attention.refusal`."""
    if request.length % fused_tpu.LANES or request.length > LONGEST:
        return (
            f"needs a sequence length that is a multiple of {fused_tpu.LANES} and at most {LONGEST}, "
            f"found {request.length}"
        )
    if platform == "gpu" and request.head_size not in fused_gpu.HEAD_SIZES:
        return f"needs a head size of {', '.join(map(str, fused_gpu.HEAD_SIZES))} on gpu, found {request.head_size}"
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
    others may lie on other devices. On a CPU the kernels are interpreted: correct, and slow.
    """
    words = jax.lax.bitcast_convert_type(seeds, jnp.int32).reshape(-1)
    numbers = jnp.concatenate([jnp.asarray(first_head, jnp.int32)[None], words])
    return _fused(rate, Inputs(query, key, value, sequence_ids, numbers))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(rate: float, inputs: Inputs) -> jax.Array:
    return _by_platform(rate, fused_tpu.forward, fused_gpu.forward, inputs)


def _forward(rate: float, inputs: Inputs) -> tuple[jax.Array, Inputs]:
    return _fused(rate, inputs), inputs


def _backward(rate: float, inputs: Inputs, gradient: jax.Array) -> tuple[Inputs]:
    query, key, value = _by_platform(rate, fused_tpu.backward, fused_gpu.backward, inputs, gradient)
    return Inputs(query, key, value, None, None),  # type: ignore[arg-type]  # integers have no gradient


_fused.defvjp(_forward, _backward)


def _by_platform(rate: float, on_tpu: Callable[..., Any], on_gpu: Callable[..., Any], *arguments: Any) -> Any:
    """Chosen when it is compiled, which may be for another platform than this machine's."""
    gpu = functools.partial(on_gpu, rate, False)
    return jax.lax.platform_dependent(
        *arguments, tpu=functools.partial(on_tpu, rate, False), cuda=gpu, rocm=gpu,
        default=functools.partial(on_tpu, rate, True),
    )  # fmt: skip
