"""The gradient that is written by hand is that of the formula, as JAX derives it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.model.layer_norm import LayerNorm

EPSILON = 1e-12


@pytest.fixture(scope="module")
def inputs():
    generator = np.random.default_rng(0)
    x = np.float32(generator.normal(2, 3, (2, 5, 24)))
    params = {"scale": np.float32(generator.normal(size=24)), "bias": np.float32(generator.normal(size=24))}
    return x, params, np.float32(generator.normal(size=x.shape))


def pulled(module, x, params, gradient):
    """Output and gradients of the input and the parameters."""
    found, back = jax.vjp(lambda params, x: module.apply({"params": params}, x), params, x)
    return found, *jax.tree.leaves(back(gradient))


def test_outputs_and_gradients_are_those_of_the_formula(inputs):
    x, params, gradient = inputs
    plain = nn.LayerNorm(EPSILON, dtype=jnp.float32, use_fast_variance=False)
    expected = pulled(plain, x, params, gradient)
    found = pulled(LayerNorm(EPSILON), x, params, gradient)
    assert [array.shape for array in found] == [(2, 5, 24), (24,), (24,), (2, 5, 24)]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_parameters_begin_as_those_of_the_library(inputs):
    x = inputs[0]
    ours, theirs = (module.init(jax.random.key(0), x) for module in (LayerNorm(EPSILON), nn.LayerNorm()))
    assert jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))


def test_a_token_whose_numbers_are_all_equal_has_finite_gradients(inputs):
    _, params, gradient = inputs
    found = pulled(LayerNorm(EPSILON), np.full((2, 5, 24), 3, np.float32), params, gradient)
    assert all(np.isfinite(array).all() for array in found)
    np.testing.assert_array_equal(found[0], np.broadcast_to(params["bias"], (2, 5, 24)))


def test_bfloat16_is_normalised_in_float32_and_has_gradients_of_its_own_kind(inputs):
    x, params, gradient = inputs
    rounded = jnp.asarray(x, jnp.bfloat16)
    found, _, _, of_x = pulled(LayerNorm(EPSILON), rounded, params, gradient)
    assert (found.dtype, of_x.dtype) == (jnp.float32, jnp.bfloat16)
    expected = LayerNorm(EPSILON).apply({"params": params}, rounded.astype(jnp.float32))
    np.testing.assert_array_equal(found, expected)
