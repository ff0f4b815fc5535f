"""The learning rate at each step; by default the reference's (google-research/bert, optimization.py)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flaxbert.config import Experiment, OptimizerConfig
from flaxbert.phases import curves

Schedule = Callable[[Any], jax.Array]


def run_schedule(experiment: Experiment) -> Schedule:
    """The learning rate of a whole run: the curves of its phases, each measured from its own first step."""
    pieces = [
        (curve.first_step, learning_rate_schedule(curve.optimizer, curve.last_step - curve.first_step))
        for curve in curves(experiment)
    ]

    def schedule(step: Any) -> jax.Array:
        rate = pieces[0][1](step)
        for first, piece in pieces[1:]:
            rate = jnp.where(jnp.asarray(step) < first, rate, piece(jnp.asarray(step) - first))
        return rate

    return schedule


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> Schedule:
    """Before the end of warm-up `peak * step / warmup`; from there on a polynomial decay that ends at `steps`.

    By default the reference's: linear, to zero, measured from step 0, so that the curve drops by the factor
    1 - warmup / steps where warm-up ends. With the power 0.5 it is that of NVIDIA's LAMB recipe
    (DeepLearningExamples, BERT, schedulers.py: PolyWarmUpScheduler), which numbers its first step 1.
    """
    start = config.warmup_steps if config.decay_from == "warmup" else 0

    def schedule(step: Any) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        left = (steps - jnp.clip(step, start, steps)) / max(steps - start, 1)
        decayed = config.final_fraction + (1.0 - config.final_fraction) * left**config.decay_power
        warming = step / max(config.warmup_steps, 1)
        return config.learning_rate * jnp.where(step < config.warmup_steps, warming, decayed)

    return schedule
