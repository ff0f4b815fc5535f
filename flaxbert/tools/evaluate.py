"""`flaxbert evaluate`: the losses of a model on held-out batches, as training evaluates them."""

import functools
import itertools
import json
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from flaxbert.config import ModelConfig
from flaxbert.model.pretraining import BertForPreTraining
from flaxbert.tools.load import Model
from flaxbert.training.objective import Sums, loss_and_sums, summarize, zero_sums


def evaluate(model: Model, batches: Iterable[dict[str, Any]], most: int | None = None) -> dict[str, float]:
    """Means over at most `most` batches of a stream: `mlm_loss`, `perplexity`, `mlm_accuracy`, and `nsp_loss`,
    `nsp_accuracy` where model and batches have them. Raises ValueError for a model that guesses no words.
    """
    if "mlm" not in model.params:
        raise ValueError(f"the model is a {model.architecture}: it lacks the masked-language-model head")
    if most is not None and most < 1:
        raise ValueError(f"batches {most} is not positive")
    sums = zero_sums()
    for batch in itertools.islice(batches, most):
        sums = _add(model.config, model.params, sums, {name: jnp.asarray(values) for name, values in batch.items()})
    return summarize(jax.device_get(sums))


@functools.partial(jax.jit, static_argnums=0)
def _add(config: ModelConfig, params: Any, sums: Sums, batch: dict[str, jax.Array]) -> Sums:
    model, variables = BertForPreTraining(config), {"params": params}
    hidden: Any = model.apply(variables, batch, method="encode")
    mlm: Any = model.apply(variables, hidden, batch["masked_positions"], method="mlm_logits")
    if "nsp" in params:
        nsp: Any = model.apply(variables, hidden, batch["cls_positions"], method="nsp_logits")
    else:
        nsp = jnp.zeros((*batch["cls_positions"].shape, 2))
        batch = batch | {"next_sentence_weights": jnp.zeros_like(batch["next_sentence_weights"])}
    _, new = loss_and_sums(batch, mlm, nsp)
    return jax.tree.map(jnp.add, sums, new)


def show(found: dict[str, float], as_json: bool) -> None:
    """Prints what was found, as a table or as one line of JSON."""
    if as_json:
        print(json.dumps({name: None if math.isnan(value) else value for name, value in found.items()}))
        return
    width = max(map(len, found)) + 2
    for name, value in found.items():
        print(f"{name:{width}}" + (f"{value:10,d}" if isinstance(value, int) else f"{value:10.4f}"))
