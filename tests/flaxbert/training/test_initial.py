"""The parameters of another model as the beginning of a run."""

import dataclasses

import jax
import numpy as np
import pytest

from flaxbert.interop.architectures import Checkpoint
from flaxbert.training.initial import initial_params


@pytest.fixture
def model(small_config, small_params):
    return Checkpoint(small_config, small_params)


def begin(model, seed=0, **changes):
    return initial_params("kin", model, dataclasses.replace(model.config, **changes), seed)


def test_a_model_of_the_same_shape_is_taken_as_it_is(model, small_params):
    params, told = begin(model, dropout=0.0, initializer_range=0.5)
    assert told == []
    table = params["encoder"]["embeddings"]["word"].pop("embedding")
    np.testing.assert_array_equal(table[:90], small_params["encoder"]["embeddings"]["word"]["embedding"][:90])
    assert not table[90:].any()
    np.testing.assert_array_equal(params["pooler"]["kernel"], small_params["pooler"]["kernel"])
    assert jax.tree.structure(params["encoder"]["layers"]) == jax.tree.structure(small_params["encoder"]["layers"])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"hidden_size": 48}, "init kin: model.hidden_size is 24 there and 48 in .* give --model.hidden-size 24"),
        ({"num_layers": 2}, "model.num_layers is 3 there and 2"),
        ({"num_heads": 3}, "model.num_heads is 4 there and 3"),
        ({"feed_forward_size": None}, "model.feed_forward_size is 40 there and 96 .* --model.feed-forward-size 40"),
        ({"segment_types": 3}, "model.segment_types is 2 there and 3"),
        ({"activation": "gelu"}, "model.activation is gelu_new there and gelu in .* --model.activation gelu_new"),
        ({"layer_norm_epsilon": 1e-6}, "model.layer_norm_epsilon is 1e-12 there"),
        ({"max_length": 49}, "model.max_length is 48 there, and the experiment asks for 49"),
        ({"vocab_size": 91}, "model.vocab_size is 90 there, and the experiment asks for 91"),
    ],
)
def test_a_setting_that_makes_another_model_is_named_with_the_way_out(model, changes, message):
    with pytest.raises(ValueError, match=message):
        begin(model, **changes)


def test_positions_and_entries_beyond_those_asked_for_are_cut_and_said_to_be(model, small_params):
    params, told = begin(model, max_length=20, vocab_size=80)
    assert params["encoder"]["embeddings"]["position"]["embedding"].shape == (20, 24)
    table = params["encoder"]["embeddings"]["word"]["embedding"]
    assert table.shape == (128, 24) and table[:80].all() and not table[80:].any()
    assert params["mlm"]["bias"].shape == (128,) and not params["mlm"]["bias"][80:].any()
    assert told == [
        "init kin: model.vocab_size is 90 there, and the first 80 are taken",
        "init kin: model.max_length is 48 there, and the first 20 are taken",
    ]


def test_heads_that_the_model_lacks_are_initialised_and_said_to_be(model, small_params):
    encoder = model._replace(params={"encoder": small_params["encoder"]}, architecture="BertModel")
    (one, told), (same, _), (other, _) = begin(encoder, seed=1), begin(encoder, seed=1), begin(encoder, seed=2)
    assert told == [
        "init kin: it lacks the pooler, the masked-language-model head, the next-sentence head, newly initialised"
    ]
    np.testing.assert_array_equal(one["nsp"]["kernel"], same["nsp"]["kernel"])
    assert not np.array_equal(one["nsp"]["kernel"], other["nsp"]["kernel"])


def test_the_output_layer_of_a_fine_tuned_model_is_left_out_and_said_to_be(model, small_params):
    head = {"kernel": np.ones((24, 2), np.float32), "bias": np.ones(2, np.float32)}
    parts = {"encoder": small_params["encoder"], "pooler": small_params["pooler"], "head": head}
    tuned = model._replace(params=parts, architecture="BertForSequenceClassification", labels=("no", "yes"))
    params, told = begin(tuned)
    assert "head" not in params and told[-1] == "init kin: the output layer is left out"
