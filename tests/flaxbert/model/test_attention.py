"""Attention equals a plain loop, and nothing crosses from one packed sequence to another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.model.attention import attention
from flaxbert.model.dropout import dropout, row_seeds

B, S, H, K = 2, 12, 3, 5
SEQUENCE_IDS = np.array([[1, 1, 1, 1, 2, 2, 2, 3, 3, 0, 0, 0], [1] * 12], np.int32)


@pytest.fixture(scope="module")
def inputs():
    generator = np.random.default_rng(0)
    return [generator.normal(size=(B, S, H, K)).astype(np.float32) for _ in range(3)]


def plain_attention(query, key, value, sequence_ids):
    """One query at a time, in float64."""
    y = np.zeros(query.shape)
    for b, s, h in np.ndindex(query.shape[:3]):
        same = np.flatnonzero(sequence_ids[b] == sequence_ids[b, s])
        scores = key[b, same, h].astype(np.float64) @ query[b, s, h] / np.sqrt(query.shape[-1])
        weights = np.exp(scores - scores.max())
        y[b, s, h] = weights @ value[b, same, h] / weights.sum()
    return y


def test_attention_equals_a_plain_loop(inputs):
    """To float32 rounding of sums of a dozen terms of size one."""
    expected = plain_attention(*inputs, SEQUENCE_IDS)
    np.testing.assert_allclose(attention(*inputs, SEQUENCE_IDS), expected, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(jax.jit(attention)(*inputs, SEQUENCE_IDS), expected, rtol=1e-5, atol=2e-6)


def test_large_scores_do_not_overflow(inputs):
    query, key, value = inputs
    y = attention(query * 1e3, key * 1e3, value, SEQUENCE_IDS)
    np.testing.assert_allclose(y, plain_attention(query * 1e3, key * 1e3, value, SEQUENCE_IDS), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("asked", [0, 1, 2, 3])
def test_no_gradient_crosses_from_one_sequence_to_another(inputs, asked):
    """Exactly zero, not nearly: a leak of any size would be a leak. Padding, with id 0, is a sequence like another."""
    chosen = SEQUENCE_IDS == asked

    def total(query, key, value):
        return jnp.sum(jnp.where(chosen[:, :, None, None], attention(query, key, value, SEQUENCE_IDS), 0.0) ** 2)

    for gradient in jax.grad(total, argnums=(0, 1, 2))(*inputs):
        assert (np.asarray(gradient)[~chosen] == 0).all()
        assert np.abs(np.asarray(gradient)[chosen]).max() > 0


def test_a_row_of_padding_gives_finite_values_and_gradients(inputs):
    ids = np.zeros((B, S), np.int32)
    assert np.isfinite(attention(*inputs, ids)).all()
    for gradient in jax.grad(lambda *x: jnp.sum(attention(*x, ids) ** 2), argnums=(0, 1, 2))(*inputs):
        assert np.isfinite(gradient).all()


def test_dropout_falls_on_the_probabilities(inputs):
    """With values that are the identity, the output is the dropped probabilities themselves."""
    query, key, _ = inputs
    query, key = np.resize(query, (B, K, H, K)), np.resize(key, (B, K, H, K))
    value = np.broadcast_to(np.eye(K, dtype=np.float32)[None, :, None, :], (B, K, H, K))
    ids, seeds = np.ones((B, K), np.int32), row_seeds(jax.random.key(3), np.arange(B))
    probabilities = np.swapaxes(attention(query, key, value, ids), 1, 2)  # [B, H, S, S]
    np.testing.assert_allclose(probabilities.sum(-1), 1.0, rtol=1e-6)
    dropped = np.swapaxes(attention(query, key, value, ids, 0.4, seeds), 1, 2)
    np.testing.assert_allclose(dropped, dropout(jnp.asarray(probabilities), 0.4, seeds), rtol=1e-6)
    assert 0.2 < (dropped == 0).mean() < 0.6


def test_softmax_is_float32_where_the_products_are_not(inputs):
    """Each input is rounded to 8 bits of mantissa, a relative error of 2^-9, and so is each probability."""
    low = [jnp.asarray(x, jnp.bfloat16) for x in inputs]
    y = attention(*low, SEQUENCE_IDS)
    assert y.dtype == jnp.bfloat16
    exact = plain_attention(*(np.asarray(x, np.float32) for x in low), SEQUENCE_IDS)
    np.testing.assert_allclose(np.asarray(y, np.float32), exact, atol=3 * 2**-8)
