"""Our parameter tree as the tensors of transformers' BERT classes, and back."""

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from flaxbert.config import ModelConfig
from flaxbert.interop.architectures import ARCHITECTURES, PRETRAINING
from flaxbert.interop.safetensors_files import Tensor
from flaxbert.model.pretraining import initialize

# Our path, the tensor's name there, and how one becomes the other (`_outward`, `_inward`). {} is the number of the
# layer: ours holds all layers in one array. The decoder of the MLM head is the word embedding and has no row.
TENSORS = (
    ("encoder/embeddings/word/embedding", "bert.embeddings.word_embeddings.weight", "vocabulary"),
    ("encoder/embeddings/position/embedding", "bert.embeddings.position_embeddings.weight", "table"),
    ("encoder/embeddings/segment/embedding", "bert.embeddings.token_type_embeddings.weight", "table"),
    ("encoder/embeddings/norm/scale", "bert.embeddings.LayerNorm.weight", "vector"),
    ("encoder/embeddings/norm/bias", "bert.embeddings.LayerNorm.bias", "vector"),
    ("encoder/layers/attention/query/kernel", "bert.encoder.layer.{}.attention.self.query.weight", "kernel to heads"),
    ("encoder/layers/attention/query/bias", "bert.encoder.layer.{}.attention.self.query.bias", "vector"),
    ("encoder/layers/attention/key/kernel", "bert.encoder.layer.{}.attention.self.key.weight", "kernel to heads"),
    ("encoder/layers/attention/key/bias", "bert.encoder.layer.{}.attention.self.key.bias", "vector"),
    ("encoder/layers/attention/value/kernel", "bert.encoder.layer.{}.attention.self.value.weight", "kernel to heads"),
    ("encoder/layers/attention/value/bias", "bert.encoder.layer.{}.attention.self.value.bias", "vector"),
    ("encoder/layers/attention/output/kernel", "bert.encoder.layer.{}.attention.output.dense.weight", "kernel"),
    ("encoder/layers/attention/output/bias", "bert.encoder.layer.{}.attention.output.dense.bias", "vector"),
    ("encoder/layers/attention_norm/scale", "bert.encoder.layer.{}.attention.output.LayerNorm.weight", "vector"),
    ("encoder/layers/attention_norm/bias", "bert.encoder.layer.{}.attention.output.LayerNorm.bias", "vector"),
    ("encoder/layers/mlp/up/kernel", "bert.encoder.layer.{}.intermediate.dense.weight", "kernel"),
    ("encoder/layers/mlp/up/bias", "bert.encoder.layer.{}.intermediate.dense.bias", "vector"),
    ("encoder/layers/mlp/down/kernel", "bert.encoder.layer.{}.output.dense.weight", "kernel"),
    ("encoder/layers/mlp/down/bias", "bert.encoder.layer.{}.output.dense.bias", "vector"),
    ("encoder/layers/mlp_norm/scale", "bert.encoder.layer.{}.output.LayerNorm.weight", "vector"),
    ("encoder/layers/mlp_norm/bias", "bert.encoder.layer.{}.output.LayerNorm.bias", "vector"),
    ("pooler/kernel", "bert.pooler.dense.weight", "kernel"),
    ("pooler/bias", "bert.pooler.dense.bias", "vector"),
    ("mlm/transform/kernel", "cls.predictions.transform.dense.weight", "kernel"),
    ("mlm/transform/bias", "cls.predictions.transform.dense.bias", "vector"),
    ("mlm/norm/scale", "cls.predictions.transform.LayerNorm.weight", "vector"),
    ("mlm/norm/bias", "cls.predictions.transform.LayerNorm.bias", "vector"),
    ("mlm/bias", "cls.predictions.bias", "vocabulary"),
    ("nsp/kernel", "cls.seq_relationship.weight", "kernel"),
    ("nsp/bias", "cls.seq_relationship.bias", "vector"),
)
# The output layer of a fine-tuned model: {} is the name that its class gives it.
_HEAD = (("head/kernel", "{}.weight", "kernel"), ("head/bias", "{}.bias", "vector"))
_WORDS = "bert.embeddings.word_embeddings.weight"
_BIAS = "cls.predictions.bias"
_DECODER, _DECODER_BIAS = "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"
_SHOWN = 8
_WAY_OUT = "flaxbert import --allow-unused True leaves it out"
_BUFFERS = ("bert.embeddings.position_ids", "bert.embeddings.token_type_ids")


def _rows(config: ModelConfig, parts: tuple[str, ...], output: str | None) -> Iterator[tuple[str, list[str], str]]:
    """(our path, its tensors there, kind) of each parameter of some parts; one tensor for each layer of a stack."""
    for ours, theirs, kind in (*TENSORS, *_HEAD):
        part = ours.partition("/")[0]
        if part not in parts:
            continue
        if part == "head":
            yield ours, [theirs.format(output)], kind
        else:
            layers = range(config.num_layers if "{}" in theirs else 1)
            yield ours, [theirs.format(layer) for layer in layers], kind


def to_tensors(
    params: Any, config: ModelConfig, architecture: str = PRETRAINING, dtype: Any = np.float32
) -> dict[str, np.ndarray]:
    """The tensors of a class, contiguous, from a parameter tree that has its parts. NaN and infinity raise."""
    wanted = ARCHITECTURES[architecture]
    tensors = {}
    for ours, names, kind in _rows(config, wanted.parts, wanted.output):
        value = np.asarray(_leaf(params, ours), np.float32)
        if not np.isfinite(value).all():
            raise ValueError(f"parameter {ours} holds NaN or infinity: its training has diverged, take an earlier step")
        for name, part in zip(names, value if ours.startswith("encoder/layers/") else [value], strict=True):
            # safetensors writes the memory as it lies: a transposed view would be scrambled.
            tensors[name] = np.ascontiguousarray(_outward(kind, part, config.vocab_size).astype(dtype))
    return tensors


