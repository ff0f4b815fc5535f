"""Attention inside each packed sequence."""

import jax
import jax.numpy as jnp

from flaxbert.model.dropout import dropout


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    sequence_ids: jax.Array,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    rows: jax.Array | None = None,
) -> jax.Array:
    """Maps query, key, value [B, S, H, K] to [B, S, H, K] (Vaswani et al. 2017, section 3.2.1).

    A token attends to the tokens with its own id in `sequence_ids` [B, S]. Padding has id 0 and attends to padding:
    no row of the softmax is empty, and no real token sees it. Softmax and its sums are float32.
    `rows` [B]: see `dropout`.
    """
    probabilities = attention_weights(query, key, sequence_ids)
    if dropout_key is not None:
        probabilities = dropout(probabilities, dropout_rate, dropout_key, rows)
    return jnp.einsum("bhqs,bshk->bqhk", probabilities.astype(value.dtype), value)


def attention_weights(query: jax.Array, key: jax.Array, sequence_ids: jax.Array) -> jax.Array:
    """What each token takes of each other one: maps query, key [B, S, H, K] to float32 [B, H, S, S], whose last axis
    adds up to 1. See `attention`.
    """
    scores = jnp.einsum("bqhk,bshk->bhqs", query, key, preferred_element_type=jnp.float32)
    same = sequence_ids[:, None, :, None] == sequence_ids[:, None, None, :]  # [B, 1, S, S]
    scores = jnp.where(same, scores * query.shape[-1] ** -0.5, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(scores, axis=-1)
