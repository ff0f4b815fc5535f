"""The model classes of transformers that this encoder can express, and the parts that each is made of."""

import math
from typing import Any, NamedTuple

import jax

from flaxbert.config import ModelConfig


class Architecture(NamedTuple):
    """A class of transformers."""

    parts: tuple[str, ...]
    """The top of our parameter tree."""
    auto_class: str
    """The class that loads it by its config.json."""
    output: str | None = None
    """The name there of the layer that we call `head`."""


PRETRAINING, ENCODER_ALONE = "BertForPreTraining", "BertModel"
ARCHITECTURES = {
    PRETRAINING: Architecture(("encoder", "pooler", "mlm", "nsp"), "AutoModelForPreTraining"),
    ENCODER_ALONE: Architecture(("encoder", "pooler"), "AutoModel"),
    "BertForMaskedLM": Architecture(("encoder", "mlm"), "AutoModelForMaskedLM"),
    "BertForNextSentencePrediction": Architecture(("encoder", "pooler", "nsp"), "AutoModelForNextSentencePrediction"),
    "BertForSequenceClassification": Architecture(
        ("encoder", "pooler", "head"), "AutoModelForSequenceClassification", "classifier"
    ),
    "BertForMultipleChoice": Architecture(("encoder", "pooler", "head"), "AutoModelForMultipleChoice", "classifier"),
    "BertForTokenClassification": Architecture(("encoder", "head"), "AutoModelForTokenClassification", "classifier"),
    "BertForQuestionAnswering": Architecture(("encoder", "head"), "AutoModelForQuestionAnswering", "qa_outputs"),
}

DESCRIPTIONS = {
    "pooler": "the pooler",
    "mlm": "the masked-language-model head",
    "nsp": "the next-sentence head",
    "head": "the output layer",
}


class Checkpoint(NamedTuple):
    """A model as another tool keeps it."""

    config: ModelConfig
    params: Any
    """The parameter tree, float32 numpy, of the parts that are there."""
    architecture: str = PRETRAINING
    labels: tuple[str, ...] = ()
    """The names of the outputs of `head`."""
    kept: dict[str, Any] = {}
    """Fields of config.json that change nothing here and go along."""
    unused: tuple[str, ...] = ()
    """Tensors that this model has no place for."""


def parameter_count(checkpoint: Checkpoint) -> int:
    """Parameters as they are exported: without the rows that pad the vocabulary, and their biases."""
    config = checkpoint.config
    padding = config.padded_vocab_size - (config.vocab_size or 0)
    leaves = jax.tree.leaves({part: checkpoint.params[part] for part in ARCHITECTURES[checkpoint.architecture].parts})
    return sum(math.prod(leaf.shape) for leaf in leaves) - padding * (config.hidden_size + ("mlm" in checkpoint.params))


def describe(parts: tuple[str, ...]) -> str:
    """`the pooler, the next-sentence head`."""
    return ", ".join(DESCRIPTIONS[part] for part in parts)


def narrowed(checkpoint: Checkpoint, architecture: str) -> Checkpoint:
    """The parts of a checkpoint that another architecture is made of. Raises ValueError where it lacks one."""
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture {architecture!r} is not one of {', '.join(ARCHITECTURES)}")
    wanted = ARCHITECTURES[architecture]
    lacking = tuple(part for part in wanted.parts if part not in checkpoint.params)
    other_head = "head" in wanted.parts and checkpoint.architecture != architecture
    if lacking or other_head:
        what = describe(lacking or ("head",))
        raise ValueError(
            f"the model is a {checkpoint.architecture} and cannot be written as {architecture}: it lacks {what}"
        )
    labels = checkpoint.labels if "head" in wanted.parts else ()
    params = {part: checkpoint.params[part] for part in wanted.parts}
    return checkpoint._replace(params=params, architecture=architecture, labels=labels)
