"""The settings of a run: frozen dataclasses, checked when built. Defaults are BERT-base as the paper trains it."""

import dataclasses
import math
import re
import typing
from typing import Any, Literal

from data_pipeline.config import DataConfig, check_choices
from flaxbert.phases import Phase, check_phases

VOCABULARY_MULTIPLE = 128  # matrix units like a vocabulary of whole tiles; the rest is cut off on export


def _positive(section: str, name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{section}.{name} {value} is not positive")


def _not_negative(section: str, name: str, value: float) -> None:
    if value < 0:
        raise ValueError(f"{section}.{name} {value} is negative")


def _finite(section: str, name: str, value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{section}.{name} {value} is not a finite number")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape of the encoder (BERT, Devlin et al. 2018, section 3)."""

    vocab_size: int | None = None
    """V. None: that of the corpus's tokenizer, filled in at the launch."""
    hidden_size: int = 768
    """D."""
    num_layers: int = 12
    """L."""
    num_heads: int = 12
    """H."""
    feed_forward_size: int | None = None
    """F. None: 4 x hidden_size."""
    max_length: int = 512
    """Learned positions."""
    segment_types: int = 2
    dropout: float = 0.1
    """On the embeddings and on the output of each half-layer."""
    attention_dropout: float = 0.1
    """On the attention probabilities."""
    activation: Literal["gelu", "gelu_new"] = "gelu_new"
    """`gelu` is the exact (erf) form of the first release, `gelu_new` the tanh form of the reference since 2019."""
    initializer_range: float = 0.02
    layer_norm_epsilon: float = 1e-12

    def __post_init__(self) -> None:
        check_choices("model", self)
        for name in ("hidden_size", "num_layers", "num_heads", "max_length", "segment_types"):
            _positive("model", name, getattr(self, name))
        if self.vocab_size is not None:
            _positive("model", "vocab_size", self.vocab_size)
        if self.feed_forward_size is not None:
            _positive("model", "feed_forward_size", self.feed_forward_size)
        for name in ("initializer_range", "layer_norm_epsilon"):
            _finite("model", name, getattr(self, name))
            _not_negative("model", name, getattr(self, name))
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"model.hidden_size {self.hidden_size} is not a multiple of model.num_heads {self.num_heads}"
            )
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"model.{name} {getattr(self, name)} is not in [0, 1)")

    @property
    def head_size(self) -> int:
        """K."""
        return self.hidden_size // self.num_heads

    @property
    def mlp_size(self) -> int:
        """F, resolved."""
        return self.feed_forward_size or 4 * self.hidden_size

    @property
    def padded_vocab_size(self) -> int:
        """V rounded up to a whole number of tiles: the rows of the embedding table."""
        if self.vocab_size is None:
            raise ValueError("model.vocab_size is not set: it comes from the corpus's tokenizer")
        return -(-self.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


PRESETS = {
    "tiny": ModelConfig(num_layers=2, hidden_size=128, num_heads=2),
    "mini": ModelConfig(num_layers=4, hidden_size=256, num_heads=4),
    "small": ModelConfig(num_layers=4, hidden_size=512, num_heads=8),
    "medium": ModelConfig(num_layers=8, hidden_size=512, num_heads=8),
    "base": ModelConfig(num_layers=12, hidden_size=768, num_heads=12),
    "large": ModelConfig(num_layers=24, hidden_size=1024, num_heads=16),
}


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its learning-rate curve; by default the reference's (google-research/bert, optimization.py)."""

    name: Literal["adam", "adamw", "lamb"] = "adam"
    """`adam`: as the reference, without bias correction. `adamw`: with it. `lamb`: with it too, and each weight tensor
    of each layer moves in proportion to its own norm, for batches of many thousands (You et al. 2020)."""
    learning_rate: float = 1e-4
    """Peak of the curve."""
    warmup_steps: int = 10_000
    """Steps with a rising rate."""
    decay_from: Literal["start", "warmup"] = "start"
    """Where the decay is measured from. `start`: step 0, as the reference, so that the rate drops by the factor
    1 - warmup_steps / steps where warm-up ends. `warmup`: the end of warm-up, so that it goes on from the peak."""
    decay_power: float = 1.0
    """Of the share of steps that is left. 1: a straight line. 0.5: slow first, then steep."""
    final_fraction: float = 0.0
    """Of the peak: where the decay ends."""
    weight_decay: float = 0.01
    """Decoupled, inside the learning rate; not on biases and LayerNorm."""
    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-6
    """Added outside the square root."""
    clip_norm: float = 1.0
    """Largest global gradient norm."""

    def __post_init__(self) -> None:
        check_choices("optimizer", self)
        for name in ("learning_rate", "decay_power", "weight_decay", "epsilon", "clip_norm", "b1", "b2"):
            _finite("optimizer", name, getattr(self, name))
        for name in ("learning_rate", "decay_power", "epsilon", "clip_norm"):
            _positive("optimizer", name, getattr(self, name))
        for name in ("warmup_steps", "weight_decay"):
            _not_negative("optimizer", name, getattr(self, name))
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name} {getattr(self, name)} is not in [0, 1)")
        if not 0 <= self.final_fraction <= 1:
            raise ValueError(f"optimizer.final_fraction {self.final_fraction} is not in [0, 1]")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How the devices are arranged. The product must be the number of devices."""

    data: int | None = None
    """Copies of the model, each with its rows of the batch. None: what the other axes leave."""
    fsdp: int = 1
    """Shards of parameters and optimizer state; rows of the batch are divided along this axis too."""
    tensor: int = 1
    """Shards of heads, feed-forward and vocabulary."""

    def __post_init__(self) -> None:
        for name in ("data", "fsdp", "tensor"):
            if getattr(self, name) is not None:
                _positive("mesh", name, getattr(self, name))


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length and rhythm of a run."""

    steps: int = 1_000_000
    batch_size: int = 256
    """Rows in a global batch: as many sequences, unless `data.packing` puts several into one."""
    seed: int = 0
    """Of parameters, dropout and the stream of batches."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products; parameters, optimizer, LayerNorm, softmax and loss are float32 always. On a CPU all between
    the products is too."""
    microbatches: int = 1
    """Parts that a batch is computed in, one after the other: as many times less memory for activations. Sums are added
    and divided once, so the number changes nothing but the order of float32 sums."""
    rematerialization: Literal["none", "products", "layers"] = "none"
    """What the backward pass computes again, to save memory. `products`: all of a layer but its dense products.
    `layers`: whole layers."""
    attention: Literal["auto", "xla", "fused", "splash", "cudnn"] = "auto"
    """What computes attention; all agree within float tolerance. `xla`: the plain products. `fused`: kernels that never
    write the scores, for TPU and GPU. `splash`: JAX's kernel for TPU, without attention dropout. `cudnn`: for GPU in
    bfloat16, without attention dropout and packing. `auto`: the fastest of those that can, measured at the launch."""
    skip_spikes: bool = False
    """Skip and count updates whose loss or gradient norm lies beyond mean + 6 sigma of the last 128 steps. Those that
    are not finite are skipped in any case."""
    log_every: int = 100
    eval_every: int = 10_000
    """Steps between evaluations on the held-out documents; there is one at the end too. 0: never."""
    eval_batches: int | None = 100
    """Held-out batches in an evaluation. None: all."""
    checkpoint_every: int = 10_000
    """Steps between checkpoints; there is one at the end and at a signal too."""
    keep_checkpoints: int = 3
    """The newest ones that are kept, beside the one with the lowest held-out loss (of the latest phase)."""
    profile_steps: str | None = None
    """`10:13` writes a profile of steps 10, 11 and 12 into the run's `tensorboard/` folder, for XProf."""

    def __post_init__(self) -> None:
        check_choices("train", self)
        for name in ("steps", "batch_size", "microbatches", "log_every", "checkpoint_every", "keep_checkpoints"):
            _positive("train", name, getattr(self, name))
        _not_negative("train", "eval_every", self.eval_every)
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"train.seed {self.seed} is not in [0, 2^32)")
        if self.eval_batches is not None:
            _positive("train", "eval_batches", self.eval_batches)
        self.profiled  # raises where it cannot be read

    @property
    def profiled(self) -> range:
        """The steps to profile."""
        if self.profile_steps is None:
            return range(0)
        found = re.fullmatch(r"(\d+):(\d+)", self.profile_steps)
        if found is None or not 0 < int(found[1]) < int(found[2]):
            raise ValueError(f"train.profile_steps {self.profile_steps!r} is not FIRST:END, as 10:13 for 10, 11 and 12")
        return range(int(found[1]), int(found[2]))


