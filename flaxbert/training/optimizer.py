"""The reference's optimizer and learning-rate curve (google-research/bert, optimization.py)."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flaxbert.config import OptimizerConfig
from flaxbert.sharding import path_name

# By name and never by rank: under scanned layers every bias and scale has a leading layers axis.
NOT_DECAYED = re.compile(r"(^|/)(bias|scale)$")

Schedule = Callable[[Any], jax.Array]


class AdamState(NamedTuple):
    """Updates so far and the two moments, float32, shaped as the parameters."""

    count: jax.Array  # type: ignore[assignment]  # a tuple has a method of that name
    m: Any
    v: Any


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> Schedule:
    """Linear decay from the peak at step 0 to zero at `steps`; before the end of warm-up `peak * step / warmup`
    instead. Where warm-up ends the curve therefore drops by the factor 1 - warmup / steps.
    """

    def schedule(step: Any) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        decayed = config.learning_rate * (1.0 - jnp.minimum(step, steps) / steps)
        warming = config.learning_rate * step / max(config.warmup_steps, 1)
        return jnp.where(step < config.warmup_steps, warming, decayed)

    return schedule


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Gradients clipped to a global norm, then the reference's Adam."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm), reference_adam(config, learning_rate_schedule(config, steps))
    )


def reference_adam(config: OptimizerConfig, schedule: Schedule) -> optax.GradientTransformation:
    """Adam without bias correction, epsilon outside the root, decoupled decay inside the learning rate:
    `param -= lr * (m / (sqrt(v) + epsilon) + decay * param)`; biases and LayerNorm are not decayed.
    """

    def init(params: Any) -> AdamState:
        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
        return AdamState(jnp.zeros((), jnp.int32), zeros, jax.tree.map(jnp.copy, zeros))

    def update(gradients: Any, state: AdamState, params: Any = None) -> tuple[Any, AdamState]:
        rate = schedule(state.count)

        def leaf(path: Any, g: jax.Array, m: jax.Array, v: jax.Array, param: jax.Array) -> tuple[jax.Array, ...]:
            m = config.b1 * m + (1 - config.b1) * g
            v = config.b2 * v + (1 - config.b2) * jnp.square(g)
            decay = 0.0 if NOT_DECAYED.search(path_name(path)) else config.weight_decay
            return -rate * (m / (jnp.sqrt(v) + config.epsilon) + decay * param), m, v

        results = jax.tree_util.tree_map_with_path(leaf, gradients, state.m, state.v, params)
        updates, m, v = jax.tree.transpose(jax.tree.structure(gradients), jax.tree.structure((0, 0, 0)), results)
        return updates, AdamState(state.count + 1, m, v)

    return optax.GradientTransformation(init, update)
