"""The fine-tuning models: the encoder and one new output layer (BERT, Devlin et al. 2018, section 4)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxbert.config import ModelConfig
from flaxbert.model.dropout import dropout
from flaxbert.model.encoder import Encoder, dense, row_numbers
from flaxbert.model.heads import gather_positions


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
        x = self.encoder(batch)
        if self.pooled:
            x = jnp.tanh(self.pooler(gather_positions(x, batch["cls_positions"])))
        if not self.deterministic:
            x = dropout(x, self.config.dropout, self.make_rng("dropout"), row_numbers(batch))
        return self.head(x.astype(jnp.float32))
