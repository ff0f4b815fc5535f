"""Batch and logits → loss and metrics, as sums that add up over devices, microbatches and steps."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Sums = dict[str, Any]  # float32 scalars

SUMS = (
    "mlm_loss", "mlm_correct", "mlm_weight", "nsp_loss", "nsp_correct", "nsp_random", "nsp_weight", "tokens",
    "sequences",
)  # fmt: skip


class Weights(NamedTuple):
    """What the sums of the two losses are divided by; float32 scalars."""

    masked: jax.Array
    next_sentence: jax.Array


def weights_of(batch: dict[str, jax.Array]) -> Weights:
    """The masked tokens of a batch and its sequences with a label."""
    return Weights(jnp.sum(batch["masked_weights"]), jnp.sum(batch["next_sentence_weights"]))


def loss_and_sums(
    batch: dict[str, jax.Array], mlm_logits: jax.Array, nsp_logits: jax.Array, weights: Weights | None = None
) -> tuple[jax.Array, Sums]:
    """The reference's loss (run_pretraining.py) of logits [B, P, V] and [B, C, 2], and the sums it is made of.

    The masked cross-entropy is a mean over all masked tokens of the global batch, with 1e-5 added to their number;
    the next-sentence cross-entropy is a mean over its sequences. `weights` are those of the global batch, where this
    is a part of it: the losses of the parts add up to its loss.
    """
    weights = weights or weights_of(batch)
    mlm = _classification_sums(mlm_logits, batch["masked_ids"], batch["masked_weights"])
    nsp = _classification_sums(nsp_logits, batch["next_sentence_labels"], batch["next_sentence_weights"])
    loss = mlm["loss"] / (weights.masked + 1e-5) + nsp["loss"] / jnp.maximum(weights.next_sentence, 1.0)
    sums = {f"mlm_{name}": value for name, value in mlm.items()} | {f"nsp_{name}": value for name, value in nsp.items()}
    sums["nsp_random"] = jnp.sum(batch["next_sentence_labels"] * batch["next_sentence_weights"])
    sums["tokens"] = jnp.sum(batch["sequence_ids"] > 0, dtype=jnp.float32)
    sums["sequences"] = jnp.sum(jnp.max(batch["sequence_ids"], axis=1), dtype=jnp.float32)
    return loss, sums


def zero_sums() -> Sums:
    """Sums of nothing."""
    return {name: jnp.zeros((), jnp.float32) for name in SUMS}


def summarize(sums: Sums) -> dict[str, float]:
    """Means from sums, as they stand in a line of metrics; what has no weight is left out."""
    sums = {name: float(value) for name, value in sums.items()}
    means: dict[str, float] = {}
    if sums["mlm_weight"]:
        means["mlm_loss"] = sums["mlm_loss"] / sums["mlm_weight"]
        means["perplexity"] = math.exp(min(means["mlm_loss"], 700.0))
        means["mlm_accuracy"] = sums["mlm_correct"] / sums["mlm_weight"]
    if sums["nsp_weight"]:
        means["nsp_loss"] = sums["nsp_loss"] / sums["nsp_weight"]
        means["nsp_accuracy"] = sums["nsp_correct"] / sums["nsp_weight"]
        means["nsp_random"] = sums["nsp_random"] / sums["nsp_weight"]
    return {"loss": means.get("mlm_loss", 0.0) + means.get("nsp_loss", 0.0)} | means


def _classification_sums(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> Sums:
    """Weighted sums over [B, N] of the cross-entropy and the hits of float32 logits [B, N, V].

    A hit is a label whose logit is the largest: one reduction serves the softmax and the accuracy, where an argmax
    would read the logits once more.
    """
    largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
    chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    losses = jnp.log(jnp.sum(jnp.exp(logits - largest[..., None]), axis=-1)) + largest - chosen
    hits = chosen >= largest
    return {"loss": jnp.sum(losses * weights), "correct": jnp.sum(hits * weights), "weight": jnp.sum(weights)}
