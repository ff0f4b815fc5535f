"""Embeddings, the transformer layer and the scanned stack of them (reference: modeling.py)."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxbert.config import ModelConfig
from flaxbert.model.attention import attention
from flaxbert.model.dropout import Places, dropout, row_seeds
from flaxbert.model.layer_norm import LayerNorm
from flaxbert.model.products import dense_product, results_dtype
from flaxbert.sharding import constrain, platform

# What the forward pass keeps of a layer beside its input. `products`: the outputs of its dense layers, so that only
# attention and what is computed element by element are done twice. `layers`: nothing, the whole layer is done twice.
POLICIES = {
    "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "layers": jax.checkpoint_policies.nothing_saveable,
}

# Layers in one round of the scan. On a CPU what a round hands to the backward pass is stacked with that of the others
# at a price: memory is filled with zeros, written and read once more, an eighth to a quarter of the step. Elsewhere
# rounds of several are compiled for longer and take more memory, most where they do not divide the layers
# (benchmarks/notes.md).
UNROLLED_LAYERS = {"cpu": 12, "gpu": 1, "tpu": 1}


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


def layer_norm(config: ModelConfig, name: str | None = None) -> LayerNorm:
    """LayerNorm with the epsilon of the config."""
    return LayerNorm(config.layer_norm_epsilon, name=name)


class Dense(nn.DenseGeneral):
    """On a CPU takes all tokens as one line, [N, ...] and not [B, S, ...]: the gradient of a kernel is a sum over
    tokens, and for a sum over two axes XLA first writes the gradients of the output to memory once more, transposed.
    On a TPU, whose tiles hold eight tokens of a row, a line of rows of another length would be a copy.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if platform() != "cpu":
            found: jax.Array = super().__call__(x)
            return found
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
    """GELU in the form that the config names.

    Its derivative takes five arrays as large as x, which a scan over layers would write to memory and read again. Where
    memory is what a step waits for, x is kept instead and the rest computed again; on a CPU products take far longer.
    """
    gelu = functools.partial(nn.gelu, approximate=config.activation == "gelu_new")
    return gelu(x) if platform() == "cpu" else jax.checkpoint(gelu, prevent_cse=False)(x)


