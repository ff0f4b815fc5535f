"""Exports as transformers sees them: the same logits, the same ids, the same guesses, and no warning."""

import dataclasses
import logging
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipeline import tokenizer, tokenizer_training
from flaxbert.config import PRESETS
from flaxbert.interop import huggingface
from flaxbert.interop.architectures import Checkpoint
from flaxbert.model.pretraining import initialize
from flaxbert.tools.load import load

torch = pytest.importorskip("torch", reason="parity needs torch: install the extra `parity`")
transformers = pytest.importorskip("transformers", reason="parity needs transformers: install the extra `parity`")

pytestmark = pytest.mark.parity

SAMPLES = {
    "english": ["corpus-enwiki2015/valid.txt"],
    "german": ["unicode/dewiki/train.txt", "unicode/dewiki/valid.txt"],
    "chinese": ["unicode/zhwiki/train.txt", "unicode/zhwiki/valid.txt"],
}
# Float32 in another order of summation, on logits of size one: the worst that was seen is a quarter of this.
TOLERANCE = 1e-5


def sample(folder: Path, language: str) -> list[str]:
    return [line.rstrip("\n") for name in SAMPLES[language] for line in open(folder / name, encoding="utf-8")]


@pytest.fixture(scope="module", params=["sentencepiece", "wordpiece"])
def tokenizer_folder(request, shared_data, tmp_path_factory) -> Path:
    """Trained on all three languages, so that few of the ids compared are [UNK]."""
    folder = tmp_path_factory.mktemp("tokenizer") / request.param
    sentences = [line for language in SAMPLES for line in sample(shared_data, language)[:1500] if line]
    tokenizer_training.train(request.param, sentences, 8000, lowercase=True).save(folder)
    return folder


@pytest.fixture(scope="module", params=["gelu", "gelu_new"])
def export(request, tokenizer_folder, tmp_path_factory) -> Path:
    """A tiny model whose biases and norms are random too: a transformers model would start with zeros and ones."""
    vocab_size = tokenizer.load(tokenizer_folder).vocab_size
    config = dataclasses.replace(PRESETS["tiny"], vocab_size=vocab_size, activation=request.param)
    generator = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: np.asarray(x + generator.normal(0, 0.05, x.shape), np.float32), initialize(config, jax.random.key(0))
    )
    folder = tmp_path_factory.mktemp("export") / "model"
    huggingface.export(Checkpoint(config, params), tokenizer_folder, folder, "")
    return folder


def quietly(call):
    """The result of `call`, after asserting that neither Python nor transformers warned."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append  # type: ignore[method-assign, assignment]
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = call()
    finally:
        logger.removeHandler(handler)
    assert not records, [record.getMessage() for record in records]
    assert not caught, [str(warning.message) for warning in caught]
    return result


def test_transformers_loads_an_export_without_a_warning(export):
    model, report = quietly(
        lambda: transformers.AutoModelForPreTraining.from_pretrained(export, output_loading_info=True)
    )
    assert type(model).__name__ == "BertForPreTraining"
    assert not any(report.values()), report
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    auto = quietly(lambda: transformers.AutoTokenizer.from_pretrained(export))
    assert auto.model_max_length == model.config.max_position_embeddings
    assert (auto.pad_token_id, auto.mask_token) == (0, "[MASK]")


@pytest.mark.parametrize("form", ["sentences", "pairs"])
def test_logits_equal_those_of_transformers(export, shared_data, form, assert_parity):
    lines = [line for line in sample(shared_data, "english") if line][:128]
    texts = lines[:64] if form == "sentences" else list(zip(lines[:64], lines[64:]))
    auto = transformers.AutoTokenizer.from_pretrained(export)
    model = transformers.AutoModelForPreTraining.from_pretrained(export).eval()
    inputs = auto(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
    assert not inputs["attention_mask"].all() and inputs["token_type_ids"].any() == (form == "pairs")
    with torch.no_grad():
        theirs = model(**inputs)

    ours = load(export).logits(texts, max_length=64)
    mask, width = ours.mask, inputs["attention_mask"].shape[1]
    np.testing.assert_array_equal(mask[:, :width], inputs["attention_mask"].numpy().astype(bool))
    expected = theirs.prediction_logits.numpy()[mask[:, :width]]
    found = np.asarray(ours.mlm)[mask]
    assert expected.std() > 0.3
    peer = "transformers, its own tokenizer and padding"
    assert_parity("MLM logits of an export", peer, np.abs(found - expected).max(), TOLERANCE)
    worst = np.abs(ours.nsp - theirs.seq_relationship_logits.numpy()).max()
    assert_parity("NSP logits of an export", peer, worst, TOLERANCE)


@pytest.mark.parametrize("language", SAMPLES)
def test_ids_equal_those_of_the_corpus_tokenizer(tokenizer_folder, shared_data, language, assert_parity):
    lines = sample(shared_data, language)
    ours = tokenizer.load(tokenizer_folder)
    auto = transformers.AutoTokenizer.from_pretrained(tokenizer_folder)
    expected, found = ours.encode(lines), auto(lines, add_special_tokens=False, verbose=False)["input_ids"]
    differing = [line for line, a, b in zip(lines, expected, found, strict=True) if a != b]
    unknown = sum(ids.count(ours.unknown_id) for ids in expected) / sum(map(len, expected))
    assert unknown < 0.1, "lines of unknown tokens are equal whatever the rule"
    what = f"lines of {language} whose ids differ"
    assert_parity(what, "transformers AutoTokenizer, from the exported files", len(differing), 0)


def test_the_fill_mask_pipeline_guesses_the_same(export):
    texts = [
        "The capital of France is [MASK].",
        "[MASK] was born in 1950 (in [MASK]), and lived there.",
        "Sie ist in [MASK] geboren.",
    ]
    pipeline = transformers.pipeline("fill-mask", model=str(export), device="cpu")
    model = load(export)
    for text in texts:
        theirs = pipeline(text, top_k=5)
        theirs = theirs if isinstance(theirs[0], list) else [theirs]
        ours = model.fill_mask(text, top=5)
        expected_ids = [[fill["token"] for fill in fills] for fills in theirs]
        assert [[fill.id for fill in fills] for fills in ours] == expected_ids
        np.testing.assert_allclose(
            [[fill.probability for fill in fills] for fills in ours],
            [[fill["score"] for fill in fills] for fills in theirs],
            rtol=1e-4,
        )
