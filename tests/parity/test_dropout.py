"""Dropout falls on the same arrays as in transformers, in the same order and at the same rates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.model import attention, encoder
from flaxbert.model.dropout import dropout
from flaxbert.model.pretraining import BertForPreTraining

from .twins import TRANSFORMERS, lay_out, torch, torch_model, twins

pytestmark = pytest.mark.parity

# See test_forward.py. What is kept is scaled by 1 / (1 - rate), so values are a little larger here.
TOLERANCE = 1e-5


@pytest.fixture
def factors(monkeypatch) -> list[tuple[float, np.ndarray]]:
    """(rate, what the array is multiplied by) of each dropout that our model applies, in order; of all places where
    our last layer computes some, which take part in it.
    """
    found: list[tuple[float, np.ndarray]] = []

    def listen(x, rate, seeds, places=None):
        shape = x.shape if places is None else (*x.shape[:-2], places.size, x.shape[-1])
        applied = dropout(jnp.ones(shape), rate, seeds)
        jax.debug.callback(lambda factor: found.append((rate, np.array(factor))), applied, ordered=True)
        return dropout(x, rate, seeds, places)

    monkeypatch.setattr(encoder, "dropout", listen)
    monkeypatch.setattr(attention, "dropout", listen)
    return found


def test_with_the_same_masks_training_mode_equals_that_of_transformers(factors, monkeypatch, assert_parity):
    """Each dropout of theirs takes the next mask of ours, and has to ask for its rate and its shape."""
    pair, (batch, _) = twins("gelu_new"), lay_out("padded")
    config = dataclasses.replace(pair.config, dropout=0.2, attention_dropout=0.3)
    model = BertForPreTraining(config, deterministic=False)
    run = jax.jit(lambda key: model.apply({"params": pair.params}, batch, rngs={"dropout": key}))
    mlm, nsp = run(jax.random.key(0))
    jax.effects_barrier()
    assert len(factors) == 1 + 3 * config.num_layers
    left = iter(factors)

    def take(x, p, training, inplace=False):
        rate, factor = next(left)
        assert training and p == rate and x.shape == factor.shape
        return x * torch.tensor(factor)

    monkeypatch.setattr(torch.nn.functional, "dropout", take)
    ids, segments, mask = (torch.tensor(batch[name]) for name in ("input_ids", "segment_ids", "sequence_ids"))
    with torch.no_grad():
        theirs = torch_model(pair.params, config).train()(ids, attention_mask=mask, token_type_ids=segments)
    assert next(left, None) is None

    rows, slots = np.nonzero(batch["masked_weights"])
    expected = theirs.prediction_logits.numpy()[rows, batch["masked_positions"][rows, slots]]
    worst = np.abs(mlm[rows, slots, :config.vocab_size] - expected).max()
    assert_parity("MLM logits in training mode, with the same dropout masks", TRANSFORMERS, worst, TOLERANCE)
    worst = np.abs(nsp[:, 0] - theirs.seq_relationship_logits.numpy()).max()
    assert_parity("NSP logits in training mode, with the same dropout masks", TRANSFORMERS, worst, TOLERANCE)
