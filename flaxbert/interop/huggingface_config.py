"""config.json of a Hugging Face directory: our model settings as transformers' BertConfig, and back."""

import json
import os
from pathlib import Path
from typing import Any

from flaxbert.config import ModelConfig

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
_FIXED = {
    "position_embedding_type": "absolute",
    "tie_word_embeddings": True,
    "is_decoder": False,
    "add_cross_attention": False,
}


def to_config(config: ModelConfig) -> dict[str, Any]:
    """The content of config.json."""
    values = {theirs: getattr(config, ours) for ours, theirs, _, _ in FIELDS}
    values["intermediate_size"] = config.mlp_size
    names = {"architectures": ["BertForPreTraining"], "model_type": "bert"}
    return names | values | {"pad_token_id": 0, "tie_word_embeddings": True}


def read_config(folder: str | os.PathLike[str]) -> ModelConfig:
    """The settings in a directory's config.json; ValueError naming the field that this encoder cannot express."""
    path = Path(folder) / CONFIG
    found = read_json(path)
    if found.get("model_type") != "bert":
        raise ValueError(f"{path}: model_type is {found.get('model_type')!r}, expected 'bert'")
    for name, expected in _FIXED.items():
        if found.get(name, expected) != expected:
            raise ValueError(f"{path}: {name} is {found[name]!r}, and this encoder knows {expected!r} alone")
    values = {ours: _field(path, found, theirs, kind, default) for ours, theirs, kind, default in FIELDS}
    if values["activation"] not in ("gelu", "gelu_new"):
        raise ValueError(f"{path}: hidden_act is {values['activation']!r}, expected 'gelu' or 'gelu_new'")
    try:
        return ModelConfig(**values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


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
