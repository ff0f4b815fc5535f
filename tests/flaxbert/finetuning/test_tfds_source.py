"""TFDS: data sets built on the spot in the form of the published ones, and what is missing in one sentence."""

import socket
import urllib.request

import pytest

from flaxbert.finetuning import tfds_source
from flaxbert.finetuning.examples import read_examples
from flaxbert.finetuning.files import find_files
from flaxbert.finetuning.tasks import TASKS


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    """One data set for each kind of task, with the features that TFDS gives glue, conll2003 and squad."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    folder, f = tmp_path_factory.mktemp("tfds"), tfds.features
    answers = {"text": tf.string, "answer_start": tf.int32}
    sets = {
        "toy_glue": (
            {"sentence": f.Text(), "label": f.ClassLabel(names=["negative", "positive"]), "idx": tf.int32},
            {"sentence": ["bad", "good"], "label": [0, 1], "idx": [0, 1]},
            {"sentence": ["hidden"], "label": [-1], "idx": [0]},
        ),
        "toy_mnli": (
            {"premise": f.Text(), "hypothesis": f.Text(),
             "label": f.ClassLabel(names=["entailment", "neutral", "contradiction"])},
            {"premise": ["p"], "hypothesis": ["h"], "label": [2]}, None,
        ),
        "toy_stsb": (
            {"sentence1": f.Text(), "sentence2": f.Text(), "label": tf.float32},
            {"sentence1": ["a"], "sentence2": ["b"], "label": [2.5]}, None,
        ),
        "toy_conll": (
            {"tokens": f.Sequence(f.Text()), "ner": f.Sequence(f.ClassLabel(names=["O", "B-PER", "I-PER"]))},
            {"tokens": [["Peter", "is"]], "ner": [[2, 0]]}, None,
        ),
        "toy_squad": (
            {"id": tf.string, "context": f.Text(), "question": f.Text(), "answers": f.Sequence(answers),
             "is_impossible": tf.bool},
            {"id": ["x", "y"], "context": ["A fox.", "A fox."], "question": ["Who?", "Where?"],
             "answers": {"text": [["fox"], ["fox"]], "answer_start": [[2], [2]]}, "is_impossible": [False, True]}, None,
        ),
    }  # fmt: skip
    for name, (features, train, test) in sets.items():
        splits = {"train": train, "validation": train} | ({"test": test} if test else {})
        tfds.dataset_builders.store_as_tfds_dataset(
            name=name, version="1.0.0", features=f.FeaturesDict(features), data_dir=folder,
            split_datasets={split: tf.data.Dataset.from_tensor_slices(rows) for split, rows in splits.items()},
        )  # fmt: skip
    return folder


@pytest.fixture(autouse=True)
def data_directory(data_folder, monkeypatch):
    """As TFDS_DATA_DIR in the environment would set it before the import."""
    from tensorflow_datasets.core import constants

    monkeypatch.setattr(constants, "DATA_DIR", str(data_folder))
    tfds_source._builder.cache_clear()


@pytest.mark.parametrize("task, name, expected", [
    ("sst2", "toy_glue", [("bad", None, "0"), ("good", None, "1")]),
    ("classification", "toy_glue", [("bad", None, "negative"), ("good", None, "positive")]),
    ("mnli", "toy_mnli", [("p", "h", "contradiction")]),
    ("stsb", "toy_stsb", [("a", "b", 2.5)]),
    ("ner", "toy_conll", [(("Peter", "is"), ("B-PER", "O"))]),
    ("squad2", "toy_squad", [("Who?", "A fox.", (("fox", 2),)), ("Where?", "A fox.", ())]),
])  # fmt: skip
def test_the_splits_of_a_prepared_data_set_are_read_as_the_task_s_own_files(task, name, expected):
    paths = find_files(f"tfds:{name}", TASKS[task])
    assert paths["train"] == f"tfds:{name}@train" and paths["dev"] == f"tfds:{name}@validation"
    found = read_examples(paths["dev"], TASKS[task], labels=read_examples(paths["train"], TASKS[task]).labels or None)
    assert [tuple(item[1:]) for item in found.items] == expected
    bare = read_examples(paths["dev"], TASKS[task], labelled=False)
    assert [item[1] for item in bare.items] == [item[0] for item in expected]


def test_what_is_not_there_is_named(refuses):
    refuses("tfds:toy_glue@dev: no split 'dev'; found test, train, validation", read_examples, "tfds:toy_glue@dev",
            TASKS["sst2"])  # fmt: skip
    refuses("no column for the text: expected 'question'; those there are", read_examples, "tfds:toy_glue@train",
            TASKS["qnli"])  # fmt: skip
    refuses("tfds:toy_glue@test, example 1 has no label", read_examples, "tfds:toy_glue@test", TASKS["sst2"])
    refuses("task swag is read from files", read_examples, "tfds:toy_glue@train", TASKS["swag"])
    refuses("tfds:mars_rocks is no data set that TFDS knows", find_files, "tfds:mars_rocks", TASKS["sst2"])


def test_a_damaged_file_is_refused(data_folder, refuses):
    (file,) = (data_folder / "toy_stsb" / "1.0.0").glob("*train.tfrecord*")
    content = file.read_bytes()
    file.write_bytes(content[:-3])
    try:
        refuses("tfds:toy_stsb@train cannot be read, or is damaged", read_examples, "tfds:toy_stsb@train",
                TASKS["stsb"])  # fmt: skip
    finally:
        file.write_bytes(content)


def test_without_a_network_a_data_set_that_is_not_prepared_is_refused_at_once(monkeypatch, refuses):
    def unreachable(*arguments, **options):
        raise socket.gaierror("Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    refuses("tfds:glue/sst2 is not prepared on this machine, and there is no network", find_files, "tfds:glue/sst2",
            TASKS["sst2"])  # fmt: skip
