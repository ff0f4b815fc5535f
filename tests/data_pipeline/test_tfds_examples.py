"""TFDS: every example of a data set built on the spot, once and in order; what is missing named in one sentence."""

import json
import shutil

import pytest

from data_pipeline import sample
from data_pipeline.config import PrepareConfig
from data_pipeline.corpus import read_documents
from data_pipeline.prepare import prepare
from data_pipeline.sources import find_sources, plan_shards
from data_pipeline.tokenizer_training import train

TEXTS = [f"document {index}\nin two lines" for index in range(300)]


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    """A data set of two configurations, its split `train` in three files."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")
    features = tfds.features.FeaturesDict({
        "text": tfds.features.Text(),
        "label": tfds.features.ClassLabel(num_classes=2),
        "page": tfds.features.FeaturesDict({"body": tfds.features.Text()}),
        "raw": tfds.features.Tensor(shape=(2,), dtype=tf.string),
    })

    def data(texts):
        count = len(texts)
        bodies = {"body": [f"body of {text}" for text in texts]}
        columns = {"text": texts, "label": [0] * count, "page": bodies, "raw": [["a", "b"]] * count}
        return tf.data.Dataset.from_tensor_slices(columns)

    for config, texts in (("plain", TEXTS), ("bad", [b"good", b"b\xffd"])):
        tfds.dataset_builders.store_as_tfds_dataset(
            name="toy", version="1.0.0", config=config, features=features, data_dir=folder,
            split_datasets={"train": data(texts), "test": data(["held out", " ", "", "\n"])},
            download_config=tfds.download.DownloadConfig(num_shards=3 if config == "plain" else 1),
        )  # fmt: skip
    return folder


@pytest.fixture(autouse=True)
def data_directory(data_folder, monkeypatch):
    """As TFDS_DATA_DIR in the environment would set it before the import."""
    from tensorflow_datasets.core import constants

    monkeypatch.setattr(constants, "DATA_DIR", str(data_folder))


def texts(name, shard_megabytes=16.0, field="text", errors="strict"):
    shards = plan_shards(find_sources([name], field), shard_megabytes)
    return [document.text for shard in shards for part in shard for document in read_documents(part, field, errors)]


def refuses(message, *arguments, **options):
    with pytest.raises(ValueError, match=message) as caught:
        texts(*arguments, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shard_megabytes", [16.0, 0.01])
def test_every_example_is_read_once_and_in_order(shard_megabytes):
    found = texts("tfds:toy/plain@train", shard_megabytes)
    assert sorted(found) == sorted(TEXTS)
    assert found == texts("tfds:toy/plain:1.0.0@train#text")


def test_a_range_may_begin_and_end_inside_a_file():
    assert len(plan_shards(find_sources(["tfds:toy/plain@train"]), 0.01)) > 3


def test_other_splits_and_features_are_read_and_blank_examples_passed_over():
    assert texts("tfds:toy/plain@test") == ["held out"]
    assert texts("tfds:toy/plain@test#page.body") == texts("tfds:toy/plain@test", field="page.body")
    assert texts("tfds:toy/plain@test#page.body")[0].startswith("body of")


@pytest.mark.parametrize("name, message", [
    ("tfds:toy/plain", r"is no TFDS split: expected tfds:NAME\[/CONFIG\]\[:VERSION\]@SPLIT\[#FIELD\]"),
    ("tfds:toy/plain@dev", "no split 'dev'; found test, train|no split 'dev'; found train, test"),
    ("tfds:toy/plain@train#body", "no feature 'body'; found 'label', 'page', 'raw', 'text'"),
    ("tfds:toy/plain@train#label", "feature 'label' is ClassLabel, expected text"),
    ("tfds:toy/plain@train#page", "feature 'page' is FeaturesDict, expected text"),
    ("tfds:toy/plain@train#raw", "feature 'raw' is Tensor, expected text"),
    ("tfds:mars_rocks@train", "no data set 'mars_rocks' is prepared in .*: prepare it with `tfds build mars_rocks`"),
    ("tfds:toy/none@train", "no data set 'toy/none' is prepared"),
    ("tfds:toy/plain:9.9.9@train", "no data set 'toy/plain:9.9.9' is prepared"),
    ("tfds:toy/bad@train", "tfds:toy/bad:1.0.0@train#text, example 2 is not UTF-8 at byte 1: found 0xff"),
])  # fmt: skip
def test_what_cannot_be_read_is_named(name, message):
    refuses(message, name)


def test_reading_says_nothing_of_the_library_s_own_affairs(caplog, monkeypatch):
    monkeypatch.setattr("absl.logging._log_counter_per_token", {})  # what was said before would not be said again
    caplog.clear()
    assert texts("tfds:toy/plain@test")
    assert not caplog.records


def test_invalid_text_is_replaced_on_request():
    assert texts("tfds:toy/bad@train", errors="replace") == ["good", "b\ufffdd"]


def test_a_damaged_short_or_missing_file_is_named(data_folder, tmp_path, monkeypatch):
    from tensorflow_datasets.core import constants

    shutil.copytree(data_folder, tmp_path / "copy")
    monkeypatch.setattr(constants, "DATA_DIR", str(tmp_path / "copy"))
    (file,) = (tmp_path / "copy").glob("toy/bad/1.0.0/toy-test*")
    whole = file.read_bytes()
    first_record = 8 + 4 + int.from_bytes(whole[:8], "little") + 4
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    for content, message in (
        (bytes(damaged), "test#text cannot be read, or is damaged: corrupted record at [0-9]+$"),
        (whole[:-7], "test#text cannot be read, or is damaged: truncated record at [0-9]+"),
        (whole[:first_record], "test#text cannot be read, or is damaged: .* 4 elements but contained only 1"),
    ):
        file.write_bytes(content)
        refuses(f"^tfds:toy/bad:1.0.0@{message}", "tfds:toy/bad@test")
    file.unlink()
    refuses("^tfds:toy/bad:1.0.0@test#text cannot be read", "tfds:toy/bad@test")


def test_a_split_that_records_no_size_is_cut_by_the_size_of_its_files(data_folder, tmp_path, monkeypatch):
    from tensorflow_datasets.core import constants

    shutil.copytree(data_folder / "toy" / "plain", tmp_path / "toy" / "plain")
    monkeypatch.setattr(constants, "DATA_DIR", str(tmp_path))
    info = tmp_path / "toy" / "plain" / "1.0.0" / "dataset_info.json"
    facts = json.loads(info.read_text())
    for split in facts["splits"]:
        del split["numBytes"]
    info.write_text(json.dumps(facts))
    (source,) = find_sources(["tfds:toy/plain@train"])
    assert source.size == sum(file.stat().st_size for file in info.parent.glob("toy-train*")) > 0
    assert len(plan_shards([source], 0.01)) > 3
    assert sorted(texts("tfds:toy/plain@train", 0.01)) == sorted(TEXTS)
    for file in info.parent.glob("toy-train*"):
        file.unlink()
    refuses("^tfds:toy/plain@train cannot be read: .*toy-train", "tfds:toy/plain@train")


def test_examples_of_no_size_at_all_are_one_range():
    (source,) = find_sources(["tfds:toy/plain@train"])
    ((part,),) = plan_shards([source._replace(size=0)], 0.01)
    assert (part.start, part.end) == (0, 300)


@pytest.mark.parametrize("shard_megabytes", [0.005, 16.0])
def test_the_sample_is_bounded_spread_and_always_the_same(monkeypatch, shard_megabytes):
    monkeypatch.setattr(sample, "_SLICE_BYTES", 200)
    config = PrepareConfig(validation_fraction=0.0)
    shards = plan_shards(find_sources(["tfds:toy/plain@train"]), shard_megabytes)
    found = list(sample.sample_documents(shards, config, 2_000))
    assert found == list(sample.sample_documents(shards, config, 2_000))
    assert sum(map(len, found)) <= 2_000
    stored = texts("tfds:toy/plain@train")
    places = [stored.index(text) for text in found if text in stored]
    assert max(places) > 200 and min(places) < 50


@pytest.mark.parametrize("workers", [1, 2])
def test_a_corpus_is_prepared_from_tfds_and_the_same_command_again_is_a_no_op(tmp_path, workers):
    train("wordpiece", TEXTS, 80, True).save(tmp_path / "tokenizer")
    config = PrepareConfig(tokenizer=str(tmp_path / "tokenizer"), shard_megabytes=0.01)
    summary = prepare(config, ["tfds:toy/plain@train"], str(tmp_path / "c"), workers, progress=False)
    assert sum(counts["documents"] for counts in summary.manifest["counts"].values()) == 300
    assert summary.manifest["source"]["files"][0]["name"] == "tfds:toy/plain:1.0.0@train#text"
    assert prepare(config, ["tfds:toy/plain@train"], str(tmp_path / "c"), workers, progress=False).finished_before
