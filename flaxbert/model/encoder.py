"""Embeddings, the transformer layer and the scanned stack of them (reference: modeling.py)."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxbert.config import ModelConfig
from flaxbert.model.attention import attention
from flaxbert.model.dropout import dropout
from flaxbert.model.products import dense_product, results_dtype
from flaxbert.sharding import constrain, platform

# What the forward pass keeps of a layer beside its input. `products`: the outputs of its dense layers, so that only
# attention and what is computed element by element are done twice. `layers`: nothing, the whole layer is done twice.
POLICIES = {
    "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "layers": jax.checkpoint_policies.nothing_saveable,
}

# Layers in one round of the scan. What a round hands to the backward pass is stacked with that of the others: memory is
# filled with zeros, written and read once more, an eighth to a quarter of a CPU's step. The price is time to compile.
UNROLLED_LAYERS = {"cpu": 12, "gpu": 4, "tpu": 4}


def initializer(config: ModelConfig) -> Any:
    """Truncated normal, cut at two sigma and not rescaled: the sample's deviation is 0.88 of the parameter."""
    return nn.initializers.truncated_normal(config.initializer_range, lower=-2.0, upper=2.0)


def word_initializer(config: ModelConfig) -> Any:
    """`initializer` with zeros in the padding of the vocabulary. It gets no gradient, so it stays zero under every
    optimizer, and the norm of the table, which LAMB goes by, is that of the true vocabulary.
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        real = jnp.arange(shape[0])[:, None] < jnp.asarray(config.vocab_size)
        return jnp.where(real, initializer(config)(key, shape, dtype), jnp.zeros((), dtype))

    return init


def layer_norm(config: ModelConfig, name: str | None = None) -> nn.LayerNorm:
    """LayerNorm in float32, its variance in two passes: an epsilon of 1e-12 forgives no cancellation."""
    return nn.LayerNorm(config.layer_norm_epsilon, dtype=jnp.float32, use_fast_variance=False, name=name)


class Dense(nn.DenseGeneral):
    """Takes all tokens as one line, [N, ...] and not [B, S, ...]: the gradient of a kernel is a sum over tokens, and
    for a sum over two axes XLA first writes the gradients of the output to memory once more, transposed.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        axes = 1 if isinstance(self.axis, int) else len(self.axis)
        y: jax.Array = super().__call__(x.reshape(-1, *x.shape[-axes:]))
        return y.reshape(*x.shape[:-axes], *y.shape[1:])


def dense(
    config: ModelConfig, features: int | tuple[int, ...], dtype: Any, name: str | None = None, axis: Any = -1
) -> Dense:
    """A dense layer over the last axis, or the last ones, whose product is in `dtype`; its parameters are float32."""
    return Dense(
        features, axis=axis, dtype=results_dtype(dtype), kernel_init=initializer(config), name=name,
        dot_general=functools.partial(dense_product, dtype) if platform() == "cpu" else None,
    )  # fmt: skip


def activation(config: ModelConfig, x: jax.Array) -> jax.Array:
    """GELU in the form that the config names."""
    return nn.gelu(x, approximate=config.activation == "gelu_new")


def row_numbers(batch: dict[str, jax.Array]) -> jax.Array:
    """The place [B] of each row in the whole batch, which dropout goes by: its `rows`; 0, 1, … where it has none."""
    return batch["rows"] if "rows" in batch else jnp.arange(batch["input_ids"].shape[0])


class Embeddings(nn.Module):
    """Token + segment + position embeddings, normalised."""

    config: ModelConfig
    deterministic: bool

    def setup(self) -> None:
        cfg = self.config
        init = initializer(cfg)
        self.word = nn.Embed(cfg.padded_vocab_size, cfg.hidden_size, embedding_init=word_initializer(cfg))
        self.segment = nn.Embed(cfg.segment_types, cfg.hidden_size, embedding_init=init)
        self.position = nn.Embed(cfg.max_length, cfg.hidden_size, embedding_init=init)
        self.norm = layer_norm(cfg)
        # Where `fsdp` divides the width of a table, each device gathers the table. Left to itself XLA has each device
        # look up its part of every row of the whole batch, and then sends the rows.
        self.word_table = constrain(self.word.embedding, "vocab", None)
        self.segment_table = constrain(self.segment.embedding, None, None)
        self.position_table = constrain(self.position.embedding, None, None)

    def __call__(self, batch: dict[str, jax.Array], rows: jax.Array) -> jax.Array:
        """Maps ids [B, S] of rows [B] to float32 [B, S, D]."""
        x = jnp.take(self.word_table, batch["input_ids"], axis=0)
        x += jnp.take(self.segment_table, batch["segment_ids"], axis=0)
        x += jnp.take(self.position_table, batch["position_ids"], axis=0)
        x = self.norm(x)
        if not self.deterministic:
            x = dropout(x, self.config.dropout, self.make_rng("dropout"), rows)
        return constrain(x, "batch", "length", "activation_embed")


