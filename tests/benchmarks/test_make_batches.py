"""The file of batches: what the stream gives, whole and small."""

import itertools

import numpy as np
import pytest

from benchmarks import make_batches
from benchmarks.train_step import batch_file
from data_pipeline import DataConfig, batches
from data_pipeline.config import PrepareConfig
from data_pipeline.prepare import prepare
from data_pipeline.store import open_corpus

SEED, TOKENS = 3, 1024


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    words = ["river", "stone", "cloud", "walking", "returns", "value", "morning", "sea", "quick", "fox", "list"]
    generator = np.random.default_rng(0)
    lines = [" ".join(generator.choice(words, generator.integers(3, 12))) + "." for _ in range(400)]
    documents = ["\n".join(lines[n:n + 8]) for n in range(0, len(lines), 8)]
    (folder / "text.txt").write_text("\n\n".join(documents), encoding="utf-8")
    settings = PrepareConfig(vocab_size=36, validation_fraction=0.0)
    prepare(settings, [str(folder / "text.txt")], str(folder / "prepared"), workers=1, progress=False)
    return folder / "prepared"


@pytest.fixture(scope="module")
def written(corpus):
    path = str(corpus.parent / "batches.npz")
    make_batches.main(
        ["--corpus", str(corpus), "--output", path, "--tokens", str(TOKENS), "--seed", str(SEED)]
        + ["--lengths", "32", "64", "--packing", "1", "4"]
    )
    return path


@pytest.mark.parametrize("length, packing", [(32, 1), (32, 4), (64, 1), (64, 4)])
@pytest.mark.parametrize("batch_size", [4, 16])
def test_any_batch_size_finds_the_streams_batches_in_the_file(corpus, written, length, packing, batch_size):
    rows = batch_file.read(written, batch_file.shape_name(length, packing))
    config = DataConfig(sequence_length=length, packing=packing)
    stream = batches(open_corpus(corpus), config, batch_size=batch_size, seed=SEED)
    count = TOKENS // length
    assert len(rows["input_ids"]) == count
    for start, (batch, _) in zip(range(0, count, batch_size), itertools.islice(stream, count // batch_size)):
        assert batch.keys() == rows.keys()
        for name, expected in batch.items():
            found = rows[name][start:start + batch_size]
            assert found.dtype == expected.dtype, name
            np.testing.assert_array_equal(found, expected, err_msg=name)


def test_the_file_says_what_is_in_it(corpus, written):
    metadata = batch_file.read_metadata(written)
    assert (metadata["vocab_size"], metadata["seed"]) == (open_corpus(corpus).vocab_size, SEED)
    assert list(metadata["shapes"]) == ["32", "32x4", "64", "64x4"]
    for name, shape in metadata["shapes"].items():
        used = batch_file.read(written, name)["sequence_ids"] > 0
        assert shape["full_rows"] == used.all(axis=1).sum() and shape["fill"] == pytest.approx(used.mean())
        assert batch_file.shape_name(shape["data"]["sequence_length"], shape["data"]["packing"]) == name


def test_a_token_takes_two_bytes_at_most_before_compression(written):
    with np.load(written) as file:
        widths = {name: file[name].itemsize for name in file.files if "/" in name}
    assert len(widths) == 40 and max(widths.values()) <= 2


def test_a_shape_that_is_not_there_is_named(written):
    with pytest.raises(ValueError, match=r"no rows of shape 128: it has 32, 32x4, 64, 64x4"):
        batch_file.read(written, "128")
