"""`flaxbert.load` and what it gives."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest
import tokenizers

import flaxbert
from flaxbert.tools.load import Model, load
from flaxbert.tools.texts import tokenize

TEXTS = ["the dog", "the sea is never full: this is known", "lists"]


@pytest.fixture(scope="module")
def model(small_export) -> Model:
    return load(small_export)


def test_load_is_public_and_importing_the_package_imports_no_jax(small_export):
    assert flaxbert.load is load
    code = "import sys, flaxbert; assert 'load' in flaxbert.__all__; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        flaxbert.lode


def test_a_model_carries_config_params_and_tokenizer(model, small_config, small_params):
    assert model.config == small_config
    assert isinstance(model.tokenizer, tokenizers.Tokenizer)
    np.testing.assert_array_equal(model.params["pooler"]["kernel"], small_params["pooler"]["kernel"])


def test_a_run_and_its_export_give_the_same_logits(model, run):
    ours, exported = load(run).logits(TEXTS), model.logits(TEXTS)
    np.testing.assert_array_equal(ours.mlm, exported.mlm)
    np.testing.assert_array_equal(ours.nsp, exported.nsp)


def test_encode_gives_hidden_states_and_a_mask(model, small_config):
    hidden, mask = model.encode(TEXTS)
    assert hidden.shape == (*mask.shape, small_config.hidden_size) and hidden.dtype == np.float32
    lengths = [len(model.tokenizer.encode(text).ids) for text in TEXTS]
    assert mask.sum(1).tolist() == lengths


def test_company_and_padding_do_not_change_the_encoding_of_a_text(model):
    together, mask = model.encode(TEXTS)
    for row, text in enumerate(TEXTS):
        alone, own_mask = model.encode([text])
        # Other shapes are other sums: float32 rounding, far below what attention to padding would change.
        np.testing.assert_allclose(together[row][mask[row]], alone[0][own_mask[0]], atol=2e-5)


def test_texts_are_cut_to_max_length_as_tokenizers_cuts_them(model):
    hidden, mask = model.encode(["the dog " * 100], max_length=20)
    assert mask.shape == (1, 20) and mask.all()
    assert model.encode(["the dog " * 100])[1].shape == (1, 48)
    batch, _ = tokenize(model.tokenizer, ["the dog " * 100], 20, 48)
    assert batch["input_ids"][0, -1] == model.tokenizer.token_to_id("[SEP]")


def test_pairs_have_two_segments(model):
    batch, mask = tokenize(model.tokenizer, [("the dog", "the sea"), ("lists", "the")], None, 48)
    for row, (a, b) in enumerate((("the dog", "the sea"), ("lists", "the"))):
        first = len(model.tokenizer.encode(a).ids)
        second = len(model.tokenizer.encode(b, add_special_tokens=False).ids) + 1
        assert batch["segment_ids"][row].tolist() == [0] * first + [1] * second + [0] * (mask.shape[1] - first - second)
    assert model.logits([("the dog", "the sea")]).nsp.shape == (1, 2)


def test_a_model_of_one_segment_takes_no_pairs(model):
    one = model._replace(config=dataclasses.replace(model.config, segment_types=1))
    with pytest.raises(ValueError, match="a pair of texts has two segments, and the model knows 1"):
        one.encode([("the dog", "the sea")])


def test_the_logits_leave_out_the_padded_vocabulary(model, small_config):
    logits = model.logits(TEXTS)
    assert logits.mlm.shape == (*logits.mask.shape, small_config.vocab_size)
    assert np.isfinite(jax.device_get(logits.mlm)).all() and float(logits.mlm.min()) > -1e6


@pytest.mark.parametrize(
    "texts, length, message",
    [
        ("one text", None, "texts is 'one text', expected a list"),
        ([], None, r"texts is \[\], expected a list"),
        (["the"], 49, r"max_length 49 is not in \[3, 48\]"),
        (["the"], 2, r"max_length 2 is not in \[3, 48\]"),
        (["the \udcff dog"], None, r"text 'the \\udcff dog' is not valid Unicode at character 5"),
    ],
)
def test_bad_texts_and_lengths_are_refused(model, texts, length, message):
    with pytest.raises(ValueError, match=message):
        model.encode(texts, max_length=length)


def test_a_path_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nowhere is no directory: expected that of a run"):
        load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has no config.json"):
        load(tmp_path)
