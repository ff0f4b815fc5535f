"""The fine-tuning models: the encoder and one new output layer (BERT, Devlin et al. 2018, section 4)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxbert.config import ModelConfig
from flaxbert.model.dropout import dropout, row_seeds
from flaxbert.model.encoder import Encoder, dense, row_numbers


class BertWithHead(nn.Module):
    """BERT with a dense layer of `outputs`: on the pooled [CLS] of each sequence, or on every token."""

    config: ModelConfig
    outputs: int
    pooled: bool
    """True for classification of sequences and multiple choice, False for tagging and extractive answers."""
    deterministic: bool = True
    """False turns dropout on; `apply` then needs a `dropout` key."""
    dtype: Any = jnp.float32
    """Of matrix products."""
    frozen: bool = False
    """The head reads what the encoder says without dropout, as it would at prediction."""

    def setup(self) -> None:
        self.encoder = Encoder(self.config, self.deterministic or self.frozen, self.dtype)
        if self.pooled:
            self.pooler = dense(self.config, self.config.hidden_size, self.dtype)
        self.head = dense(self.config, self.outputs, jnp.float32)

    def __call__(self, batch: dict[str, jax.Array]) -> jax.Array:
        """Float32 [B, C, outputs] where `pooled`, else [B, S, outputs]."""
        x = self.encoder(batch, batch["cls_positions"] if self.pooled else None)
        if self.pooled:
            x = jnp.tanh(self.pooler(x))
        if not self.deterministic:
            x = dropout(x, self.config.dropout, row_seeds(self.make_rng("dropout"), row_numbers(batch)))
        return self.head(x.astype(jnp.float32))


class BertWithBiLstm(nn.Module):
    """Two bidirectional LSTM layers and a dense one over what chosen layers of the encoder say of each token, as the
    paper tags with BERT's features (section 5.3). The encoder is not trained, and has no dropout.
    """

    config: ModelConfig
    outputs: int
    layers: tuple[int, ...]
    """In [0, num_layers]; 0 is what the first one reads. Their vectors are concatenated."""
    deterministic: bool = True
    """False turns dropout on the concatenated vectors on; `apply` then needs a `dropout` key."""
    dtype: Any = jnp.float32
    """Of the encoder's matrix products."""

    def setup(self) -> None:
        self.encoder = Encoder(self.config, True, self.dtype, keeps_layers=True)
        self.tagger = BiLstm(self.config.hidden_size, self.outputs)

    def __call__(self, batch: dict[str, jax.Array]) -> jax.Array:
        """Float32 [B, S, outputs]."""
        states = jax.lax.stop_gradient(self.encoder(batch))  # [L + 1, B, S, D]
        x = jnp.concatenate([states[layer] for layer in self.layers], axis=-1)
        if not self.deterministic:
            x = dropout(x, self.config.dropout, row_seeds(self.make_rng("dropout"), row_numbers(batch)))
        found: jax.Array = self.tagger(x, jnp.sum(batch["sequence_ids"] > 0, axis=1))
        return found


class BiLstm(nn.Module):
    """Two layers of `size` units in each direction, and a dense layer."""

    size: int
    outputs: int

    @nn.compact
    def __call__(self, x: jax.Array, lengths: jax.Array) -> jax.Array:
        """Maps x [B, S, D] of rows with so many tokens [B] to [B, S, outputs]."""
        for number in range(2):
            forward, backward = (
                nn.RNN(nn.OptimizedLSTMCell(self.size, name=f"{way}_{number}")) for way in ("forward", "backward")
            )
            both: Any = nn.Bidirectional(forward, backward)(x, seq_lengths=lengths)
            x = both
        return nn.Dense(self.outputs, name="output")(x)


def initialize_bilstm(config: ModelConfig, outputs: int, layers: int, key: jax.Array) -> Any:
    """New parameters of `BertWithBiLstm`'s own part over so many layers."""
    x = jnp.zeros((1, 2, layers * config.hidden_size))
    return BiLstm(config.hidden_size, outputs).init(key, x, jnp.full(1, 2))["params"]
