"""The gradient of the loss by every parameter equals torch's, in padded and in packed rows."""

import functools

import jax
import numpy as np
import pytest

from flaxbert.config import ModelConfig
from flaxbert.interop.huggingface_tensors import to_tensors
from flaxbert.model.pretraining import BertForPreTraining
from flaxbert.training.objective import loss_and_sums

from .twins import TRANSFORMERS, lay_out, their_stages, twins

pytestmark = pytest.mark.parity

# Of the tensor's largest entry. The states that enter differ by some 1e-6 (test_forward.py); the sums over tokens and
# layers that make a gradient add as much again, and cancel to a fraction of their terms here and there.
TOLERANCE = 1e-5


def gradients(config: ModelConfig, params, batch):
    """The gradient of the loss by each parameter, as our tree."""
    model = BertForPreTraining(config)
    return jax.grad(lambda params: loss_and_sums(batch, *model.apply({"params": params}, batch))[0])(params)


@pytest.mark.parametrize("activation, layout", [("gelu", "padded"), ("gelu_new", "packed")])
def test_the_gradient_of_every_tensor_equals_that_of_transformers(activation, layout, assert_parity):
    """Theirs by autograd through each sequence alone; ours, dropout off, through the rows that hold them all.

    Adding one vector to all keys of a layer adds the same to all scores of a query, so a key's bias has no gradient
    but the rounding of the sums that cancel: it is held to the largest entry of its kernel's gradient.
    """
    pair = twins(activation)
    batch, _ = lay_out(layout)
    found = to_tensors(jax.jit(functools.partial(gradients, pair.config))(pair.params, batch), pair.config)
    pair.theirs.zero_grad()
    their_stages(pair.theirs)["loss"][0].backward()
    expected = {name: x.grad.numpy() for name, x in pair.theirs.named_parameters()}
    assert found.keys() == expected.keys()

    sizes = {name: np.abs(x).max() for name, x in expected.items()}
    assert min(size for name, size in sizes.items() if not name.endswith("key.bias")) > 1e-3
    worst = {
        name: np.abs(found[name] - x).max() / sizes[name.replace("key.bias", "key.weight")]
        for name, x in expected.items()
    }
    what = f"gradients of all {len(worst)} tensors, over the tensor's largest entry"
    assert_parity(what, TRANSFORMERS, np.max(list(worst.values())), TOLERANCE)
