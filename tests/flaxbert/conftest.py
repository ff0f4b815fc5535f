"""Small models with random parameters, and exports of them."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipeline import tokenizer as tokenizers
from data_pipeline import tokenizer_training
from data_pipeline.config import DataConfig
from flaxbert.config import PRESETS, Experiment, OptimizerConfig
from flaxbert.interop import huggingface
from flaxbert.interop.architectures import Checkpoint
from flaxbert.model.pretraining import initialize

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "A function takes arguments and returns a value; a generator yields many values.",
    "Rivers run to the sea, and the sea is never full: this is known.",
    "Lists are mutable, tuples are not (and strings are not either).",
    "Walking, running and jumping are ways of moving; sleeping is a way of staying.",
    "Morning comes, evening comes, and between them the working people are working.",
    "Returning a value ends the function, yielding one pauses it, raising an error leaves it.",
    "The foxes are quicker than the dogs, the dogs are lazier than the foxes.",
]


def random_params(config, seed=0):
    """Parameters of which none is zero or one, so that no two tensors can be mistaken for each other."""
    shapes = jax.eval_shape(lambda key: initialize(config, key), jax.random.key(0))
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: generator.normal(0, 0.2, leaf.shape).astype(np.float32), shapes)


@pytest.fixture(scope="session", params=["sentencepiece", "wordpiece"])
def tokenizer_folder(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / request.param
    tokenizer_training.train(request.param, SENTENCES, 90, lowercase=True).save(folder)
    return folder


@pytest.fixture(scope="session")
def small_config():
    """Every size differs from every other, and the vocabulary is no multiple of 128."""
    small = PRESETS["tiny"]
    return dataclasses.replace(
        small, vocab_size=90, hidden_size=24, num_layers=3, num_heads=4, feed_forward_size=40, max_length=48
    )


@pytest.fixture(scope="session")
def small_params(small_config):
    return random_params(small_config)


@pytest.fixture(scope="session")
def small_export(small_config, small_params, tokenizer_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "model"
    huggingface.export(Checkpoint(small_config, small_params), tokenizer_folder, folder, "the card\n")
    return folder


@pytest.fixture
def run(small_config, small_params, tokenizer_folder, tmp_path, monkeypatch) -> Path:
    """A run's directory with its config and tokenizer; its checkpoints, 70 and any other, are these parameters."""
    from flaxbert.training import checkpoint
    from flaxbert.training import run as runs

    experiment = Experiment(
        model=small_config, data=DataConfig(sequence_length=48), optimizer=OptimizerConfig(warmup_steps=1)
    )
    corpus = {
        "path": "/home/someone/tales", "fingerprint": "c0ffee", "train": {"documents": 3},
        "tokenizer_fingerprint": tokenizers.load(tokenizer_folder).fingerprint,
    }  # fmt: skip
    runs.begin_or_resume(str(tmp_path / "run"), experiment, corpus, str(tokenizer_folder))
    monkeypatch.setattr(checkpoint, "restore_params", lambda workdir, step=None: (small_params, step or 70))
    return tmp_path / "run"