@dataclasses.dataclass(frozen=True)
class Experiment:
    """All that makes a run, apart from its corpus."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    train: TrainConfig = TrainConfig()
    phases: tuple[Phase, ...] = ()
    """Parts with settings of their own, one after the other, as the paper's 128 and then 512. Empty: all is one."""

    def __post_init__(self) -> None:
        if not self.phases and self.data.sequence_length > self.model.max_length:
            raise ValueError(
                f"data.sequence_length {self.data.sequence_length} exceeds model.max_length {self.model.max_length}"
            )
        if self.train.profiled.stop > self.train.steps + 1:
            found, last = self.train.profile_steps, self.train.steps
            raise ValueError(f"train.profile_steps {found} ends after train.steps {last}")
        check_phases(self)


def with_vocabulary(experiment: Experiment, vocab_size: int) -> Experiment:
    """The experiment with its vocabulary size filled in from a tokenizer, or checked against it."""
    stated = experiment.model.vocab_size
    if stated is not None and stated != vocab_size:
        raise ValueError(f"model.vocab_size {stated} differs from that of the corpus's tokenizer, {vocab_size}")
    return dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, vocab_size=vocab_size))


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"model": {"num_layers": 2}}` as `{"model.num_layers": 2}`; the elements of a tuple of such by their number."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, tuple) and value and isinstance(value[0], dict):
            value = {str(number): part for number, part in enumerate(value)}
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


# Settings that older folders do not have, and what was done before there was a choice.
ADDED_LATER: dict[str, dict[str, Any]] = {"TrainConfig": {"attention": "xla"}}


def from_dict(kind: Any, values: dict[str, Any]) -> Any:
    """Builds a config dataclass from what `dataclasses.asdict` made of it, or an older version of it. Raises ValueError
    for unknown or missing fields and for values of another type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{kind.__name__}: found {values!r}, expected its fields")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values = ADDED_LATER.get(kind.__name__, {}) | values
    missing = sorted(fields.keys() - values.keys())
    unknown = sorted(values.keys() - fields.keys())
    if unknown or missing:
        raise ValueError(f"{kind.__name__}: unknown fields {unknown}, missing fields {missing}")
    nested = {name: field.type for name, field in fields.items() if dataclasses.is_dataclass(field.type)}
    for name, field in fields.items():
        if typing.get_origin(field.type) is tuple:  # a list in JSON
            element = typing.get_args(field.type)[0]
            nested_too = dataclasses.is_dataclass(element)
            found = [from_dict(element, value) if nested_too else value for value in values[name]]
            values = values | {name: tuple(found)}
    try:
        return kind(**{k: from_dict(nested[k], v) if k in nested else v for k, v in values.items()})
    except TypeError as error:  # a check compared what cannot be compared
        raise ValueError(f"{kind.__name__}: {error}") from None
