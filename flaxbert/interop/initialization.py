"""What a checkpoint lacks, newly initialised."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert.config import ModelConfig
from flaxbert.interop.architectures import ARCHITECTURES, Checkpoint
from flaxbert.model.encoder import initializer
from flaxbert.model.pretraining import initialize


def completed(found: Checkpoint, architecture: str, seed: int) -> tuple[Checkpoint, tuple[str, ...]]:
    """(the checkpoint with every part of a class and no other, those that it lacks initialised from `seed`; their
    names).
    """
    parts = ARCHITECTURES[architecture].parts
    added = tuple(part for part in parts if part not in found.params)
    fresh = _fresh(found.config, max(len(found.labels), 1), seed) if added else {}
    params = {part: found.params.get(part, fresh.get(part)) for part in parts}
    labels = found.labels if "head" in parts else ()
    return found._replace(params=params, architecture=architecture, labels=labels), added


_initialize = jax.jit(initialize, static_argnums=0)


def _fresh(config: ModelConfig, outputs: int, seed: int) -> dict[str, Any]:
    """Every part of a model before its first step, float32 numpy; `head` has that many outputs."""
    body, output_layer = jax.random.split(jax.random.key(seed))
    kernel = initializer(config)(output_layer, (config.hidden_size, outputs), jnp.float32)
    parts = {**_initialize(config, body), "head": {"kernel": kernel, "bias": jnp.zeros(outputs)}}
    return {name: jax.tree.map(np.asarray, tree) for name, tree in parts.items()}
