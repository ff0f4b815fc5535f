"""model.safetensors of a Hugging Face directory: our parameter tree as the tensors of BertForPreTraining, and back."""

import functools
import os
from pathlib import Path
from typing import Any, Iterator

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from flaxbert.config import ModelConfig
from flaxbert.model.pretraining import initialize

WEIGHTS = "model.safetensors"

_UNREADABLE = ("model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5")

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

# Copies that some versions write: allowed where they equal the tensor they copy.
_COPIES = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
_BUFFERS = ("bert.embeddings.position_ids", "bert.embeddings.token_type_ids")


def to_tensors(params: Any, config: ModelConfig) -> dict[str, np.ndarray]:
    """The tensors of BertForPreTraining, float32 and contiguous, from a parameter tree. NaN and infinity raise."""
    tensors = {}
    for ours, theirs, kind in TENSORS:
        value = np.asarray(_leaf(params, ours), np.float32)
        if not np.isfinite(value).all():
            raise ValueError(f"parameter {ours} holds NaN or infinity: the run has diverged, export an earlier step")
        layers = enumerate(value) if "{}" in theirs else [(0, value)]
        for layer, part in layers:
            # safetensors writes the memory as it lies: a transposed view would be scrambled.
            tensors[theirs.format(layer)] = np.ascontiguousarray(_outward(kind, part, config.vocab_size))
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


def write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes a safetensors file, reads it back and compares."""
    save_file(tensors, path, metadata={"format": "pt"})
    with safe_open(path, "numpy") as file:
        for name, tensor in tensors.items():
            if not np.array_equal(file.get_tensor(name), tensor):
                raise RuntimeError(f"{path}: tensor {name} read back differs from what was written")


def read_params(folder: str | os.PathLike[str], config: ModelConfig) -> Any:
    """The parameter tree, float32 numpy, of a BertForPreTraining in model.safetensors.

    Raises ValueError for a damaged file and for tensors that are missing, left over or of another shape.
    """
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise ValueError(_why_unreadable(path))
    try:
        with safe_open(path, "numpy") as file:
            return _read_tree(path, file, config)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or truncated: {error}") from None


def _why_unreadable(path: Path) -> str:
    others = [name for name in _UNREADABLE if (path.parent / name).is_file()]
    if not others:
        return f"{path.parent} has no {path.name}"
    reason = "weights in several files are not read" if "safetensors" in others[0] else (
        "pickle can run code when it is opened and other formats are not known here"
    )
    return f"{path.parent} has {others[0]} but no {path.name}: {reason}; save it again as one safetensors file"


def _read_tree(path: Path, file: Any, config: ModelConfig) -> dict[str, Any]:
    _check_names(path, file, config)
    shapes = jax.eval_shape(functools.partial(initialize, config), jax.random.key(0))
    tree: dict[str, Any] = {}
    for ours, theirs, kind in TENSORS:
        shape = _leaf(shapes, ours).shape
        if "{}" in theirs:
            names = (theirs.format(layer) for layer in range(config.num_layers))
            value = np.stack([_read_tensor(path, file, name, kind, shape[1:], config) for name in names])
        else:
            value = _read_tensor(path, file, theirs, kind, shape, config)
        *parents, name = ours.split("/")
        functools.reduce(lambda node, key: node.setdefault(key, {}), parents, tree)[name] = value
    return tree


def _read_tensor(
    path: Path, file: Any, name: str, kind: str, shape: tuple[int, ...], config: ModelConfig
) -> np.ndarray:
    """One tensor in our `shape`, after comparing its type and shape there with what our shape makes of it."""
    entry = file.get_slice(name)
    outward = functools.partial(_outward, kind, vocab_size=config.vocab_size)
    expected = list(jax.eval_shape(outward, jax.ShapeDtypeStruct(shape, np.float32)).shape)
    if entry.get_shape() != expected:
        raise ValueError(f"{path}: tensor {name} has shape {entry.get_shape()}, and config.json makes it {expected}")
    if entry.get_dtype() not in ("F32", "F16", "BF16", "F64"):
        raise ValueError(f"{path}: tensor {name} has type {entry.get_dtype()}, expected floating-point numbers")
    return _inward(kind, file.get_tensor(name).astype(np.float32), shape)


def _tensor_names(config: ModelConfig) -> Iterator[str]:
    for _, theirs, _ in TENSORS:
        yield from (theirs.format(layer) for layer in range(config.num_layers if "{}" in theirs else 1))


def _check_names(path: Path, file: Any, config: ModelConfig) -> None:
    found, expected = set(file.keys()), list(_tensor_names(config))
    missing = [name for name in expected if name not in found]
    left = sorted(found - set(expected) - set(_COPIES) - set(_BUFFERS))
    for names, state in ((missing, "missing"), (left, "left over")):
        if names:
            more = f" and {len(names) - 1} more are" if len(names) > 1 else " is"
            raise ValueError(f"{path}: tensor {names[0]}{more} {state}; expected those of BertForPreTraining")
    for copy, original in _COPIES.items():
        if copy in found and not np.array_equal(file.get_tensor(copy), file.get_tensor(original)):
            raise ValueError(f"{path}: tensor {copy} differs from {original}, and this model ties the two")
