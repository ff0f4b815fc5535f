"""What a model says of a batch of a task, and how far that is from its labels."""

from typing import Any

import jax
import jax.numpy as jnp

from flaxbert.finetuning.tasks import Kind

Batch = dict[str, jax.Array]

_LOWEST = jnp.finfo(jnp.float32).min

# Task kind → its class in transformers.
ARCHITECTURE = {
    "classification": "BertForSequenceClassification",
    "regression": "BertForSequenceClassification",
    "tagging": "BertForTokenClassification",
    "qa": "BertForQuestionAnswering",
    "multiple_choice": "BertForMultipleChoice",
}
TAGGER = "tagger"  # the place of a BiLSTM in the parameter tree, where others have a `head`
POOLED = ("classification", "regression", "multiple_choice")


def output_count(kind: Kind, labels: int) -> int:
    """The width of the output layer: one for each label; start and end in qa; one score in regression, and for each
    choice.
    """
    return {"qa": 2, "regression": 1, "multiple_choice": 1}.get(kind, labels)


def logits_of(kind: Kind, outputs: jax.Array, batch: Batch) -> jax.Array:
    """The output layer's [R, 1, N] or [R, S, N] as the task's logits: [B, N] in classification, [B] in regression,
    [B, choices] in multiple choice, [B, S, N] in tagging, and in qa [B, S, 2], the lowest number where padding is.
    """
    if kind == "qa":
        return jnp.where(batch["sequence_ids"][:, :, None] > 0, outputs, _LOWEST)
    if kind == "tagging":
        return outputs
    pooled = outputs[:, 0]  # [R, N]
    if kind == "classification":
        return pooled
    return pooled[:, 0] if kind == "regression" else pooled.reshape(batch["labels"].shape[0], -1)


def loss_sum(kind: Kind, logits: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """(sum of the losses of a batch, sum of their weights): squared distances in regression, else cross-entropies,
    which in qa are the mean of start and end (run_classifier.py, run_squad.py).
    """
    labels, weights = batch["labels"], batch["label_weights"]
    if kind == "regression":
        losses = jnp.square(logits - labels)
    elif kind == "qa":
        losses = _cross_entropy(logits.swapaxes(1, 2), labels).mean(axis=-1)
    else:
        losses = _cross_entropy(logits, labels)
    return jnp.sum(losses * weights), jnp.sum(weights)


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Of logits [..., N] and labels [...]."""
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    found: Any = -jnp.take_along_axis(log_probabilities, labels[..., None], axis=-1)[..., 0]
    return found
