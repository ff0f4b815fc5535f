"""A model small enough to train in a test, batches that are a pure function of a position, and kept compilations."""

import contextlib
import dataclasses
import functools

import jax
import numpy as np
import pytest

from data_pipeline.config import DataConfig
from flaxbert.config import Experiment, MeshConfig, ModelConfig, OptimizerConfig, TrainConfig
from flaxbert.model import encoder
from flaxbert.training.loop import Outcome, train
from flaxbert.training.part import Streams
from flaxbert.training.step import build_functions

EXPERIMENT = Experiment(
    model=ModelConfig(vocab_size=90, hidden_size=16, num_layers=2, num_heads=2, feed_forward_size=24, max_length=16),
    data=DataConfig(sequence_length=16),
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
    mesh=MeshConfig(data=2, tensor=2),
    train=TrainConfig(steps=12, batch_size=8, log_every=4, eval_every=6, eval_batches=2, checkpoint_every=3),
)


def synthetic_batch(seed, rows=8, length=16, predictions=3, vocab_size=90):
    """Random tokens with padded ends, unused prediction slots and labels of both kinds."""
    generator = np.random.default_rng(seed)
    ends = generator.integers(length // 2, length + 1, (rows, 1))
    ids = generator.integers(5, vocab_size, (rows, length), np.int32)
    places = np.arange(length, dtype=np.int32)[None].repeat(rows, 0)
    return {
        "input_ids": np.where(places < ends, ids, 0).astype(np.int32),
        "segment_ids": ((places >= ends // 2) & (places < ends)).astype(np.int32),
        "sequence_ids": (places < ends).astype(np.int32),
        "position_ids": places,
        "masked_positions": generator.integers(1, length // 2, (rows, predictions), np.int32),
        "masked_ids": generator.integers(5, vocab_size, (rows, predictions), np.int32),
        "masked_weights": (generator.random((rows, predictions)) < 0.8).astype(np.float32),
        "cls_positions": np.zeros((rows, 1), np.int32),
        "next_sentence_labels": generator.integers(0, 2, (rows, 1), np.int32),
        "next_sentence_weights": np.ones((rows, 1), np.float32),
    }


def synthetic_streams(before=lambda number: None):
    """Streams whose position is the number of the next batch. `before` is called with each number that is drawn."""

    def train(phase, position):
        number = (position or {"batch": 0})["batch"]
        while True:
            before(number)
            yield synthetic_batch(number), {"batch": number + 1}
            number += 1

    return Streams(train, lambda phase: (synthetic_batch(1_000_000 + number) for number in range(3)))


build_once = functools.cache(build_functions)


@pytest.fixture(scope="session")
def functions_on(experiment):
    """The compiled functions of the experiment on a mesh."""

    def build(mesh):
        with jax.set_mesh(mesh):
            return build_once(experiment, mesh)

    return build


@pytest.fixture(scope="session")
def experiment():
    return EXPERIMENT


@pytest.fixture(scope="session")
def with_train():
    """The experiment with other settings of its section `train`."""
    return lambda **changes: dataclasses.replace(EXPERIMENT, train=dataclasses.replace(EXPERIMENT.train, **changes))


@pytest.fixture(scope="session")
def batch_of():
    return synthetic_batch


@pytest.fixture(scope="session")
def streams_of():
    return synthetic_streams


@contextlib.contextmanager
def quickly_compiled(folder):
    """Runs that are begun again and again compile the same program: once is enough. A loop over the layers compiles
    in half the time of layers that are written out.
    """
    settings = {
        "jax_compilation_cache_dir": folder, "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }  # fmt: skip
    before = {name: getattr(jax.config, name) for name in settings}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flaxbert.training.loop.build_functions", build_once)
        patch.setitem(encoder.UNROLLED_LAYERS, "cpu", 1)
        for name, value in settings.items():
            jax.config.update(name, value)
        yield
        for name, value in before.items():
            jax.config.update(name, value)


@pytest.fixture(scope="session")
def compilations(tmp_path_factory):
    return str(tmp_path_factory.mktemp("compilations"))


@pytest.fixture(scope="module", autouse=True)
def quick_compilations(compilations):
    """For the tests of this folder, and no others that the same process may run."""
    with quickly_compiled(compilations):
        yield


@pytest.fixture(scope="session")
def uninterrupted(compilations, tmp_path_factory):
    """The run that all others are held against: 12 steps, lines every 4, evaluations every 6, checkpoints every 3."""
    workdir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    with quickly_compiled(compilations):
        assert train(EXPERIMENT, str(workdir), synthetic_streams()) == Outcome(12, False)
    return workdir
