"""What the command line joins: the corpus's stream and the loop, phase by phase."""

import dataclasses
import itertools
import random

import numpy as np
import pytest

from data_pipeline.config import DataConfig, PrepareConfig
from data_pipeline.prepare import prepare
from data_pipeline.store import open_corpus
from data_pipeline.stream import batches
from data_pipeline.windows import Position
from flaxbert.config import Experiment, MeshConfig, ModelConfig, OptimizerConfig, TrainConfig
from flaxbert.joins import streams as join
from flaxbert.phases import Phase


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder, chance = tmp_path_factory.mktemp("corpus"), random.Random(0)
    words = [a + b for a in "bdfgklmnprst" for b in ("a", "en", "il", "or", "u")]
    sentences = (" ".join(chance.choices(words, k=9)).capitalize() + "." for _ in range(600))
    lines = ("" if number % 6 == 5 else sentence for number, sentence in enumerate(sentences))
    (folder / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    settings = PrepareConfig(tokenizer="wordpiece", vocab_size=100, validation_fraction=0.2)
    prepare(settings, [str(folder / "text.txt")], str(folder / "corpus"), workers=1)
    return open_corpus(folder / "corpus")


@pytest.fixture(scope="module")
def experiment(corpus):
    """The second phase cuts the batch alone, the third one the sequences too."""
    return Experiment(
        model=ModelConfig(vocab_size=corpus.vocab_size, max_length=32), data=DataConfig(sequence_length=32),
        optimizer=OptimizerConfig(warmup_steps=1), mesh=MeshConfig(data=4),
        train=TrainConfig(steps=9, batch_size=8, seed=3),
        phases=(Phase(steps=3), Phase(steps=3, batch_size=4), Phase(sequence_length=16, batch_size=4)),
    )  # fmt: skip


def drawn(stream, count):
    found = list(itertools.islice(stream, count))
    return [{name: array.copy() for name, array in batch.items()} for batch, _ in found], found[-1][1]


def expected(corpus, experiment, size, position, **data):
    config = dataclasses.replace(experiment.data, **data)
    return (pair[0] for pair in batches(corpus, config, batch_size=size, seed=3, position=position))


def assert_equal(found, wanted):
    for one, other in zip(found, wanted):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_a_phase_goes_on_in_the_stream_where_its_sequences_are_drawn_alike(corpus, experiment):
    streams = join(corpus, experiment)
    _, after = drawn(streams.train(0, None), 3)
    assert after == {"phase": 0, "epoch": 0, "window": 0, "row": 24}
    found, after = drawn(streams.train(1, after), 3)
    assert_equal(found, expected(corpus, experiment, 4, Position(0, 0, 24)))
    assert after == {"phase": 1, "epoch": 0, "window": 0, "row": 36}


def test_a_phase_of_another_length_begins_an_epoch_of_its_own(corpus, experiment):
    """The next one, whose order of documents no phase before has seen; and a resumed run finds the place again."""
    streams = join(corpus, experiment)
    begun = {"phase": 1, "epoch": 2, "window": 0, "row": 36}
    found, after = drawn(streams.train(2, begun), 2)
    assert_equal(found, expected(corpus, experiment, 4, Position(3), sequence_length=16))
    assert found[0]["input_ids"].shape == (4, 16)
    assert after == {"phase": 2, "epoch": 3, "window": 0, "row": 8}
    again, _ = drawn(streams.train(2, after), 1)
    assert_equal(again, expected(corpus, experiment, 4, Position(3, 0, 8), sequence_length=16))


def test_each_phase_is_evaluated_on_sequences_of_its_own_length(corpus, experiment):
    streams = join(corpus, experiment)
    assert [next(streams.validation(phase))["input_ids"].shape for phase in range(3)] == [(8, 32), (4, 32), (4, 16)]
