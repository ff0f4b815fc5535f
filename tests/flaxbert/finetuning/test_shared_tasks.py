"""The real data of four tasks: all of it is read, encoded by both kinds of tokenizer, and answered to the character."""

import dataclasses

import numpy as np
import pytest

from data_pipeline.tokenizer import load
from data_pipeline.tokenizer_training import train
from flaxbert.finetuning.batching import batches
from flaxbert.finetuning.encoding import encode
from flaxbert.finetuning.examples import read_examples
from flaxbert.finetuning.files import find_files
from flaxbert.finetuning.metrics import references, score
from flaxbert.finetuning.predictions import place_logits, predictions
from flaxbert.finetuning.tasks import TASKS

FOLDERS = {
    "sst2": ("sst2", {"train": 6920, "dev": 872, "test": 1821}),
    "qnli": ("qnli-small", {"train": 4463, "dev": 1000}),
    "ner": ("wnut17", {"train": 3394, "dev": 1009, "test": 1287}),
    "squad": ("qa-newwiki", {"train": 6742, "dev": 1196}),
}


@pytest.fixture(scope="module", params=["sentencepiece", "wordpiece"])
def real_tokenizer(request, shared_data):
    if request.param == "wordpiece":
        return load(shared_data / "vocab" / "bert-base-uncased-vocab.txt").to_rust()
    text = (shared_data / "tasks" / "qnli-small" / "train.tsv").read_text(encoding="utf-8").splitlines()
    return train("sentencepiece", text, 2000, lowercase=True).to_rust()


@pytest.mark.parametrize("name", FOLDERS)
def test_every_example_of_the_shared_data_is_read(name, shared_data):
    folder, counts = FOLDERS[name]
    paths = find_files(shared_data / "tasks" / folder, TASKS[name])
    assert set(paths) == set(counts)
    labels = read_examples(paths["train"], TASKS[name]).labels
    for split, count in counts.items():
        found = read_examples(paths[split], TASKS[name], labels=labels or None)
        assert len(found.items) == count and found.remarks == [] and found.labels == labels
    assert len(labels) == {"sst2": 2, "qnli": 2, "ner": 13, "squad": 0}[name]


@pytest.mark.parametrize("name", FOLDERS)
def test_logits_that_say_the_labels_score_as_well_as_can_be(name, shared_data, real_tokenizer):
    folder, counts = FOLDERS[name]
    task = dataclasses.replace(TASKS[name], max_answer_length=384)
    dev = read_examples(shared_data / "tasks" / folder / ("dev" + FORMS[task.kind]), task)
    features = encode(dev, task, real_tokenizer)
    logits: list = [None] * len(features)
    for batch in batches(features, 32, shuffle=False):
        place_logits(logits, features, batch, logits_of(batch, task, len(dev.labels)))
    scores = score(task, predictions(dev, features, logits, task), references(dev))
    # Some answers end within a token, and some go on from one window into the next.
    assert min(scores[metric] for metric in task.metrics) == pytest.approx(1, abs=0.02 if name == "squad" else 0)


FORMS = {"classification": ".tsv", "tagging": ".conll", "qa": ".json"}


def logits_of(batch, task, outputs):
    """Logits as a model gives them, highest at the labels."""
    rows, length = batch["input_ids"].shape
    if task.kind == "qa":
        return np.stack([np.eye(length)[batch["labels"][:, side]] for side in (0, 1)], axis=-1)
    found = np.eye(outputs)[batch["labels"]]
    return found if task.kind == "tagging" else found[:, None]
