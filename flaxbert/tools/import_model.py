"""`flaxbert import`: a checkpoint of Google's or a Hugging Face directory → a directory of ours."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from data_pipeline.tokenizer import Tokenizer
from flaxbert.interop import google, huggingface
from flaxbert.interop.architectures import PRETRAINING, Checkpoint, describe, parameter_count
from flaxbert.interop.conversion_card import conversion_card
from flaxbert.interop.huggingface_config import CONFIG
from flaxbert.interop.huggingface_tokenizer import is_own
from flaxbert.interop.initialization import completed
from flaxbert.tools.load import is_run
from flaxbert.tools.written import check_written

# Without an output layer of their own: they become pretraining models.
_OPEN = ("BertModel", "BertForMaskedLM", "BertForNextSentencePrediction")


def import_model(
    source: str, output: str, open_variables: Callable[[str], google.Variables], *,
    activation: Literal["gelu", "gelu_new"] | None = None, lowercase: bool | None = None,
    allow_unused: bool = False, seed: int = 0,
) -> None:  # fmt: skip
    """Writes the model of `source` into the directory `output`, heads that it lacks initialised from `seed`.

    `activation` and `lowercase` override what the source says, or fails to say. `open_variables` opens a TensorFlow
    checkpoint by its name without endings.
    """
    folder = Path(source)
    huggingface.check_output(output)
    if google.is_google(folder):
        found = google.read(folder, open_variables, allow_unused)
        tokenizer: Tokenizer | Path = google.read_tokenizer(folder, found.config.vocab_size, lowercase)
    else:
        _check_huggingface(folder, lowercase)
        found, tokenizer = huggingface.read(folder, allow_unused), folder
    if activation is not None:
        found = found._replace(config=dataclasses.replace(found.config, activation=activation))
    whole, added = completed(found, PRETRAINING if found.architecture in _OPEN else found.architecture, seed)
    card = conversion_card(Path(output).name, folder.resolve().name, whole, added)
    huggingface.export(whole, tokenizer, output, card, check=check_written(whole, np.float32, None, []))
    _report(whole, added, found.unused, output)


def _check_huggingface(folder: Path, lowercase: bool | None) -> None:
    if is_run(folder):
        raise ValueError(f"{folder} is a run's directory: flaxbert export writes its model")
    if not (folder / CONFIG).is_file():
        raise ValueError(
            f"{folder} is no model to import: expected a folder with {google.CONFIG} and a TensorFlow checkpoint, or "
            f"a Hugging Face folder with {CONFIG}"
        )
    if lowercase is not None:
        raise ValueError(f"lowercase {lowercase} is given, and {folder} says itself whether its tokenizer is cased")


def _report(model: Checkpoint, added: tuple[str, ...], unused: tuple[str, ...], output: str) -> None:
    config = model.config
    print(f"{model.architecture}, {config.num_layers} layers, hidden size {config.hidden_size}, vocabulary "
          f"{config.vocab_size:,}, {parameter_count(model):,} parameters written to {output}")  # fmt: skip
    if added:
        print(f"not in the source, and therefore newly initialised: {describe(added)}")
    if unused:
        print(f"in the source, and left out: {', '.join(unused)}")
    if not is_own(output):
        print("its tokenizer is kept as it is: this model encodes and is fine-tuned, but `prepare` cannot use it")
