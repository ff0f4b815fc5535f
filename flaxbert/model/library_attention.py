"""Attention of the libraries: JAX's splash kernel for TPU, and cuDNN for GPU. Neither has a dropout of ours."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

SPLASH_BLOCKS = (512, 384, 256, 128)  # of queries and keys: the largest that divides the length


def splash_refusal(request: Any) -> str | None:
    """See `flaxbert.model.attention.refusal`."""
    if request.dropout_rate:
        return f"has no dropout, and model.attention_dropout is {request.dropout_rate:g}"
    if request.length % SPLASH_BLOCKS[-1]:
        return f"needs a sequence length that is a multiple of {SPLASH_BLOCKS[-1]}, found {request.length}"
    return None


def splash_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, sequence_ids: jax.Array, interpret: bool = False
) -> jax.Array:
    """Maps query, key, value [B, S, H, K] to [B, S, H, K] by `jax.experimental.pallas.ops.tpu.splash_attention`."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    length, heads, size = query.shape[1:]
    block = next(block for block in SPLASH_BLOCKS if length % block == 0)
    everything = splash_attention_mask.MultiHeadMask([splash_attention_mask.FullMask((length, length))] * heads)
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    blocks: Any = {f"block_{name}": block for name in names}
    kernel = splash_attention_kernel.make_splash_mha(
        everything, head_shards=1, q_seq_shards=1, interpret=interpret,
        block_sizes=splash_attention_kernel.BlockSizes(**blocks),
    )  # fmt: skip
    scaled = (query * size**-0.5).astype(query.dtype)  # the kernel leaves the scores as they are
    arrays = (jnp.swapaxes(x, 1, 2) for x in (scaled, key, value))  # [B, H, S, K]
    ids = splash_attention_kernel.SegmentIds(sequence_ids, sequence_ids)
    return jnp.swapaxes(jax.vmap(kernel)(*arrays, ids), 1, 2)


def cudnn_refusal(request: Any) -> str | None:
    """See `flaxbert.model.attention.refusal`. cuDNN's own dropout has a counter that it hides: it cannot be resumed."""
    if request.dropout_rate:
        return f"has no dropout, and model.attention_dropout is {request.dropout_rate:g}"
    if request.packed:
        return "takes rows of one sequence each, and these are packed"
    if request.dtype != jnp.bfloat16:
        return f"needs bfloat16, found {jnp.dtype(request.dtype).name}"
    if request.head_size % 8 or request.head_size > 256:
        return f"needs a head size that is a multiple of 8 and at most 256, found {request.head_size}"
    return None


def cudnn_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, sequence_ids: jax.Array,
    implementation: Literal["xla", "cudnn"] = "cudnn",
) -> jax.Array:  # fmt: skip
    """Maps query, key, value [B, S, H, K] to [B, S, H, K]; zero at padding, which has to follow the one sequence.

    The length is what masks: a mask of booleans would become a bias of [B, H, S, S].
    """
    real = sequence_ids > 0
    # A row of padding has one key too, or its softmax would be empty: not a number, and so would be its gradient.
    lengths = jnp.maximum(jnp.sum(real, axis=1, dtype=jnp.int32), 1)
    y = jax.nn.dot_product_attention(
        query, key, value, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation=implementation
    )
    return jnp.where(real[:, :, None, None], y, jnp.zeros((), y.dtype))
