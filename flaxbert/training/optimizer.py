"""The optimizers by name; the first is the reference's (google-research/bert, optimization.py)."""

import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flaxbert.config import OptimizerConfig
from flaxbert.sharding import path_name
from flaxbert.training.schedule import Schedule

# By name and never by rank: under scanned layers every bias and scale has a leading layers axis.
NOT_DECAYED = re.compile(r"(^|/)(bias|scale)$")
STACKED = re.compile(r"(^|/)layers/")


class Rule(NamedTuple):
    """What an optimizer adds to the reference's Adam."""

    bias_correction: bool
    trust_ratio: bool


RULES = {"adam": Rule(False, False), "adamw": Rule(True, False), "lamb": Rule(True, True)}


class AdamState(NamedTuple):
    """Updates so far, those that were skipped too, and the two moments, float32, shaped as the parameters."""

    count: jax.Array  # type: ignore[assignment]  # a tuple has a method of that name
    m: Any
    v: Any


def make_optimizer(config: OptimizerConfig, schedule: Schedule) -> optax.GradientTransformationExtraArgs:
    """Gradients clipped to a global norm, then the update that `config.name` names at the rate of `schedule`; none
    where `accepted`, an argument of the update by name, is false. A skipped update still moves the run along the curve.
    """
    return optax.chain(clip_to_norm(config.clip_norm), adam_family(config, schedule))


def clip_to_norm(most: float) -> optax.GradientTransformation:
    """Gradients scaled to a global norm of `most` where theirs is larger, as TensorFlow's `clip_by_global_norm` does:
    by one factor, which joins the pass of the update. That of optax writes the scaled gradients to memory first.
    """

    def update(gradients: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, optax.EmptyState]:
        scale = jnp.minimum(1.0, most / optax.tree.norm(gradients))  # 1 where `most` is beyond float32, and at norm 0
        return jax.tree.map(lambda g: g * scale, gradients), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def adam_family(config: OptimizerConfig, schedule: Schedule) -> optax.GradientTransformationExtraArgs:
    """Adam, AdamW or LAMB: epsilon outside the root, decoupled decay inside the learning rate, on all but biases and
    LayerNorm. `param -= lr * (m / (sqrt(v) + epsilon) + decay * param)` is the reference's Adam.

    AdamW (Loshchilov and Hutter 2019) divides m and v by 1 - b ** updates. LAMB (You et al. 2020, arXiv 1904.00962,
    Algorithm 2, phi the identity) does so too, and scales what stands in the parentheses to the norm of its parameter.
    What is not decayed is not scaled either, as in NVIDIA's FusedLAMB (apex), which has the paper's bias correction,
    and in Google's lamb_optimizer.py (google-research/albert), which leaves it out.
    """
    rule = RULES[config.name]

    def init(params: Any) -> AdamState:
        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
        return AdamState(jnp.zeros((), jnp.int32), zeros, jax.tree.map(jnp.copy, zeros))

    def update(
        gradients: Any, state: AdamState, params: Any = None, *, accepted: jax.Array | bool = True, **_: Any
    ) -> tuple[Any, AdamState]:
        rate, count = jnp.where(accepted, schedule(state.count), 0.0), state.count + 1
        keep_m, keep_v = (jnp.where(accepted, b, 1.0) for b in (config.b1, config.b2))
        m_share, v_share = (_bias_correction(b, count) if rule.bias_correction else 1.0 for b in (config.b1, config.b2))

        def leaf(path: Any, g: jax.Array, m: jax.Array, v: jax.Array, param: jax.Array) -> tuple[jax.Array, ...]:
            g = jnp.where(accepted, g, 0.0)
            m = keep_m * m + (1 - config.b1) * g
            v = keep_v * v + (1 - config.b2) * jnp.square(g)
            # Written before they are read: else XLA works them out a second time for the parameter, from gradient and
            # old moments, of which it then needs copies.
            m, v = jax.lax.optimization_barrier((m, v))
            direction = (m / m_share) / (jnp.sqrt(v / v_share) + config.epsilon)
            name = path_name(path)
            if not NOT_DECAYED.search(name):
                direction = direction + config.weight_decay * param
                if rule.trust_ratio:
                    scale = jax.vmap(_with_norm_of) if STACKED.search(name) else _with_norm_of
                    direction = scale(param, direction)
            return -rate * direction, m, v

        results = jax.tree_util.tree_map_with_path(leaf, gradients, state.m, state.v, params)
        updates, m, v = jax.tree.transpose(jax.tree.structure(gradients), jax.tree.structure((0, 0, 0)), results)
        return updates, AdamState(count, m, v)

    return optax.GradientTransformationExtraArgs(init, update)


def _bias_correction(b: float, count: jax.Array) -> jax.Array:
    """1 - b ** count. Taken literally, float32 would keep four of its seven digits where b is 0.999 and count is 1."""
    return -jnp.expm1(count * (math.log(b) if b else -math.inf))


def _with_norm_of(param: jax.Array, direction: jax.Array) -> jax.Array:
    """`direction` scaled to the norm of `param`; as it is where either norm is zero."""
    wanted, found = (jnp.sqrt(jnp.sum(jnp.square(x))) for x in (param, direction))
    return direction * jnp.where((wanted > 0) & (found > 0), wanted / found, 1.0)
