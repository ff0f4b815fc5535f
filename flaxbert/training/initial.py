"""The parameters that a run begins with when it goes on from another model: checked against its experiment."""

from typing import Any

import jax
import numpy as np

from flaxbert.config import ModelConfig
from flaxbert.interop.architectures import PRETRAINING, Checkpoint, describe
from flaxbert.interop.initialization import completed

# What makes a model compute something else. Dropout and the range of initialisation may differ.
_EQUAL = ("hidden_size", "num_layers", "num_heads", "mlp_size", "segment_types", "activation", "layer_norm_epsilon")
_FLAGS = {"mlp_size": "feed_forward_size"}


def initial_params(name: str, found: Checkpoint, config: ModelConfig, seed: int) -> tuple[Any, list[str]]:
    """(the parameter tree of a pretraining model, float32 numpy; what was done to get it, in sentences).

    Heads that the model lacks are initialised from `seed`; positions and entries of the vocabulary beyond those of
    `config` are cut. Raises ValueError naming the setting that differs, and where `config` asks for more than is there.
    """
    for field in _EQUAL:
        theirs, ours = getattr(found.config, field), getattr(config, field)
        if theirs != ours:
            flag = _FLAGS.get(field, field)
            raise ValueError(
                f"init {name}: model.{flag} is {theirs} there and {ours} in the experiment: choose an experiment of "
                f"its size, or give --model.{flag.replace('_', '-')} {theirs}"
            )
    sentences = []
    for field in ("vocab_size", "max_length"):
        theirs, ours = getattr(found.config, field), getattr(config, field)
        if theirs < ours:
            raise ValueError(f"init {name}: model.{field} is {theirs} there, and the experiment asks for {ours}")
        if theirs > ours:
            sentences.append(f"init {name}: model.{field} is {theirs} there, and the first {ours} are taken")
    whole, added = completed(found, PRETRAINING, seed)
    if added:
        sentences.append(f"init {name}: it lacks {describe(added)}, newly initialised")
    if "head" in found.params:
        sentences.append(f"init {name}: {describe(('head',))} is left out")
    return _cut(whole.params, config), sentences


def _cut(params: Any, config: ModelConfig) -> Any:
    params = jax.tree.map(np.asarray, params)
    embeddings = params["encoder"]["embeddings"]
    embeddings["position"]["embedding"] = embeddings["position"]["embedding"][:config.max_length]
    embeddings["word"]["embedding"] = _rows(embeddings["word"]["embedding"], config)
    params["mlm"]["bias"] = _rows(params["mlm"]["bias"], config)
    return params


def _rows(x: np.ndarray, config: ModelConfig) -> np.ndarray:
    """The entries of the vocabulary, and zeros up to its padded size."""
    kept = x[:config.vocab_size]
    return np.pad(kept, [(0, config.padded_vocab_size - len(kept))] + [(0, 0)] * (x.ndim - 1))
