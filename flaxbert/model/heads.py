"""What stands on the encoder: the masked-language-model head. Heads of one dense layer stand in their models."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxbert.config import ModelConfig
from flaxbert.model.encoder import activation, dense, layer_norm
from flaxbert.model.products import einsum
from flaxbert.sharding import constrain, platform


class MaskedLanguageModelHead(nn.Module):
    """Transform, then logits against the token embeddings, tied, with a bias of their own."""

    config: ModelConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, word_embedding: jax.Array) -> jax.Array:
        """Maps hidden states [B, P, D] and the table [V, D] to float32 logits [B, P, V].

        V is the padded vocabulary; its padding gets the lowest logit and no gradient.
        """
        cfg = self.config
        x = layer_norm(cfg, name="norm")(activation(cfg, dense(cfg, cfg.hidden_size, self.dtype, "transform")(x)))
        bias = self.param("bias", nn.initializers.zeros_init(), (cfg.padded_vocab_size,), jnp.float32)
        # The padding is ruled out in the bias: a mask over the logits would be one more pass over [B, P, V] each way.
        assert cfg.vocab_size is not None, "padded_vocab_size would have raised"
        real = jnp.arange(cfg.padded_vocab_size) < cfg.vocab_size
        bias = jnp.where(real, bias, jnp.finfo(jnp.float32).min)
        if platform() == "cpu":  # see `Dense`
            logits = einsum("nd,vd->nv", x.reshape(-1, cfg.hidden_size), word_embedding, self.dtype)
        else:
            logits = einsum("bpd,vd->bpv", x, word_embedding, self.dtype)
        return constrain((logits + bias).reshape(*x.shape[:2], cfg.padded_vocab_size), "batch", None, "vocab")
