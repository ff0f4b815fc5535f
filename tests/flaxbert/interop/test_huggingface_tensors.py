"""Tensors under the names that others give them: prefixes, old names, missing parts, several files."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from flaxbert.interop import huggingface
from flaxbert.interop.architectures import ARCHITECTURES, Checkpoint
from flaxbert.interop.huggingface_tensors import to_tensors
from flaxbert.interop.initialization import completed


@pytest.fixture
def write(small_config, tokenizer_folder, tmp_path):
    """Writes a directory of tensors for a class, and returns it."""

    def written(tensors, architecture="BertForPreTraining", **settings):
        folder = tmp_path / "model"
        model, _ = completed(Checkpoint(small_config, {}), architecture, 0)
        huggingface.export(model, tokenizer_folder, folder, "")
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        config = json.loads((folder / "config.json").read_text()) | settings
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return written


@pytest.fixture
def tensors(small_params, small_config):
    return to_tensors(small_params, small_config)


def kernel(params):
    return params["encoder"]["layers"]["mlp"]["up"]["kernel"]


def test_an_encoder_saved_alone_has_no_prefix(write, tensors, small_params):
    bare = {name.removeprefix("bert."): tensor for name, tensor in tensors.items() if name.startswith("bert.")}
    found = huggingface.read(write(bare, "BertModel"))
    assert set(found.params) == {"encoder", "pooler"}
    np.testing.assert_array_equal(kernel(found.params), kernel(small_params))


def test_a_model_without_its_pooler_or_heads_says_what_it_lacks(write, tensors):
    found = huggingface.read(write({k: v for k, v in tensors.items() if not k.startswith(("bert.pooler", "cls.seq"))}))
    assert set(found.params) == {"encoder", "mlm"}


def test_a_part_that_is_there_by_half_is_refused(write, tensors):
    del tensors["cls.predictions.transform.dense.bias"]
    with pytest.raises(ValueError, match="tensor cls.predictions.transform.dense.bias is missing"):
        huggingface.read(write(tensors))


def test_norms_may_have_the_names_of_tensorflow(write, tensors, small_params):
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    folder = write(old)
    found = huggingface.read(folder)
    np.testing.assert_array_equal(found.params["mlm"]["norm"]["scale"], small_params["mlm"]["norm"]["scale"])
    old["bert.embeddings.LayerNorm.weight"] = old["bert.embeddings.LayerNorm.gamma"]
    save_file(old, folder / "model.safetensors")
    with pytest.raises(ValueError, match="is there twice, under an old and a new name"):
        huggingface.read(folder)


def test_the_bias_of_the_decoder_serves_where_the_head_has_none(write, tensors, small_params):
    tensors["cls.predictions.decoder.bias"] = tensors.pop("cls.predictions.bias")
    found = huggingface.read(write(tensors))
    np.testing.assert_array_equal(found.params["mlm"]["bias"][:90], small_params["mlm"]["bias"][:90])


def test_an_untied_decoder_is_refused_or_its_whole_head_left_out(write, tensors):
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"] + 1
    folder = write(tensors, tie_word_embeddings=False)
    with pytest.raises(ValueError, match="decoder.weight differs from .*word_embeddings.weight, and this model ties"):
        huggingface.read(folder)
    found = huggingface.read(folder, allow_unused=True)
    assert set(found.params) == {"encoder", "pooler", "nsp"} and "cls.predictions.decoder.weight" in found.unused


def test_tensors_left_over_are_left_out_where_that_is_allowed(write, tensors):
    folder = write(tensors | {"lm.extra": np.zeros(3, np.float32), "counter": np.zeros(3, np.int64)})
    with pytest.raises(ValueError, match="tensors counter, lm.extra are left over; .*BertForPre.*--allow-unused True"):
        huggingface.read(folder)
    assert huggingface.read(folder, allow_unused=True).unused == ("counter", "lm.extra")


@pytest.mark.parametrize("architecture", [name for name, each in ARCHITECTURES.items() if each.output])
def test_a_fine_tuned_head_and_its_labels_come_back(
    small_config, small_params, tokenizer_folder, tmp_path, architecture
):
    outputs = 1 if architecture == "BertForMultipleChoice" else 3
    labels = () if outputs == 1 else ("no", "yes", "maybe")
    head = {"kernel": np.random.default_rng(0).normal(size=(24, outputs)).astype(np.float32), "bias": np.ones(outputs)}
    parts = {part: small_params.get(part, head) for part in ARCHITECTURES[architecture].parts}
    huggingface.export(Checkpoint(small_config, parts, architecture, labels), tokenizer_folder, tmp_path / "model", "")
    found = huggingface.read(tmp_path / "model")
    assert (found.architecture, found.labels, set(found.params)) == (architecture, labels, set(parts))
    np.testing.assert_array_equal(found.params["head"]["kernel"], head["kernel"])
    name = f"{ARCHITECTURES[architecture].output}.weight"
    assert load_file(tmp_path / "model" / "model.safetensors")[name].shape == (outputs, 24)


def in_shards(folder, tensors, index=None):
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, chosen in halves.items():
        save_file({name: tensors[name] for name in chosen}, folder / file)
    weight_map = {name: file for file, chosen in halves.items() for name in chosen}
    text = json.dumps({"metadata": {}, "weight_map": weight_map | (index or {})})
    (folder / "model.safetensors.index.json").write_text(text)
    return folder


def test_weights_in_several_files_are_read_by_their_index(write, tensors, small_params):
    found = huggingface.read(in_shards(write(tensors), tensors))
    np.testing.assert_array_equal(kernel(found.params), kernel(small_params))


@pytest.mark.parametrize(
    "index, message",
    [
        ({"extra": "three.safetensors"}, "index.json names three.safetensors, and there is no such file"),
        ({"extra": "one.safetensors"}, "places tensor extra in one.safetensors, which does not hold it"),
        ({"extra": "../one.safetensors"}, "expected a file of its own folder"),
    ],
)
def test_an_index_that_is_wrong_is_refused(write, tensors, index, message):
    with pytest.raises(ValueError, match=message):
        huggingface.read(in_shards(write(tensors), tensors, index))


def test_a_truncated_shard_is_named(write, tensors):
    folder = in_shards(write(tensors), tensors)
    (folder / "two.safetensors").write_bytes((folder / "two.safetensors").read_bytes()[:900])
    with pytest.raises(ValueError, match="two.safetensors is damaged or truncated"):
        huggingface.read(folder)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"architectures": ["BertLMHeadModel"]}, r"architectures is \['BertLMHeadModel'\], expected one of BertForPre"),
        ({"architectures": "BertModel"}, "architectures is 'BertModel'"),
        ({"architectures": [["BertModel"]]}, "architectures is"),
        ({"architectures": ["BertForTokenClassification"], "id2label": {"1": "yes"}}, "id2label is .*, expected a"),
        ({"architectures": ["BertForTokenClassification"], "id2label": ["no", "yes"]}, "id2label is"),
    ],
)
def test_a_class_and_labels_that_are_not_known_are_refused(write, tensors, settings, message):
    with pytest.raises(ValueError, match=message):
        huggingface.read(write(tensors, **settings))


@pytest.mark.parametrize("name", [name for name, each in ARCHITECTURES.items() if each.output])
def test_an_output_layer_that_is_missing_is_initialised_with_its_labels(write, tensors, name):
    encoder = {key: value for key, value in tensors.items() if key.startswith("bert.")}
    if "pooler" not in ARCHITECTURES[name].parts:
        encoder = {key: value for key, value in encoder.items() if ".pooler." not in key}
    found = huggingface.read(write(encoder, "BertModel", architectures=[name], num_labels=3))
    whole, added = completed(found, name, 0)
    outputs = 1 if name == "BertForMultipleChoice" else 3
    assert added == ("head",) and whole.params["head"]["kernel"].shape == (24, outputs)
    assert len(whole.labels) == (0 if outputs == 1 else 3)


def test_what_only_other_uses_read_goes_along(write, tensors, tokenizer_folder, tmp_path):
    kept = {"problem_type": "multi_label_classification", "classifier_dropout": 0.3, "pad_token_id": 1}
    found = huggingface.read(write(tensors, **kept))
    huggingface.export(found, tokenizer_folder, tmp_path / "again", "")
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert {name: written[name] for name in kept} == kept


def test_what_is_missing_is_initialised_from_the_seed_and_the_rest_is_kept(write, tensors, small_params):
    found = huggingface.read(write({k: v for k, v in tensors.items() if not k.startswith("cls.")}, "BertModel"))
    (one, added), (same, _), (other, _) = (completed(found, "BertForPreTraining", seed) for seed in (1, 1, 2))
    assert added == ("mlm", "nsp")
    np.testing.assert_array_equal(kernel(one.params), kernel(small_params))
    transform = [each.params["mlm"]["transform"]["kernel"] for each in (one, same, other)]
    np.testing.assert_array_equal(transform[0], transform[1])
    assert 0.015 < transform[0].std() < 0.02 and not np.array_equal(transform[0], transform[2])
