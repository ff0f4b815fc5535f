"""Hugging Face directories: a model with its settings, tokenizer and card, written whole and read back."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from data_pipeline.tokenizer import Tokenizer
from flaxbert.interop.architectures import Checkpoint
from flaxbert.interop.huggingface_config import CONFIG, read_config, to_config, to_json
from flaxbert.interop.huggingface_tensors import from_tensors, to_tensors
from flaxbert.interop.huggingface_tokenizer import read_tokenizer, write_tokenizer
from flaxbert.interop.safetensors_files import WEIGHTS, open_tensors, write_tensors

CARD = "README.md"

_Path = str | os.PathLike[str]


def export(
    checkpoint: Checkpoint, tokenizer: _Path | Tokenizer, output: _Path, card: str, dtype: Any = np.float32,
    check: Callable[[Path], None] = lambda folder: None,
) -> None:  # fmt: skip
    """Writes the directory `output`, which transformers loads: it appears whole and checked, or not at all.

    `tokenizer` is one of ours, or the directory of one; `card` is the text of README.md; `check` sees the directory
    before it appears and raises where it finds fault. Raises ValueError where `output` exists, where the tokenizer does
    not fit the model, or where the disk refuses.
    """
    folder, config = Path(output), checkpoint.config
    check_output(folder)
    own = tokenizer if isinstance(tokenizer, Tokenizer) else None
    source = "" if isinstance(tokenizer, Tokenizer) else tokenizer
    if own is None:
        read_tokenizer(source, config)
    tensors = to_tensors(checkpoint.params, config, checkpoint.architecture, dtype)
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_tokenizer(source, partial, config, own)
        (partial / CONFIG).write_text(to_json(to_config(checkpoint)), encoding="utf-8")
        (partial / CARD).write_text(card, encoding="utf-8")
        write_tensors(partial / WEIGHTS, tensors)
        # safetensors leaves its file readable by the owner alone.
        shutil.copymode(partial / CONFIG, partial / WEIGHTS)
        _make_durable(partial)
        check(partial)
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


def read(folder: _Path, allow_unused: bool = False) -> Checkpoint:
    """The model of a directory: the parts of its architecture that are there.

    Raises ValueError for settings that this encoder cannot express, for weights that are damaged or in another form,
    and for tensors that are missing, of another shape or, unless `allow_unused`, left over.
    """
    found = read_config(folder)
    with open_tensors(Path(folder)) as tensors:
        outputs = max(len(found.labels), 1)
        params, unused = from_tensors(tensors, found.config, found.architecture, outputs, allow_unused)
    return found._replace(params=params, unused=unused)
