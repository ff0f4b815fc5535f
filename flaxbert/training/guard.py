"""What keeps a bad step out of a run: an update that is not finite, or a spike, is skipped and counted."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

HISTORY = 128  # steps that a spike is measured against
SIGMAS = 6.0
MOST_NOT_FINITE = 10  # in a row; then nothing mends itself any more


class Guard(NamedTuple):
    """What is remembered of past steps. Part of the train state, so a resumed run judges as one left alone."""

    losses: jax.Array
    """[HISTORY] float32, a ring."""
    gradient_norms: jax.Array
    """[HISTORY] float32, a ring."""
    seen: jax.Array
    """int32: steps that entered the rings."""
    not_finite: jax.Array
    """int32: steps in a row, up to the last one, whose loss or gradient was not finite."""


class Verdict(NamedTuple):
    """Of one step; bool scalars."""

    finite: jax.Array
    spike: jax.Array
    """Beyond mean + 6 sigma, and to be skipped."""

    @property
    def accepted(self) -> jax.Array:
        return self.finite & ~self.spike


def new_guard() -> Guard:
    """Before the first step."""
    ring, zero = jnp.zeros(HISTORY, jnp.float32), jnp.zeros((), jnp.int32)
    return Guard(ring, jnp.copy(ring), zero, jnp.copy(zero))


def judge(guard: Guard, loss: jax.Array, gradient_norm: jax.Array, skip_spikes: bool) -> tuple[Verdict, Guard]:
    """What to do with a step, and the guard after it.

    A spike enters the history at the bound that it passed, so that a level which has truly risen is accepted in time;
    what is not finite does not enter. Once there is no hope, nothing is accepted: the loop learns of it a few steps
    later, and the parameters have to be those that it is to keep.
    """
    finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm) & (guard.not_finite < MOST_NOT_FINITE)
    bounds = [_bound(ring) if skip_spikes else jnp.inf for ring in (guard.losses, guard.gradient_norms)]
    full = guard.seen >= HISTORY
    bound_loss, bound_norm = (jnp.where(full, bound, jnp.inf) for bound in bounds)
    spike = finite & ((loss > bound_loss) | (gradient_norm > bound_norm))
    place = guard.seen % HISTORY
    entered = Guard(
        guard.losses.at[place].set(jnp.minimum(loss, bound_loss)),
        guard.gradient_norms.at[place].set(jnp.minimum(gradient_norm, bound_norm)),
        guard.seen + 1,
        jnp.zeros((), jnp.int32),
    )
    left_out = guard._replace(not_finite=guard.not_finite + 1)
    after: Any = jax.tree.map(lambda a, b: jnp.where(finite, a, b), entered, left_out)
    return Verdict(finite, spike), after


def _bound(ring: jax.Array) -> jax.Array:
    return jnp.mean(ring) + SIGMAS * jnp.std(ring)
