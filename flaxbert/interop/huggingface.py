"""Hugging Face directories: a model with its settings, tokenizer and card, written whole and read back."""

import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from flaxbert.config import ModelConfig
from flaxbert.interop.huggingface_config import CONFIG, read_config, read_json, to_config, to_json
from flaxbert.interop.huggingface_tensors import WEIGHTS, read_params, to_tensors, write_tensors

__all__ = ["CARD", "CONFIG", "TOKENIZER", "WEIGHTS", "export", "read_config", "read_params", "read_tokenizer"]

CARD = "README.md"
TOKENIZER = "tokenizer.json"

_TOKENIZER_CONFIG = "tokenizer_config.json"
_TOKENIZER_EXTRAS = ("special_tokens_map.json", "tokenizer_info.json", "sentencepiece.model", "vocab.txt")

_Path = str | os.PathLike[str]


def export(params: Any, config: ModelConfig, tokenizer_folder: _Path, output: _Path, card: str) -> None:
    """Writes the directory `output`, which transformers loads: it appears whole and read back, or not at all.

    `tokenizer_folder` holds tokenizer.json and its companions; `card` is the text of README.md. Raises ValueError
    where `output` exists, where the tokenizer does not fit the model, or where the disk refuses.
    """
    folder = Path(output)
    check_output(folder)
    read_tokenizer(tokenizer_folder, config)
    tensors = to_tensors(params, config)
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        (partial / CONFIG).write_text(to_json(to_config(config)), encoding="utf-8")
        (partial / CARD).write_text(card, encoding="utf-8")
        _copy_tokenizer(Path(tokenizer_folder), partial, config)
        write_tensors(partial / WEIGHTS, tensors)
        # safetensors leaves its file readable by the owner alone.
        shutil.copymode(partial / CONFIG, partial / WEIGHTS)
        _make_durable(partial)
        os.rename(partial, folder)
        _sync(folder.parent)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"output {folder} cannot be written: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_output(output: _Path) -> None:
    """Raises ValueError where `output` exists: nothing is overwritten."""
    if os.path.lexists(output):
        raise ValueError(f"output {output} exists already: name a new folder")


def _copy_tokenizer(source: Path, target: Path, config: ModelConfig) -> None:
    for name in (TOKENIZER, *_TOKENIZER_EXTRAS):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    settings = read_json(source / _TOKENIZER_CONFIG) | {"model_max_length": config.max_length}
    (target / _TOKENIZER_CONFIG).write_text(to_json(settings), encoding="utf-8")


def _make_durable(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        _sync(path)


def _sync(path: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_tokenizer(folder: _Path, config: ModelConfig) -> Any:
    """The `tokenizers.Tokenizer` of a directory, without padding or truncation; it must fit the vocabulary."""
    from tokenizers import Tokenizer

    path = Path(folder) / TOKENIZER
    if not path.is_file():
        raise ValueError(f"{folder} has no {TOKENIZER}: a tokenizer in another form is not read")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path} cannot be read: {error}") from None
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= (config.vocab_size or 0):
        raise ValueError(f"{path} has ids up to {largest}, and the model's vocab_size is {config.vocab_size}")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
