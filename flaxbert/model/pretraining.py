"""The models: encoder and heads put together."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxbert.config import ModelConfig
from flaxbert.model.encoder import Encoder, dense, gather_positions
from flaxbert.model.heads import MaskedLanguageModelHead


class BertForPreTraining(nn.Module):
    """BERT with the masked-language-model and the next-sentence head."""

    config: ModelConfig
    deterministic: bool = True
    """False turns dropout on; `apply` then needs a `dropout` key."""
    dtype: Any = jnp.float32
    """Of matrix products."""
    rematerialization: str = "none"
    """What the backward pass computes again: see `flaxbert.config.TrainConfig`."""
    backend: str = "xla"
    """Of attention."""
    packed: bool = True
    """Whether a row may hold more than one sequence: see `flaxbert.model.attention`."""

    def setup(self) -> None:
        self.encoder = Encoder(
            self.config, self.deterministic, self.dtype, self.rematerialization, backend=self.backend,
            packed=self.packed,
        )  # fmt: skip
        self.pooler = dense(self.config, self.config.hidden_size, self.dtype)
        self.mlm = MaskedLanguageModelHead(self.config, self.dtype)
        self.nsp = dense(self.config, 2, jnp.float32)

    def __call__(self, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """MLM logits at the masked positions, float32 [B, P, V], and NSP logits, float32 [B, C, 2].

        V is the padded vocabulary; label 0 = B follows A, 1 = random. The last layer computes what the heads read.
        """
        masked, cls = batch["masked_positions"], batch["cls_positions"]
        x = self.encoder(batch, jnp.concatenate([masked, cls], axis=1))  # [B, P + C, D]
        return self._masked(x[:, : masked.shape[1]]), self._next_sentence(x[:, masked.shape[1] :])

    def encode(self, batch: dict[str, jax.Array]) -> jax.Array:
        """Hidden states of the last layer, float32 [B, S, D]."""
        return self.encoder(batch)

    def mlm_logits(self, x: jax.Array, positions: jax.Array) -> jax.Array:
        """Logits [B, P, V] from hidden states [B, S, D] at positions [B, P]."""
        return self._masked(gather_positions(x, positions))

    def nsp_logits(self, x: jax.Array, cls_positions: jax.Array) -> jax.Array:
        """Logits [B, C, 2] from hidden states [B, S, D] through the pooler: tanh of a dense layer over the [CLS]."""
        return self._next_sentence(gather_positions(x, cls_positions))

    def _masked(self, x: jax.Array) -> jax.Array:
        return self.mlm(x, self.encoder.embeddings.word_table)

    def _next_sentence(self, x: jax.Array) -> jax.Array:
        return self.nsp(jnp.tanh(self.pooler(x)).astype(jnp.float32))


def zero_batch(config: ModelConfig, rows: int = 1, length: int = 8) -> dict[str, jax.Array]:
    """The smallest batch that the model accepts, for shapes and for initialisation."""
    tokens = {name: jnp.zeros((rows, length), jnp.int32) for name in _TOKEN_ARRAYS}
    return tokens | {name: jnp.zeros((rows, 1), jnp.int32) for name in ("masked_positions", "cls_positions")}


_TOKEN_ARRAYS = ("input_ids", "segment_ids", "sequence_ids", "position_ids")


def initialize(config: ModelConfig, key: jax.Array) -> Any:
    """The parameter tree, float32: truncated normal kernels and tables, zero biases, unit LayerNorm scales."""
    return BertForPreTraining(config).init(key, zero_batch(config))["params"]
