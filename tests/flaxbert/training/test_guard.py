"""Bad steps are told from good ones as plain numpy would."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.training.guard import HISTORY, judge, new_guard

judged = jax.jit(judge, static_argnums=3)


def after(values, skip_spikes=True, norms=None):
    """The guard after steps of these losses (and gradient norms: 1 unless given), and their verdicts."""
    guard, verdicts = new_guard(), []
    for place, value in enumerate(values):
        norm = 1.0 if norms is None else norms[place]
        verdict, guard = judged(guard, jnp.float32(value), jnp.float32(norm), skip_spikes)
        verdicts.append((bool(verdict.finite), bool(verdict.spike)))
    return guard, verdicts


@pytest.fixture(scope="module")
def losses():
    return np.random.default_rng(0).normal(5, 0.1, HISTORY).astype(np.float32)


@pytest.mark.parametrize("sigmas, spike", [(5.9, False), (6.1, True)])
@pytest.mark.parametrize("of", ["loss", "gradient norm"])
def test_a_spike_lies_beyond_six_sigma_of_the_last_128_steps(losses, sigmas, spike, of):
    value = losses.mean() + sigmas * losses.std()
    own, other = np.append(losses, value), np.full(HISTORY + 1, 5.0)
    _, verdicts = after(own, norms=other) if of == "loss" else after(other, norms=own)
    assert verdicts[-1] == (True, spike)
    assert not any(spike for _, spike in verdicts[:-1])


def test_the_history_is_that_of_the_last_128_steps(losses):
    """Older steps, here far higher ones, are forgotten."""
    old = np.full(40, 50.0)
    assert after([*old, *losses, losses.mean() + 7 * losses.std()])[1][-1] == (True, True)
    assert after([*old, *losses[:-1], losses.mean() + 7 * losses.std()])[1][-1] == (True, False)


def test_nothing_is_a_spike_before_there_is_a_history(losses):
    assert after([*losses[:-1], 1e9])[1][-1] == (True, False)


def test_nothing_is_a_spike_where_nobody_asked(losses):
    assert after([*losses, 1e9], skip_spikes=False)[1][-1] == (True, False)


def test_a_level_that_has_risen_is_accepted_in_time(losses):
    """Spikes enter the history at the bound that they passed: the bound rises until the new level lies below it."""
    _, verdicts = after([*losses, *np.full(200, 7.0)])
    spikes = [spike for _, spike in verdicts[HISTORY:]]
    assert spikes[0] and not spikes[-1]
    assert sum(spikes) < 30


@pytest.mark.parametrize("loss, norm", [(np.nan, 1), (np.inf, 1), (-np.inf, 1), (5, np.nan), (5, np.inf)])
def test_what_is_not_finite_is_counted_in_a_row_and_leaves_the_history_alone(losses, loss, norm):
    before, _ = after(losses)
    guard, verdicts = after([*losses, loss, loss], norms=[*np.ones(HISTORY), norm, norm])
    assert verdicts[-2:] == [(False, False)] * 2
    assert guard.not_finite == 2
    for name in ("losses", "gradient_norms", "seen"):
        np.testing.assert_array_equal(getattr(guard, name), getattr(before, name))
    _, again = judged(guard, jnp.float32(5), jnp.float32(1), True)
    assert again.not_finite == 0
