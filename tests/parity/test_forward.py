"""Every stage of the forward pass equals transformers' on the same random weights, in padded and in packed rows."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.config import ModelConfig
from flaxbert.model.pretraining import BertForPreTraining
from flaxbert.training.objective import loss_and_sums

from .twins import LAYOUTS, TRANSFORMERS, Twins, lay_out, their_stages, torch, twins

pytestmark = pytest.mark.parity

# Float32 sums of some dozens of terms of size one differ by a few units of 1e-7 in another order; each LayerNorm
# rescales them by about one, and three layers of two half-layers add up to some 1e-6.
TOLERANCE = 1e-5


def our_stages(ours: Twins, layout: str, dtype: Any = jnp.float32) -> dict[str, list[np.ndarray]]:
    """What our model computes of each sequence of a layout: stage → one array a sequence, and the loss."""
    batch, places = lay_out(layout)
    whole = jax.jit(functools.partial(stages_of_rows, ours.config, dtype))(ours.params, batch)
    loss = np.asarray(whole.pop("loss"))
    kinds = {"pooler": "sequence", "NSP logits": "sequence", "MLM logits": "predictions"}
    return {
        stage: [np.asarray(x)[getattr(place, kinds.get(stage, "tokens"))] for place in places]
        for stage, x in whole.items()
    } | {"loss": [loss]}


def stages_of_rows(config: ModelConfig, dtype: Any, params: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Embeddings and hidden states [B, S, D], pooler [B, C, D], logits [B, P, V] and [B, C, 2], and the loss."""
    handed_on: dict[str, Any] = {}

    def listen(call, arguments, named, context):
        result = call(*arguments, **named)
        if context.method_name == "__call__" and context.module.name == "embeddings":
            handed_on["embeddings"] = result
        if context.module.name == "nsp":
            handed_on["pooler"] = arguments[0]
        return result

    with nn.intercept_methods(listen):
        mlm, nsp = BertForPreTraining(config, dtype=dtype).apply({"params": params}, batch)
    states = {
        f"hidden states of layer {layers}": encode(config, dtype, params, batch, layers)
        for layers in range(1, config.num_layers + 1)
    }
    logits = {"MLM logits": mlm[..., :config.vocab_size], "NSP logits": nsp}
    return handed_on | states | logits | {"loss": loss_and_sums(batch, mlm, nsp)[0]}


def encode(config: ModelConfig, dtype: Any, params: Any, batch: dict[str, jax.Array], layers: int) -> jax.Array:
    """Hidden states [B, S, D] after the first `layers` layers: they are a model of their own."""
    encoder = params["encoder"] | {"layers": jax.tree.map(lambda x: x[:layers], params["encoder"]["layers"])}
    model = BertForPreTraining(dataclasses.replace(config, num_layers=layers), dtype=dtype)
    return model.apply({"params": params | {"encoder": encoder}}, batch, method="encode")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_every_stage_equals_that_of_transformers(activation, layout, assert_parity):
    """Theirs on each sequence alone, ours on the rows that hold them all."""
    pair = twins(activation)
    with torch.no_grad():
        expected = their_stages(pair.theirs)
    found = our_stages(pair, layout)
    assert found.keys() == expected.keys()
    for stage, theirs in expected.items():
        worst = np.max([np.abs(a - b.numpy()).max() for a, b in zip(found[stage], theirs, strict=True)])
        assert_parity(stage, TRANSFORMERS, worst, TOLERANCE)


# A bfloat16 has 8 significant bits: rounding errs by 2^-8 / sqrt(3) of the leading bit, 0.16 % of a number of random
# mantissa. In a layer some fifteen roundings (inputs, kernels and results of six products, the probabilities) meet the
# float32 residual, and LayerNorm keeps their sum in proportion: sqrt(15 x 3 layers) x 0.16 % = 1.1 %. Asked for is
# twice that: the heads round more products, and the few next-sentence logits are small differences of larger terms.
BFLOAT16_TOLERANCE = 0.022


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bfloat16_stays_as_near_to_float32_as_its_rounding_allows(layout, assert_parity):
    pair = twins("gelu_new")
    exact, rounded = our_stages(pair, layout), our_stages(pair, layout, jnp.bfloat16)
    for stage in exact:
        a, b = (np.concatenate([x.ravel() for x in stages[stage]]) for stages in (exact, rounded))
        assert b.dtype == np.float32
        assert stage == "embeddings" or (a != b).any(), f"{stage} has not been rounded"
        worst = np.sqrt(((a - b) ** 2).mean() / (a**2).mean())
        what = f"{stage} with bfloat16 products, root mean square over that of the values"
        assert_parity(what, "flaxbert in float32", worst, BFLOAT16_TOLERANCE)