class SelfAttention(nn.Module):
    """Multi-head attention with its output projection."""

    config: ModelConfig
    deterministic: bool
    dtype: Any
    backend: str = "xla"
    packed: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, sequence_ids: jax.Array, rows: jax.Array) -> jax.Array:
        """Maps x [B, S, D] to [B, S, D]."""
        cfg = self.config
        heads = (cfg.num_heads, cfg.head_size)
        projected = (dense(cfg, heads, self.dtype, name)(x).astype(self.dtype) for name in ("query", "key", "value"))
        q, k, v = (constrain(y, "batch", "length", "heads", "head_size") for y in projected)  # [B, S, H, K] each
        key = None if self.deterministic else self.make_rng("dropout")
        y = attention(q, k, v, sequence_ids, cfg.attention_dropout, key, rows, self.backend, self.packed)
        return dense(cfg, cfg.hidden_size, self.dtype, "output", axis=(-2, -1))(y)


class FeedForward(nn.Module):
    """Two dense layers with GELU between them and no dropout."""

    config: ModelConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [B, S, D] to [B, S, D]."""
        y = activation(self.config, dense(self.config, self.config.mlp_size, self.dtype, "up")(x))  # [B, S, F]
        y = constrain(y, "batch", "length", "mlp")
        return dense(self.config, self.config.hidden_size, self.dtype, "down")(y)


class EncoderLayer(nn.Module):
    """One post-norm transformer layer: attention, then feed-forward."""

    config: ModelConfig
    deterministic: bool
    dtype: Any
    keeps_output: bool = False
    """Give the output twice: what `nn.scan` stacks is the second one."""
    backend: str = "xla"
    packed: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, sequence_ids: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Maps x [B, S, D] to [B, S, D]."""
        cfg = self.config
        attend = SelfAttention(cfg, self.deterministic, self.dtype, self.backend, self.packed, name="attention")
        y = attend(x, sequence_ids, rows)
        x = layer_norm(cfg, name="attention_norm")(x + self._dropout(y, rows))

        y = FeedForward(cfg, self.dtype, name="mlp")(x)
        x = layer_norm(cfg, name="mlp_norm")(x + self._dropout(y, rows))
        x = constrain(x, "batch", "length", "activation_embed")
        return x, x if self.keeps_output else None

    def _dropout(self, y: jax.Array, rows: jax.Array) -> jax.Array:
        return y if self.deterministic else dropout(y, self.config.dropout, self.make_rng("dropout"), rows)


class Encoder(nn.Module):
    """Embeddings and L layers whose parameters are stacked: each is one array with a leading layers axis."""

    config: ModelConfig
    deterministic: bool
    dtype: Any
    rematerialization: str = "none"
    """What the backward pass computes again: a key of `POLICIES`."""
    keeps_layers: bool = False
    """Give what each layer reads and gives, and not only the last one's output."""
    backend: str = "xla"
    """Of attention."""
    packed: bool = True
    """Whether a row may hold more than one sequence: see `attention`."""

    def setup(self) -> None:
        self.embeddings = Embeddings(self.config, self.deterministic)
        layer: Any = EncoderLayer
        if self.rematerialization != "none":
            layer = nn.remat(EncoderLayer, policy=POLICIES[self.rematerialization])
        scanned = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            length=self.config.num_layers,
            unroll=min(self.config.num_layers, self._layers_of_a_round()),
        )
        self.layers = scanned(
            self.config, self.deterministic, self.dtype, self.keeps_layers, self.backend, self.packed
        )

    def _layers_of_a_round(self) -> int:
        if platform() == "cpu" and self.rematerialization != "none":
            return 1  # XLA computes again from round to round there, not inside of one
        return UNROLLED_LAYERS.get(platform(), 4)

    def __call__(self, batch: dict[str, jax.Array]) -> jax.Array:
        """Maps ids [B, S] to hidden states, float32 [B, S, D]; where `keeps_layers`, [L + 1, B, S, D], the embeddings
        first.
        """
        rows = row_numbers(batch)
        x = self.embeddings(batch, rows)
        last, layers = self.layers(x, batch["sequence_ids"], rows)
        return jnp.concatenate([x[None], layers]) if self.keeps_layers else last