def _outward(kind: str, x: Any, vocab_size: int | None) -> Any:
    """One array of ours as theirs: kernels [in, out] → [out, in], heads joined, the padded vocabulary cut."""
    if kind == "vocabulary":
        return x[:vocab_size]
    if kind == "kernel to heads":
        return x.reshape(x.shape[0], -1).T
    if kind == "kernel":
        return x.reshape(-1, x.shape[-1]).T
    return x.reshape(-1) if kind == "vector" else x


def _inward(kind: str, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `_outward`: an array of `shape`; the padding of the vocabulary is zero."""
    if kind == "vocabulary":
        return np.pad(x, [(0, shape[0] - x.shape[0])] + [(0, 0)] * (x.ndim - 1))
    return (x.T if kind.startswith("kernel") else x).reshape(shape)


def _leaf(tree: Any, path: str) -> Any:
    return functools.reduce(lambda node, key: node[key], path.split("/"), tree)


def from_tensors(
    tensors: Mapping[str, Tensor], config: ModelConfig, architecture: str, outputs: int = 0, allow_unused: bool = False
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(the parameter tree, float32 numpy, of the parts that are there; the names of the tensors left over).

    Names may lack the prefix of the encoder and may be those of TensorFlow's norms. A part of which any tensor is there
    must be there whole; the encoder must be. `outputs` is the width of `head`. Raises ValueError for tensors that are
    missing or of another shape, and for those left over unless `allow_unused`.
    """
    named = _canonical(tensors)
    untied = _resolve_copies(named, allow_unused)
    parts = ("encoder", "pooler", "mlm", "nsp", *(("head",) if ARCHITECTURES[architecture].output else ()))
    rows = list(_rows(config, parts, ARCHITECTURES[architecture].output))
    present = {ours.partition("/")[0] for ours, names, _ in rows if any(name in named for name in names)} | {"encoder"}
    rows = [row for row in rows if row[0].partition("/")[0] in present]
    expected = [name for _, names, _ in rows for name in names]
    _refuse([name for name in expected if name not in named], "missing", named, f"found {_some(sorted(named))}")
    unused = sorted(set(named) - set(expected) - set(_BUFFERS))
    if not allow_unused:
        _refuse(unused, "left over", named, f"expected those of {architecture}; {_WAY_OUT}")
    shapes = _shapes(config, outputs)
    tree: dict[str, Any] = {}
    for ours, names, kind in rows:
        shape = _leaf(shapes, ours).shape
        stacked = ours.startswith("encoder/layers/")
        values = [_read(name, named[name], kind, shape[1:] if stacked else shape, config) for name in names]
        *parents, last = ours.split("/")
        node = functools.reduce(lambda node, key: node.setdefault(key, {}), parents, tree)
        node[last] = np.stack(values) if stacked else values[0]
    return tree, (*unused, *untied)


def _canonical(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of TENSORS. The encoder saved alone lacks its prefix."""
    bare = not any(name.startswith("bert.") for name in tensors)
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = re.sub(r"\bLayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"\bLayerNorm\.beta$", "LayerNorm.bias", name))
        if bare and full.startswith(("embeddings.", "encoder.", "pooler.")):
            full = f"bert.{full}"
        if full in named:
            raise ValueError(f"{tensor.origin}: tensor {name} is there twice, under an old and a new name")
        named[full] = tensor
    return named


def _resolve_copies(named: dict[str, Tensor], allow_unused: bool) -> tuple[str, ...]:
    """Takes the decoder of the masked-language-model head out of `named`, where it copies the word embedding and the
    head's bias. Where it does not, the whole head is unused, or refused.
    """
    for copy, original in ((_DECODER, _WORDS), (_DECODER_BIAS, _BIAS)):
        if copy not in named:
            continue
        tensor = named.pop(copy)
        named.setdefault(original, tensor)
        if tensor.shape == named[original].shape and np.array_equal(tensor.read(), named[original].read()):
            continue
        if not allow_unused:
            raise ValueError(
                f"{tensor.origin}: tensor {copy} differs from {original}, and this model ties the two; {_WAY_OUT}, and "
                "with it the head"
            )
        head = [name for name in named if name.startswith("cls.predictions.")]
        for name in head:
            del named[name]
        return (copy, *head)
    return ()


def _refuse(names: list[str], state: str, named: dict[str, Tensor], remark: str) -> None:
    if names:
        origin = next(iter(named.values())).origin if named else "the checkpoint"
        verb = f"tensors {_some(names)} are" if len(names) > 1 else f"tensor {names[0]} is"
        raise ValueError(f"{origin}: {verb} {state}; {remark}")


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN]) or "none"
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


def _shapes(config: ModelConfig, outputs: int) -> Any:
    shapes = jax.eval_shape(functools.partial(initialize, config), jax.random.key(0))
    head = {"kernel": (config.hidden_size, outputs), "bias": (outputs,)}
    return shapes | {"head": {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in head.items()}}


def _read(name: str, tensor: Tensor, kind: str, shape: tuple[int, ...], config: ModelConfig) -> np.ndarray:
    """One tensor in our `shape`, after comparing its shape there with what our shape makes of it."""
    outward = functools.partial(_outward, kind, vocab_size=config.vocab_size)
    expected = jax.eval_shape(outward, jax.ShapeDtypeStruct(shape, np.float32)).shape
    if tensor.shape != expected:
        raise ValueError(
            f"{tensor.origin}: tensor {name} has shape {list(tensor.shape)}, and its settings make it {list(expected)}"
        )
    return _inward(kind, tensor.read(), shape)