def gather_positions(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Rows of x [B, S, D] at positions [B, N]: [B, N, D]."""
    return jnp.take_along_axis(x, positions[:, :, None], axis=1)


def row_numbers(batch: dict[str, jax.Array]) -> jax.Array:
    """The place [B] of each row in the whole batch, which dropout goes by: its `rows`; 0, 1, … where it has none."""
    return batch["rows"] if "rows" in batch else jnp.arange(batch["input_ids"].shape[0])


def seeds_of_layers(key: jax.Array, count: int, rows: jax.Array) -> jax.Array:
    """Those of each layer's three dropouts, of attention and of both outputs: uint32 [count, 3, B, 2] for rows [B].

    Drawn for all layers at once: a layer's own keys and seeds are some twenty operations on a few numbers each, which
    cost more to compile and to start than to compute.
    """
    keys = jax.vmap(lambda key: jax.random.split(key, 3))(jax.random.split(key, count))
    return jax.vmap(jax.vmap(lambda key: row_seeds(key, rows)))(keys)


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
            x = dropout(x, self.config.dropout, row_seeds(self.make_rng("dropout"), rows))
        return constrain(x, "batch", "length", "activation_embed")


class SelfAttention(nn.Module):
    """Multi-head attention with its output projection."""

    config: ModelConfig
    dtype: Any
    backend: str = "xla"
    packed: bool = True

    @nn.compact
    def __call__(
        self, x: jax.Array, read: jax.Array, sequence_ids: jax.Array, seeds: jax.Array | None,
        positions: jax.Array | None = None,
    ) -> jax.Array:  # fmt: skip
        """Maps x [B, S, D] to [B, S, D], where `read` is x; to [B, N, D], where it is x at `positions` [B, N]."""
        cfg = self.config
        heads, sources = (cfg.num_heads, cfg.head_size), {"query": read, "key": x, "value": x}
        projected = (dense(cfg, heads, self.dtype, name)(y).astype(self.dtype) for name, y in sources.items())
        q, k, v = (constrain(y, "batch", "length", "heads", "head_size") for y in projected)  # [B, S, H, K] each
        backend = self.backend if positions is None else "xla"
        y = attention(q, k, v, sequence_ids, cfg.attention_dropout, seeds, backend, self.packed, positions)
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
    dtype: Any
    keeps_output: bool = False
    """Give the output twice: what a scan over layers stacks is the second one."""
    backend: str = "xla"
    packed: bool = True

    @nn.compact
    def __call__(
        self, x: jax.Array, seeds: jax.Array | None, sequence_ids: jax.Array, positions: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Maps x [B, S, D] to [B, S, D]; with `positions` [B, N] to [B, N, D], the output there and nowhere else.

        `seeds` [3, B, 2] are those of its dropouts; None: there is none.
        """
        cfg = self.config
        of_attention, *of_outputs = (None,) * 3 if seeds is None else seeds
        places = None if positions is None else Places(positions, x.shape[1])
        read = x if positions is None else gather_positions(x, positions)

        def dropped(y: jax.Array, seeds: jax.Array | None) -> jax.Array:
            return y if seeds is None else dropout(y, cfg.dropout, seeds, places)

        attend = SelfAttention(cfg, self.dtype, self.backend, self.packed, name="attention")
        y = attend(x, read, sequence_ids, of_attention, positions)
        x = layer_norm(cfg, name="attention_norm")(read + dropped(y, of_outputs[0]))

        y = FeedForward(cfg, self.dtype, name="mlp")(x)
        x = layer_norm(cfg, name="mlp_norm")(x + dropped(y, of_outputs[1]))
        x = constrain(x, "batch", "length", "activation_embed")
        return x, x if self.keeps_output else None


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
        scanned: Any = nn.scan(
            EncoderLayer, variable_axes={"params": 0}, split_rngs={"params": True},
            in_axes=(0, nn.broadcast), length=self.config.num_layers,
        )  # fmt: skip
        self.layers = scanned(self.config, self.dtype, self.keeps_layers)

    def __call__(self, batch: dict[str, jax.Array], positions: jax.Array | None = None) -> jax.Array:
        """Maps ids [B, S] to hidden states, float32 [B, S, D]; with `positions` [B, N] to those there, [B, N, D], and
        the last layer computes no others; where `keeps_layers`, to [L + 1, B, S, D], the embeddings first, and
        `positions` have no say.
        """
        rows, ids, count = row_numbers(batch), batch["sequence_ids"], self.config.num_layers
        x = self.embeddings(batch, rows)
        seeds = None if self.deterministic else seeds_of_layers(self.make_rng("dropout"), count, rows)
        params = self.layers.variables.get("params")  # None: they are to be made
        if params is None or positions is None or self.keeps_layers or positions.shape[1] >= x.shape[1]:
            through = self.layers if params is None else functools.partial(self._through, params)
            last, outputs = through(x, seeds, ids)
            if self.keeps_layers:
                return jnp.concatenate([x[None], outputs])
            return last if positions is None else gather_positions(last, positions)
        first, last = _parted(params)
        first_seeds, last_seeds = (None, None) if seeds is None else (seeds[:-1], seeds[-1])
        if count > 1:
            x, _ = self._through(first, x, first_seeds, ids)
        return self._layer()(last, x, last_seeds, ids, positions)[0]

    def _layer(self) -> Any:
        """A function of one layer's parameters and of what `EncoderLayer` is called with."""
        # Without a parent: it is given its parameters, a part of those that `setup` declares.
        layer = EncoderLayer(self.config, self.dtype, self.keeps_layers, self.backend, self.packed, parent=None)

        def apply(params: Any, *inputs: Any) -> Any:
            return layer.apply({"params": params}, *inputs)

        if self.rematerialization == "none":
            return apply
        return jax.checkpoint(apply, policy=POLICIES[self.rematerialization])

    def _through(
        self, params: Any, x: jax.Array, seeds: jax.Array | None, sequence_ids: jax.Array
    ) -> tuple[jax.Array, Any]:
        """x sent through the layers of stacked `params`, one after the other: `EncoderLayer`'s outputs, the second ones
        stacked.
        """
        layer, count = self._layer(), jax.tree.leaves(params)[0].shape[0]

        def step(x: jax.Array, own: tuple[Any, jax.Array | None]) -> Any:
            return layer(own[0], x, own[1], sequence_ids)

        return jax.lax.scan(step, x, (params, seeds), unroll=min(count, self._layers_of_a_round()))

    def _layers_of_a_round(self) -> int:
        if platform() == "cpu" and self.rematerialization != "none":
            return 1  # XLA computes again from round to round there, not inside of one
        return UNROLLED_LAYERS.get(platform(), 1)


@jax.custom_vjp
def _parted(params: Any) -> tuple[Any, Any]:
    """Stacked parameters as those of all layers but the last, and those of the last one."""
    return jax.tree.map(lambda x: x[:-1], params), jax.tree.map(lambda x: x[-1], params)


def _joined(_: None, gradients: tuple[Any, Any]) -> tuple[Any]:
    # In one pass. The gradient of two slices would be each of them filled up with zeros, and added.
    return (jax.tree.map(lambda first, last: jnp.concatenate([first, last[None]]), *gradients),)


_parted.defvjp(lambda params: (_parted(params), None), _joined)
