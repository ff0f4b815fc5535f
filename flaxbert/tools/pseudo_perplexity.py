"""Pseudo-perplexity (Salazar et al. 2020, "Masked Language Model Scoring", section 3): each token guessed from all the
others, one at a time.
"""

import functools
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert.config import ModelConfig
from flaxbert.model.pretraining import BertForPreTraining
from flaxbert.tools.load import MASK, Model

_AT_ONCE = 64  # copies of a row, each with another token masked


def pseudo_perplexity(model: Model, batches: Iterable[dict[str, np.ndarray]], rows: int) -> dict[str, float]:
    """`pseudo_perplexity` and the number of `pseudo_perplexity_tokens` it is a mean over: every token but [CLS] and
    [SEP] of the first `rows` sequences of a stream, which are unmasked first.

    A row is computed once for each of its tokens, `_AT_ONCE` at a time. Raises ValueError for a model that guesses no
    words, and without a token.
    """
    if "mlm" not in model.params:
        raise ValueError(f"the model is a {model.architecture}: it lacks the masked-language-model head")
    if rows < 1:
        raise ValueError(f"pseudo-perplexity of {rows} rows: expected a positive number")
    mask = model.tokenizer.token_to_id(MASK)
    special = [model.tokenizer.token_to_id(name) or 0 for name in ("[CLS]", "[SEP]")]
    total, count = 0.0, 0
    for row in _rows(batches, rows):
        places = np.flatnonzero((row["sequence_ids"] > 0) & ~np.isin(row["input_ids"], special))
        for start in range(0, len(places), _AT_ONCE):
            chosen = places[start:start + _AT_ONCE]
            padded = np.resize(chosen, _AT_ONCE)  # one shape for all: what is said twice is not counted
            found = _log_probabilities(model.config, model.params, mask, row, padded)
            total += float(np.asarray(found)[:len(chosen)].sum(dtype=np.float64))
            count += len(chosen)
    if not count:
        raise ValueError("there is no token to guess: the text is shorter than a sequence")
    return {"pseudo_perplexity": math.exp(-total / count), "pseudo_perplexity_tokens": count}


def _rows(batches: Iterable[dict[str, np.ndarray]], most: int) -> Iterable[dict[str, np.ndarray]]:
    """The first sequences of a stream with the masked tokens put back."""
    given = 0
    for batch in batches:
        ids = np.array(batch["input_ids"])
        for row in range(len(ids)):
            if given == most:
                return
            real = batch["masked_weights"][row] > 0
            ids[row, batch["masked_positions"][row][real]] = batch["masked_ids"][row][real]
            names = ("segment_ids", "sequence_ids", "position_ids")
            yield {"input_ids": ids[row], **{name: np.asarray(batch[name][row]) for name in names}}
            given += 1


@functools.partial(jax.jit, static_argnums=0)
def _log_probabilities(
    config: ModelConfig, params: Any, mask: int, row: dict[str, jax.Array], places: jax.Array
) -> jax.Array:
    """Of the true tokens at `places` [N] of one row, each where it alone is masked: [N]."""
    count = places.shape[0]
    batch = {name: jnp.broadcast_to(values, (count, *values.shape)) for name, values in row.items()}
    true = row["input_ids"][places]
    batch["input_ids"] = batch["input_ids"].at[jnp.arange(count), places].set(mask)
    model, variables = BertForPreTraining(config), {"params": params}
    hidden: Any = model.apply(variables, batch, method="encode")
    logits: Any = model.apply(variables, hidden, places[:, None], method="mlm_logits")  # [N, 1, V]
    found: Any = jax.nn.log_softmax(logits[:, 0, :config.vocab_size])[jnp.arange(count), true]
    return found
