"""Attention inside each packed sequence: one function, and the backends that compute it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flaxbert.model.dropout import Places, dropout
from flaxbert.model.fused import fused_attention, fused_refusal
from flaxbert.model.library_attention import cudnn_attention, cudnn_refusal, splash_attention, splash_refusal
from flaxbert.model.products import einsum, einsum_in_type
from flaxbert.sharding import MESH_AXES, partition_spec

# Where each backend can run. Interpreted on a CPU, `fused` is for tests: it is correct there, and slow.
PLATFORMS = {"xla": ("cpu", "gpu", "tpu"), "fused": ("tpu", "gpu", "cpu"), "splash": ("tpu",), "cudnn": ("gpu",)}


class Request(NamedTuple):
    """What is asked of a backend on one device."""

    rows: int
    length: int
    """S."""
    heads: int
    head_size: int
    dtype: Any
    dropout_rate: float
    packed: bool
    """Whether a row may hold more than one sequence."""


def refusal(backend: str, request: Request, platform: str | None = None) -> str | None:
    """Why a backend cannot do what is asked, in words; None: it can. Without a platform, that is not asked about."""
    if backend not in PLATFORMS:
        return f"is not one of {', '.join(PLATFORMS)}"
    if platform is not None and platform not in PLATFORMS[backend]:
        return f"does not run on {platform}"
    if backend == "fused":
        return fused_refusal(request, platform)
    return {"splash": splash_refusal, "cudnn": cudnn_refusal}.get(backend, lambda request: None)(request)


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    sequence_ids: jax.Array,
    dropout_rate: float = 0.0,
    seeds: jax.Array | None = None,
    backend: str = "xla",
    packed: bool = True,
    positions: jax.Array | None = None,
) -> jax.Array:
    """Maps query, key, value [B, S, H, K] to [B, S, H, K] (Vaswani et al. 2017, section 3.2.1).

    A token attends to the tokens with its own id in `sequence_ids` [B, S]. Padding has id 0 and attends to padding:
    no row of the softmax is empty, and no real token sees it. Softmax and its sums are float32.
    `seeds` [B, 2] are those of dropout; None: there is none. With `positions` [B, N] the query is [B, N, H, K], that of
    these tokens, and so is the result; no backend but `xla` computes it.

    Backends agree within float tolerance; what `cudnn` gives at padding is zero. Raises ValueError where the backend
    cannot do what is asked; `packed=False` promises it rows of one sequence, at their beginning.
    """
    rate = 0.0 if seeds is None else dropout_rate
    if backend == "xla":
        probabilities = attention_weights(query, key, sequence_ids, positions)
        if seeds is not None:
            places = None if positions is None else Places(positions, key.shape[1])
            probabilities = dropout(probabilities, rate, seeds, places)
        return einsum_in_type("bhqs,bshk->bqhk", probabilities, value)
    if positions is not None:
        raise ValueError(f"attention backend {backend} computes all positions")
    return _accelerated(backend, packed, rate, (query, key, value, sequence_ids), seeds)


def attention_weights(
    query: jax.Array, key: jax.Array, sequence_ids: jax.Array, positions: jax.Array | None = None
) -> jax.Array:
    """What each token takes of each other one: maps query, key [B, S, H, K] to float32 [B, H, S, S], whose last axis
    adds up to 1; a query [B, N, H, K] at `positions` [B, N] to [B, H, N, S]. See `attention`.
    """
    scores = einsum("bqhk,bshk->bhqs", query, key, query.dtype)
    own = sequence_ids if positions is None else jnp.take_along_axis(sequence_ids, positions, axis=1)
    same = own[:, None, :, None] == sequence_ids[:, None, None, :]  # [B, 1, S, S]
    scores = jnp.where(same, scores * query.shape[-1] ** -0.5, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(scores, axis=-1)


def _accelerated(
    backend: str, packed: bool, rate: float, arrays: tuple[jax.Array, ...], seeds: jax.Array | None
) -> jax.Array:
    """A backend's answer for query, key, value and sequence_ids, each device computing its own rows and heads."""

    def local(query: jax.Array, key: jax.Array, value: jax.Array, ids: jax.Array, seeds: jax.Array, first: Any) -> Any:
        count, length, heads, size = query.shape
        reason = refusal(backend, Request(count, length, heads, size, query.dtype, rate, packed))
        if reason is not None:
            raise ValueError(f"attention backend {backend} {reason}")
        if backend == "fused":
            return fused_attention(query, key, value, ids, rate, seeds, first)
        return (splash_attention if backend == "splash" else cudnn_attention)(query, key, value, ids)

    seeds = jnp.zeros((len(arrays[0]), 2), jnp.uint32) if seeds is None else seeds
    return over_mesh(local)(*arrays, seeds)


def over_mesh(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`function` of query, key, value [B, S, H, K], sequence_ids [B, S], seeds [B, 2] and the number of the first
    head, run by every device of the mesh on its own rows and heads: XLA cannot divide a kernel by itself.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return lambda *arrays: function(*arrays, 0)

    def local(query: jax.Array, *others: jax.Array) -> jax.Array:
        return function(query, *others, jax.lax.axis_index(MESH_AXES["heads"]) * query.shape[2])

    heads, rows = partition_spec("batch", "length", "heads", "head_size"), partition_spec("batch")
    # Kernels do not say how their outputs vary over the mesh. All of its axes divide them.
    return jax.shard_map(local, in_specs=(heads, heads, heads, rows, rows), out_specs=heads, check_vma=False)
