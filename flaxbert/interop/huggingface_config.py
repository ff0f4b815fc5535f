"""config.json of a Hugging Face directory: our model settings as transformers' BertConfig, and back."""

import json
import os
from pathlib import Path
from typing import Any

from flaxbert.config import ModelConfig
from flaxbert.interop.architectures import ARCHITECTURES, Checkpoint

CONFIG = "config.json"

# Our field, the field there, its type, and what transformers takes where it is absent (None: it must be there).
FIELDS: tuple[tuple[str, str, type, Any], ...] = (
    ("vocab_size", "vocab_size", int, None),
    ("hidden_size", "hidden_size", int, None),
    ("num_layers", "num_hidden_layers", int, None),
    ("num_heads", "num_attention_heads", int, None),
    ("feed_forward_size", "intermediate_size", int, None),
    ("max_length", "max_position_embeddings", int, None),
    ("segment_types", "type_vocab_size", int, 2),
    ("activation", "hidden_act", str, "gelu"),
    ("dropout", "hidden_dropout_prob", float, 0.1),
    ("attention_dropout", "attention_probs_dropout_prob", float, 0.1),
    ("initializer_range", "initializer_range", float, 0.02),
    ("layer_norm_epsilon", "layer_norm_eps", float, 1e-12),
)

# What this encoder cannot express otherwise, with the value that an absent field stands for.
_FIXED = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}
# What only a use of the model elsewhere reads.
_KEPT = ("problem_type", "classifier_dropout", "pad_token_id")
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_new", "gelu_pytorch_tanh": "gelu_new"}


def to_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The content of config.json."""
    config = checkpoint.config
    values = {theirs: getattr(config, ours) for ours, theirs, _, _ in FIELDS}
    values["intermediate_size"] = config.mlp_size
    names = {"architectures": [checkpoint.architecture], "model_type": "bert"}
    labels: dict[str, Any] = {}
    if checkpoint.labels:
        labels["id2label"] = {str(number): label for number, label in enumerate(checkpoint.labels)}
        labels["label2id"] = {label: number for number, label in enumerate(checkpoint.labels)}
    return names | values | labels | {"pad_token_id": 0, "tie_word_embeddings": True} | checkpoint.kept


def read_config(folder: str | os.PathLike[str]) -> Checkpoint:
    """A directory's config.json: all of a checkpoint but its parameters.

    Raises ValueError naming the field that this encoder cannot express.
    """
    path = Path(folder) / CONFIG
    found = read_json(path)
    if found.get("model_type") != "bert":
        raise ValueError(f"{path}: model_type is {found.get('model_type')!r}, expected 'bert'")
    for name, expected in _FIXED.items():
        if found.get(name, expected) != expected:
            raise ValueError(f"{path}: {name} is {found[name]!r}, and this encoder knows {expected!r} alone")
    architecture = _architecture(path, found)
    kept = {name: found[name] for name in _KEPT if found.get(name) is not None}
    return Checkpoint(read_fields(path, found), {}, architecture, _labels(path, found, architecture), kept)


def read_fields(path: Path, found: dict[str, Any]) -> ModelConfig:
    """The settings that `found`, read from `path`, names as transformers and Google's release both do."""
    values = {ours: _field(path, found, theirs, kind, default) for ours, theirs, kind, default in FIELDS}
    if values["activation"] not in _ACTIVATIONS:
        known = ", ".join(map(repr, _ACTIVATIONS))
        raise ValueError(f"{path}: hidden_act is {values['activation']!r}, expected one of {known}")
    try:
        return ModelConfig(**values | {"activation": _ACTIVATIONS[values["activation"]]})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _architecture(path: Path, found: dict[str, Any]) -> str:
    """The class that wrote the directory; without a word on it, the encoder alone."""
    names = found.get("architectures") or ["BertModel"]
    if not isinstance(names, list) or not isinstance(names[0], str) or names[0] not in ARCHITECTURES:
        raise ValueError(f"{path}: architectures is {names!r}, expected one of {', '.join(ARCHITECTURES)}")
    architecture: str = names[0]
    return architecture


def _labels(path: Path, found: dict[str, Any], architecture: str) -> tuple[str, ...]:
    """The names of the outputs of a fine-tuned head; transformers takes two where none are given. A choice has none."""
    if ARCHITECTURES[architecture].output is None or architecture == "BertForMultipleChoice":
        return ()
    count = _field(path, found, "num_labels", int, 2)
    named = found.get("id2label") or {str(number): f"LABEL_{number}" for number in range(count)}
    try:
        labels = tuple(named[str(number)] for number in range(len(named)))
    except (KeyError, TypeError):
        labels = ()
    if not labels or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"{path}: id2label is {named!r}, expected a name for each of 0, 1, …")
    return labels


def _field(path: Path, found: dict[str, Any], name: str, kind: type, default: Any) -> Any:
    value = found.get(name, default)
    if value is None:
        raise ValueError(f"{path}: {name} is missing")
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise ValueError(f"{path}: {name} is {value!r}, expected {'a number' if kind is float else kind.__name__}")
    return value


def to_json(value: Any) -> str:
    """JSON as these directories write it."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; ValueError where it is missing or damaged."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path.parent} has no {path.name}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}: expected a JSON object")
    return value
