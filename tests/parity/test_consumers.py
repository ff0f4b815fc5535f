"""An export in the hands of its consumers, each run for real: fine-tuning, warm starts, sentence vectors, ONNX.

docs/export.md shows the same calls to users; the fill-mask pipeline is in test_huggingface.py.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from data_pipeline import tokenizer_training
from flaxbert.config import PRESETS
from flaxbert.interop import huggingface
from flaxbert.interop.architectures import Checkpoint
from flaxbert.model.pretraining import initialize
from flaxbert.tools.load import Model

torch = pytest.importorskip("torch", reason="parity needs torch: install the extra `parity`")
transformers = pytest.importorskip("transformers", reason="parity needs transformers: install the extra `parity`")

pytestmark = pytest.mark.parity

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "A function takes arguments and returns a value.",
    "Rivers run to the sea, and the sea is never full: this is known.",
    "Lists are mutable, tuples are not.",
    "Morning comes, evening comes.",
    "Returning a value ends the function, yielding one pauses it, raising an error leaves it.",
]
# The last is longer than the model reads: each consumer must cut it where we do.
TEXTS = [*SENTENCES, " ".join(SENTENCES)]
LABELS = [0, 1, 0, 1, 0, 1, 1]
# Float32 in another order of summation, on hidden states of size one: the worst that was seen is a fifth of this.
TOLERANCE = 1e-5
PEERS = ("AutoModelForSequenceClassification", "EncoderDecoderModel", "onnxruntime, by torch.onnx.export")


class Exported(NamedTuple):
    folder: Path
    source: Model
    """What was exported: not read back from the folder, where one mistake made twice would cancel."""


@pytest.fixture(scope="module", params=[("sentencepiece", "gelu"), ("wordpiece", "gelu_new")], ids="-".join)
def exported(request, tmp_path_factory) -> Exported:
    """A tiny model in which no tensor equals another, or what transformers would initialise it with.

    Without dropout, so that a second step on the same examples lowers the loss.
    """
    kind, activation = request.param
    folder = tmp_path_factory.mktemp("export")
    tokenizer_training.train(kind, TEXTS, 60, lowercase=True).save(folder / "tokenizer")
    config = dataclasses.replace(
        PRESETS["tiny"], vocab_size=60, hidden_size=24, num_heads=4, feed_forward_size=40, max_length=72,
        activation=activation, dropout=0.0, attention_dropout=0.0,
    )  # fmt: skip
    generator = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: np.asarray(x + generator.normal(0, 0.2, x.shape), np.float32), initialize(config, jax.random.key(0))
    )
    huggingface.export(Checkpoint(config, params), folder / "tokenizer", folder / "model", "")
    source = Model(config, params, huggingface.read_tokenizer(folder / "tokenizer", config))
    return Exported(folder / "model", source)


@pytest.fixture
def tokenizer(exported):
    return transformers.AutoTokenizer.from_pretrained(exported.folder)


def assert_encodes_as_the_source(exported, tokenizer, encode, assert_parity, peer):
    """`encode` maps a padded batch of transformers' to hidden states [B, S, D]; real tokens are compared."""
    inputs = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        found = np.asarray(encode(inputs))[inputs["attention_mask"].numpy() == 1]
    hidden, mask = exported.source.encode(TEXTS)
    expected = np.asarray(hidden)[mask]  # [real tokens, D]
    assert not mask.all() and expected.std() > 0.5
    assert_parity("hidden states of an export", peer, abs(found - expected).max(), TOLERANCE)


def fine_tune(model, examples, collator, folder):
    """Two steps of Trainer on all the examples: the loss of each, and the names of the weights that stayed.

    Biases of keys are left out: they add the same to all scores of a query, so softmax gives them no gradient.
    """
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    settings = transformers.TrainingArguments(
        str(folder), max_steps=2, per_device_train_batch_size=len(examples), learning_rate=1e-3, logging_steps=1,
        save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = transformers.Trainer(model=model, args=settings, train_dataset=examples, data_collator=collator)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    same = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    return losses, {name for name in same if not name.endswith("key.bias")}


def test_trainer_fine_tunes_a_classifier_of_which_only_the_classifier_is_new(
    exported, tokenizer, tmp_path, assert_parity
):
    pytest.importorskip("accelerate", reason="Trainer needs accelerate: install the extra `parity`")
    model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        exported.folder, num_labels=2, output_loading_info=True
    )
    heads = {name for name in load_file(exported.folder / huggingface.WEIGHTS) if name.startswith("cls.")}
    assert set(report.pop("missing_keys")) == {"classifier.weight", "classifier.bias"}
    assert set(report.pop("unexpected_keys")) == heads
    assert not any(report.values()), report

    def encode(inputs):
        return model.bert.eval()(**inputs).last_hidden_state

    assert_encodes_as_the_source(exported, tokenizer, encode, assert_parity, PEERS[0])

    examples = [{**tokenizer(text, truncation=True), "labels": label} for text, label in zip(TEXTS, LABELS)]
    losses, unchanged = fine_tune(model, examples, transformers.DataCollatorWithPadding(tokenizer), tmp_path)
    assert np.isfinite(losses).all() and losses[1] < losses[0], losses
    assert unchanged == set()


