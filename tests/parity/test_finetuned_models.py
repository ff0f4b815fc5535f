"""A fine-tuned model computes in transformers' class for its task what it computes here."""

import json

import numpy as np
import pytest
from toy_tasks import KINDS, write_data, write_model

from flaxbert import cli
from flaxbert.finetuning.batching import make_batch
from flaxbert.finetuning.encoding import encode
from flaxbert.finetuning.examples import read_examples
from flaxbert.finetuning.predict import functions_of
from flaxbert.finetuning.saved import read_model

torch = pytest.importorskip("torch", reason="parity needs torch: install the extra `parity`")
transformers = pytest.importorskip("transformers", reason="parity needs transformers: install the extra `parity`")

# Task → transformers' class for it.
CLASSES = {
    "classification": "AutoModelForSequenceClassification", "pair": "AutoModelForSequenceClassification",
    "regression": "AutoModelForSequenceClassification", "ner": "AutoModelForTokenClassification",
    "multiple_choice": "AutoModelForMultipleChoice", "qa": "AutoModelForQuestionAnswering",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("pretrained"))


@pytest.fixture(scope="module", params=CLASSES)
def tuned(request, model, tmp_path_factory):
    """(the kind of a task, the folder of a model after two passes over it, its data)."""
    folder = tmp_path_factory.mktemp(request.param)
    data = write_data(folder / "data", KINDS[request.param][0], train=32, dev=12)
    flags = ("--epochs", "2", "--batch-sizes", "16", "--max-length", "16", "--learning-rates", "2e-3")
    start = ("--init", str(model), "--data", str(data), "--workdir", str(folder / "run"))
    assert cli.main(["finetune", request.param, *start, *flags]) == cli.DONE
    return request.param, folder / "run" / "best", data / "dev.jsonl"


def by_transformers(kind, folder, batch):
    """The logits of its class for our rows, in the form of ours: [R, 1, N], or [R, S, N] of every token."""
    peer, report = getattr(transformers, CLASSES[kind]).from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager"
    )
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    inputs = {
        "input_ids": batch["input_ids"], "token_type_ids": batch["segment_ids"],
        "attention_mask": (batch["sequence_ids"] > 0).astype(np.int64),
    }  # fmt: skip
    inputs = {name: torch.from_numpy(np.asarray(values, np.int64)) for name, values in inputs.items()}
    if kind == "multiple_choice":  # one example of two choices is two rows here
        inputs = {name: values.reshape(-1, 2, values.shape[-1]) for name, values in inputs.items()}
    with torch.no_grad():
        found = peer.eval()(**inputs)
    if kind == "qa":
        return np.stack([found.start_logits, found.end_logits], axis=-1)
    logits = found.logits.numpy()
    return logits if kind == "ner" else logits.reshape(len(batch["input_ids"]), 1, -1)


def test_logits_equal_those_of_the_class_for_the_task(tuned, assert_parity):
    kind, folder, data = tuned
    loaded, facts = read_model(folder)
    examples = read_examples(str(data), facts.task, facts.labels)
    features = encode(examples, facts.task, loaded.tokenizer, facts.max_length)
    batch = make_batch(features, np.arange(len(features)), len(features), facts.max_length)
    ours = np.asarray(functions_of(loaded, facts).predict(loaded.params, batch))
    theirs = by_transformers(kind, folder, batch)
    assert ours.shape == theirs.shape
    real = batch["sequence_ids"][:, :ours.shape[1]] > 0
    worst = float(np.abs(ours - theirs)[real].max())
    assert_parity("logits of a fine-tuned model", f"transformers {CLASSES[kind]}", worst, 1e-5)


def test_labels_have_their_names_in_transformers_too(tuned):
    kind, folder, _ = tuned
    config = transformers.AutoConfig.from_pretrained(folder)
    labels = tuple(json.loads((folder / "task.json").read_text())["labels"])
    if kind in ("classification", "pair", "ner"):
        assert tuple(config.id2label[index] for index in range(len(labels))) == labels
