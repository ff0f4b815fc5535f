"""LayerNorm that keeps a single array for its gradient."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp


class LayerNorm(nn.Module):
    """Over the last axis, in float32, the variance in two passes: an epsilon of 1e-12 forgives no cancellation.

    Left to itself JAX keeps three arrays as large as the input for the gradient, and a scan over layers writes each of
    them to memory and reads it again. Its formula needs the normalised input and one number of each token.
    """

    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [..., D] to float32 [..., D]."""
        size = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones_init(), size, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), size, jnp.float32)
        return _normalise(self.epsilon, x.astype(jnp.float32), scale, bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalise(epsilon: float, x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    return _forward(epsilon, x, scale, bias)[0]


def _forward(
    epsilon: float, x: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + epsilon)
    unit = centred * inverse
    return unit * scale + bias, (unit, inverse, scale)


def _backward(
    epsilon: float, kept: tuple[jax.Array, jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    unit, inverse, scale = kept
    of_unit = gradient * scale
    shared = jnp.mean(of_unit, axis=-1, keepdims=True) + unit * jnp.mean(of_unit * unit, axis=-1, keepdims=True)
    tokens = tuple(range(gradient.ndim - 1))
    return inverse * (of_unit - shared), jnp.sum(gradient * unit, axis=tokens), jnp.sum(gradient, axis=tokens)


_normalise.defvjp(_forward, _backward)
