"""Google's TensorFlow checkpoints of BERT (google-research/bert): bert_config.json, bert_model.ckpt.*, vocab.txt."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer import load as load_tokenizer
from flaxbert.config import ModelConfig
from flaxbert.interop.architectures import Checkpoint
from flaxbert.interop.huggingface_config import read_fields, read_json
from flaxbert.interop.huggingface_tensors import from_tensors
from flaxbert.interop.safetensors_files import Tensor

CONFIG = "bert_config.json"
VOCABULARY = "vocab.txt"

_INDEX = ".index"
_ENDING = re.compile(r"\.(index|meta|data-\d+-of-\d+)$")
# The optimizer's slots and the step: nothing of the model.
_SKIPPED = re.compile(r"(/adam_[mv]|^global_step)$")


# The shape of each variable of a TensorFlow checkpoint, and a function that reads one by its name.
Variables = tuple[Mapping[str, tuple[int, ...]], Callable[[str], np.ndarray]]


def is_google(source: Path) -> bool:
    """Whether `source` is a folder with a bert_config.json, or a checkpoint beside one."""
    return (_folder(source) / CONFIG).is_file()


def _folder(source: Path) -> Path:
    return source if source.is_dir() else source.parent


def read(source: Path, open_variables: Callable[[str], Variables], allow_unused: bool = False) -> Checkpoint:
    """The model of a folder that holds one checkpoint, or of a checkpoint named without its endings.

    Raises ValueError for settings that this encoder cannot express, for a folder without a checkpoint or with several,
    and for variables that are missing, of another shape or, unless `allow_unused`, left over.
    """
    config = read_config(_folder(source) / CONFIG)
    prefix = _prefix(source.with_name(_ENDING.sub("", source.name)))
    shapes, read_variable = open_variables(prefix)
    named = {
        _name(name): _tensor(prefix, name, tuple(shape), read_variable)
        for name, shape in shapes.items() if not _SKIPPED.search(name)
    }  # fmt: skip
    params, unused = from_tensors(named, config, "BertForPreTraining", allow_unused=allow_unused)
    return Checkpoint(config, params, unused=unused)


def read_config(path: Path) -> ModelConfig:
    """The settings of a bert_config.json.

    Its `gelu` is read as the exact form, as the first release computed it and transformers reads it. The reference's
    code computes the tanh form under that name since February 2019: `--activation gelu_new`.
    """
    return read_fields(path, read_json(path))


def _prefix(source: Path) -> str:
    if not source.is_dir():
        if not source.with_name(source.name + _INDEX).is_file():
            raise ValueError(f"{source} is no checkpoint: there is no {source.name}{_INDEX}")
        return str(source)
    found = sorted(path.name.removesuffix(_INDEX) for path in source.glob(f"*{_INDEX}"))
    if len(found) != 1:
        what = f"several checkpoints: name one, as in {source / found[-1]}" if found else "no checkpoint (*.ckpt.index)"
        raise ValueError(f"{source} holds {what}")
    return str(source / found[0])


def _name(variable: str) -> str:
    """`bert/encoder/layer_0/output/dense/kernel` → `bert.encoder.layer.0.output.dense.weight`."""
    name = re.sub(r"/layer_(\d+)/", r"/layer/\1/", variable)
    name = name.replace("/output_bias", "/bias").replace("/output_weights", "/weight").replace("/kernel", "/weight")
    return re.sub(r"(_embeddings)$", r"\1/weight", name).replace("/", ".")


def _tensor(
    prefix: str, variable: str, shape: tuple[int, ...], read_variable: Callable[[str], np.ndarray]
) -> Tensor:
    """A variable in transformers' layout: kernels are transposed, the next-sentence weights [2, D] are not."""
    turned = variable.endswith("/kernel")

    def read() -> np.ndarray:
        value = np.asarray(read_variable(variable), np.float32)
        return value.T if turned else value

    return Tensor(shape[::-1] if turned else shape, read, prefix)


def read_tokenizer(source: Path, vocab_size: int | None, lowercase: bool | None = None) -> Tokenizer:
    """The vocabulary beside a checkpoint, which does not say whether it is cased: None infers it, as `load` does.

    Raises ValueError where it is not of `vocab_size`.
    """
    path = _folder(source) / VOCABULARY
    tokenizer = load_tokenizer(path, lowercase)
    if tokenizer.vocab_size != vocab_size:
        raise ValueError(f"{path} holds {tokenizer.vocab_size} pieces, and {CONFIG} makes vocab_size {vocab_size}")
    return tokenizer