def test_an_encoder_decoder_starts_from_two_exports_and_only_its_cross_attention_is_new(
    exported, tokenizer, tmp_path, assert_parity
):
    pytest.importorskip("accelerate", reason="Trainer needs accelerate: install the extra `parity`")
    folder = str(exported.folder)
    model = transformers.EncoderDecoderModel.from_encoder_decoder_pretrained(folder, folder)
    tensors, new, used = load_file(exported.folder / huggingface.WEIGHTS), set(), set()
    for name, parameter in model.named_parameters():
        origin = name.replace("encoder.", "bert.", 1) if name.startswith("encoder.") else name.removeprefix("decoder.")
        (used if origin in tensors else new).add(origin)
        if origin in tensors:
            np.testing.assert_array_equal(parameter.detach().numpy(), tensors[origin], err_msg=name)
    assert new == {name.replace(".attention.", ".crossattention.") for name in tensors if ".attention." in name}
    assert set(tensors) - used == {"cls.seq_relationship.weight", "cls.seq_relationship.bias"}

    def encode(inputs):
        return model.encoder.eval()(**inputs).last_hidden_state

    assert_encodes_as_the_source(exported, tokenizer, encode, assert_parity, PEERS[1])

    model.config.decoder_start_token_id, model.config.pad_token_id = tokenizer.cls_token_id, tokenizer.pad_token_id
    answers = tokenizer(TEXTS[1:] + TEXTS[:1], truncation=True)["input_ids"]
    examples = [{**tokenizer(text, truncation=True), "labels": answer} for text, answer in zip(TEXTS, answers)]
    losses, unchanged = fine_tune(model, examples, transformers.DataCollatorForSeq2Seq(tokenizer), tmp_path)
    assert np.isfinite(losses).all() and losses[1] < losses[0], losses
    # A decoder reads every hidden state of the encoder, and nothing of its pooler.
    assert unchanged == {"encoder.pooler.dense.weight", "encoder.pooler.dense.bias"}


def test_sentence_transformers_vectors_are_the_means_of_the_hidden_states(exported, assert_parity):
    sentence_transformers = pytest.importorskip(
        "sentence_transformers", reason="sentence vectors need sentence-transformers: install the extra `parity`"
    )
    hidden, mask = exported.source.encode(TEXTS)
    expected = np.mean(hidden, axis=1, where=mask[:, :, None])  # [B, D]

    found = sentence_transformers.SentenceTransformer(str(exported.folder), device="cpu").encode(TEXTS)
    assert expected.std() > 0.3
    assert_parity("mean of the hidden states", "sentence-transformers", abs(found - expected).max(), TOLERANCE)


def test_onnx_encodes_batches_of_any_size_as_the_source(exported, tokenizer, tmp_path, assert_parity):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"ONNX needs {package}: install the extra `parity`")
    import onnxruntime

    model = transformers.AutoModel.from_pretrained(exported.folder).eval()
    # Two texts: torch takes a size of one for a constant.
    example = tokenizer(["Rivers run.", "Evening comes."], padding=True, return_tensors="pt")
    torch.onnx.export(
        model, (), tmp_path / "model.onnx", kwargs=dict(example), output_names=["last_hidden_state", "pooler_output"],
        dynamic_shapes={name: {0: "batch", 1: "sequence"} for name in example}, dynamo=True,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])

    def encode(inputs):
        return session.run(["last_hidden_state"], {name: values.numpy() for name, values in inputs.items()})[0]

    assert_encodes_as_the_source(exported, tokenizer, encode, assert_parity, PEERS[2])
    alone = encode(tokenizer(TEXTS[:1], return_tensors="pt"))
    expected = exported.source.encode(TEXTS[:1]).hidden[:, :alone.shape[1]]
    assert_parity("hidden states of an export", PEERS[2], abs(alone - expected).max(), TOLERANCE)
