"""Dropout as a run has it, through the keys of its own steps: the rates that were set, and no mask like another.

That the random bits are good ones is held by tests/flaxbert/model/test_dropout.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from flaxbert.model import attention, encoder
from flaxbert.model.dropout import dropout
from flaxbert.training.step import build_functions

SIGMAS = 5.0
STEPS, LAYERS = 3, 3
# Both far from zero: the correlation of rows of 256 places is then nearly normal.
HIDDEN_RATE, ATTENTION_RATE = 0.3, 0.5
RATES = {
    "hidden": HIDDEN_RATE, "attention": ATTENTION_RATE,
    "hidden, last layer": HIDDEN_RATE, "attention, last layer": ATTENTION_RATE,
}  # fmt: skip


@pytest.fixture(scope="module")
def masks(experiment, batch_of):
    """What each dropout of three training steps drops: {"hidden": …, "attention": …}, both bool [steps, sites, B, …].

    Every step has the same batch. Hidden states are [B, S, D], attention probabilities [B, H, S, S]. Of the last layer
    a step draws what its heads read: [B, N, D] and [B, H, N, S], under names of their own.
    """
    found: dict[str, list[np.ndarray]] = {kind: [] for kind in RATES}

    def listen(x, rate, seeds, places=None):
        # Ones that depend on x: a callback on a constant of the loop over layers would be called outside of it.
        dropped = dropout(jnp.isfinite(x).astype(x.dtype), rate, seeds, places) == 0
        kind = ("hidden" if x.ndim == 3 else "attention") + ("" if places is None else ", last layer")
        jax.debug.callback(lambda mask: found[kind].append(np.array(mask)), dropped)
        return dropout(x, rate, seeds, places)

    rates = dict(dropout=HIDDEN_RATE, attention_dropout=ATTENTION_RATE)
    model = dataclasses.replace(experiment.model, num_layers=LAYERS, **rates)
    mesh = jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3, devices=jax.devices()[:1])
    with jax.set_mesh(mesh), pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "dropout", listen)
        patch.setattr(attention, "dropout", listen)
        functions = build_functions(dataclasses.replace(experiment, model=model), mesh)
        state = functions.init()
        for _ in range(STEPS):
            state, outcome = functions.train(state, functions.put(batch_of(0)))
            outcome.loss.block_until_ready()
            jax.effects_barrier()
    return {kind: np.stack(each).reshape(STEPS, -1, *each[0].shape) for kind, each in found.items()}


def test_a_step_drops_embeddings_probabilities_and_both_outputs_of_each_layer(masks):
    sites = {kind: drawn.shape[1] for kind, drawn in masks.items()}
    assert sites == {
        "hidden": 1 + 2 * (LAYERS - 1), "attention": LAYERS - 1, "hidden, last layer": 2, "attention, last layer": 1,
    }  # fmt: skip


@pytest.mark.parametrize("kind, rate", RATES.items())
def test_each_site_of_each_step_drops_at_the_rate_that_was_set_for_it(masks, kind, rate):
    for drawn in masks[kind].reshape(-1, *masks[kind].shape[2:]):
        assert abs(drawn.mean() - rate) < SIGMAS * np.sqrt(rate * (1 - rate) / drawn.size)


def test_no_two_rows_sites_layers_or_steps_have_masks_that_correlate(masks):
    """All pairs of rows, by the first 256 places of each: a key that is used twice would correlate them fully. Of the
    last layer too few places are drawn; that its keys are its own is held by tests/flaxbert/model/test_dropout.py.
    """
    whole = [drawn for kind, drawn in masks.items() if not kind.endswith("last layer")]
    rows = np.concatenate([drawn.reshape(-1, np.prod(drawn.shape[3:]))[:, :256] for drawn in whole])
    assert rows.shape == (STEPS * (1 + 3 * (LAYERS - 1)) * 8, 256)
    correlations = np.corrcoef(rows) - np.eye(len(rows))
    assert np.abs(correlations).max() < SIGMAS / np.sqrt(256)


def test_whole_masks_are_drawn_anew_at_each_step_and_site_and_in_each_row(masks):
    """Neighbours alone, but over all their places, where the bound on a correlation is tighter."""
    for kind, rate in (("hidden", HIDDEN_RATE), ("attention", ATTENTION_RATE)):
        drawn = masks[kind] - rate
        for axis in (0, 1, 2):
            pairs = drawn * np.roll(drawn, 1, axis=axis)
            assert abs(pairs.mean()) / (rate * (1 - rate)) < SIGMAS / np.sqrt(pairs.size)
