"""Exports and Hugging Face directories, without torch. tests/parity holds them against transformers itself."""

import dataclasses
import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from flaxbert.interop import huggingface, safetensors_files
from flaxbert.interop.architectures import Checkpoint
from flaxbert.interop.huggingface_tensors import TENSORS, to_tensors
from flaxbert.sharding import path_name

V, D, F, L, POSITIONS = 90, 24, 40, 3, 48

# The names and shapes of BertForPreTraining, written out a second time from the reference.
DENSE = {
    "attention.self.query": (D, D), "attention.self.key": (D, D), "attention.self.value": (D, D),
    "attention.output.dense": (D, D), "intermediate.dense": (F, D), "output.dense": (D, F),
}  # fmt: skip
NORMS = ("attention.output.LayerNorm", "output.LayerNorm")
EXPECTED = {
    "bert.embeddings.word_embeddings.weight": (V, D),
    "bert.embeddings.position_embeddings.weight": (POSITIONS, D),
    "bert.embeddings.token_type_embeddings.weight": (2, D),
    "bert.embeddings.LayerNorm.weight": (D,),
    "bert.embeddings.LayerNorm.bias": (D,),
    "bert.pooler.dense.weight": (D, D),
    "bert.pooler.dense.bias": (D,),
    "cls.predictions.bias": (V,),
    "cls.predictions.transform.dense.weight": (D, D),
    "cls.predictions.transform.dense.bias": (D,),
    "cls.predictions.transform.LayerNorm.weight": (D,),
    "cls.predictions.transform.LayerNorm.bias": (D,),
    "cls.seq_relationship.weight": (2, D),
    "cls.seq_relationship.bias": (2,),
}
for layer in range(L):
    for name, shape in DENSE.items():
        EXPECTED[f"bert.encoder.layer.{layer}.{name}.weight"] = shape
        EXPECTED[f"bert.encoder.layer.{layer}.{name}.bias"] = shape[:1]
    for name in NORMS:
        EXPECTED |= {f"bert.encoder.layer.{layer}.{name}.{part}": (D,) for part in ("weight", "bias")}


def assert_trees_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)  # raises where the structures differ


def without_padding(params):
    """The tree with its vocabulary's padding set to zero, as loading makes it."""
    params = jax.tree.map(np.array, params)
    params["encoder"]["embeddings"]["word"]["embedding"][V:] = 0
    params["mlm"]["bias"][V:] = 0
    return params


@pytest.fixture
def folder(small_export, tmp_path):
    return shutil.copytree(small_export, tmp_path / "copy")


def edit_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def edit_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_the_table_has_one_row_for_each_parameter(small_params):
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(small_params)]
    assert sorted(ours for ours, _, _ in TENSORS) == sorted(paths)


def test_names_and_shapes_are_those_of_the_reference(small_export):
    tensors = load_file(small_export / "model.safetensors")
    assert {name: tensor.shape for name, tensor in tensors.items()} == EXPECTED
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"float32"}


def test_a_kernel_computes_the_same_in_both_layouts(small_params, small_config):
    tensors, attention = to_tensors(small_params, small_config), small_params["encoder"]["layers"]["attention"]
    x = np.random.default_rng(1).normal(size=(5, D)).astype(np.float32)
    products = {
        "bert.encoder.layer.1.attention.self.query": np.einsum("bd,dhk->bhk", x, attention["query"]["kernel"][1]),
        "bert.encoder.layer.2.attention.output.dense": np.einsum(
            "bhk,hkd->bd", x.reshape(5, 4, 6), attention["output"]["kernel"][2]
        ),
        "cls.seq_relationship": x @ small_params["nsp"]["kernel"],
    }
    for name, expected in products.items():
        # Sums of 24 products of size one: 1e-5 is float32 rounding with room to spare.
        np.testing.assert_allclose(x @ tensors[f"{name}.weight"].T, expected.reshape(5, -1), rtol=0, atol=1e-5)


def test_an_export_loads_bit_equal(small_export, small_config, small_params):
    found = huggingface.read(small_export)
    assert found.config == small_config
    assert_trees_equal(found.params, without_padding(small_params))


def test_arrays_in_any_memory_order_and_on_devices_export_alike(small_export, small_config, small_params, tmp_path):
    for name, params in (
        ("fortran", jax.tree.map(np.asfortranarray, small_params)),
        ("device", jax.tree.map(jax.numpy.asarray, small_params)),
    ):
        huggingface.export(Checkpoint(small_config, params), small_export, tmp_path / name, "")
        written = (tmp_path / name / "model.safetensors").read_bytes()
        assert written == (small_export / "model.safetensors").read_bytes()


def test_the_padding_of_the_vocabulary_is_cut_and_comes_back(small_export, small_config):
    assert small_config.padded_vocab_size == 128
    params = huggingface.read(small_export).params
    table = params["encoder"]["embeddings"]["word"]["embedding"]
    assert table.shape == (128, D) and params["mlm"]["bias"].shape == (128,)
    assert not table[V:].any() and table[:V].all()


@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_every_setting_of_the_model_survives(small_export, small_config, tmp_path, activation, small_params):
    config = dataclasses.replace(
        small_config, activation=activation, dropout=0.2, attention_dropout=0.0, initializer_range=0.03
    )
    huggingface.export(Checkpoint(config, small_params), small_export, tmp_path / "model", "")
    assert huggingface.read(tmp_path / "model").config == config


def test_an_export_holds_the_whole_tokenizer_with_the_length_of_the_model(small_export, tokenizer_folder):
    for path in tokenizer_folder.iterdir():
        if path.name != "tokenizer_config.json":
            assert (small_export / path.name).read_bytes() == path.read_bytes()
    before = json.loads((tokenizer_folder / "tokenizer_config.json").read_text())
    after = json.loads((small_export / "tokenizer_config.json").read_text())
    assert after == before | {"model_max_length": POSITIONS}
    assert (small_export / "README.md").read_text() == "the card\n"


def test_all_files_of_an_export_have_the_same_permissions(small_export):
    assert len({path.stat().st_mode for path in small_export.iterdir()}) == 1


def test_an_existing_output_is_refused_and_left_alone(small_export, small_config, small_params, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="file exists already"):
        huggingface.export(Checkpoint(small_config, small_params), small_export, tmp_path / "file", "")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_leaves_nothing_behind(small_export, small_config, small_params, tmp_path, monkeypatch):
    def full(path, tensors):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface, "write_tensors", full)
    with pytest.raises(ValueError, match="model cannot be written: .*No space left"):
        huggingface.export(Checkpoint(small_config, small_params), small_export, tmp_path / "model", "")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_does_not_stand_in_the_way(small_export, small_config, small_params, tmp_path):
    (tmp_path / ".model.partial").mkdir()
    (tmp_path / ".model.partial" / "model.safetensors").write_bytes(b"half")
    huggingface.export(Checkpoint(small_config, small_params), small_export, tmp_path / "model", "")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_scrambled_file_is_noticed_before_it_counts(small_config, small_params, tmp_path, monkeypatch):
    def scramble(tensors, path, metadata):
        save_file({name: np.zeros_like(tensor) for name, tensor in tensors.items()}, path, metadata)

    monkeypatch.setattr(safetensors_files, "save_file", scramble)
    with pytest.raises(RuntimeError, match="read back differs"):
        safetensors_files.write_tensors(tmp_path / "x.safetensors", to_tensors(small_params, small_config))


def test_a_diverged_run_is_not_exported(small_export, small_config, small_params, tmp_path):
    broken = jax.tree.map(np.array, small_params)
    broken["mlm"]["norm"]["scale"][3] = np.nan
    with pytest.raises(ValueError, match="mlm/norm/scale holds NaN"):
        huggingface.export(Checkpoint(small_config, broken), small_export, tmp_path / "model", "")
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(small_export, small_config, small_params, tmp_path):
    config = dataclasses.replace(small_config, vocab_size=80)
    with pytest.raises(ValueError, match="ids up to 89, and the model's vocab_size is 80"):
        huggingface.export(Checkpoint(config, small_params), small_export, tmp_path / "model", "")


def test_copies_of_tied_tensors_and_buffers_are_accepted(folder, small_config, small_params):
    def add(tensors):
        tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].copy()
        tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].copy()
        tensors["bert.embeddings.position_ids"] = np.arange(POSITIONS)[None]

    edit_tensors(folder, add)
    assert_trees_equal(huggingface.read(folder).params, without_padding(small_params))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_precisions_load_as_float32(folder, small_config, small_params, dtype):
    edit_tensors(folder, lambda tensors: tensors.update({k: v.astype(dtype) for k, v in tensors.items()}))
    expected = jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), without_padding(small_params))
    assert_trees_equal(huggingface.read(folder).params, expected)


BAD_TENSORS = {
    "missing": (lambda t: t.pop("bert.pooler.dense.bias"), "tensor bert.pooler.dense.bias is missing"),
    "several missing": (
        lambda t: [t.pop(f"bert.encoder.layer.2.{name}.bias") for name in DENSE],
        "tensors bert.encoder.layer.2.attention.self.query.bias, .* are missing",
    ),
    "left over": (lambda t: t.update(extra=np.zeros(3)), "tensor extra is left over; expected those of Bert"),
    "shape": (
        lambda t: t.update({"cls.seq_relationship.weight": np.zeros((3, D), np.float32)}),
        r"cls.seq_relationship.weight has shape \[3, 24\], and its settings make it \[2, 24\]",
    ),
    "type": (
        lambda t: t.update({"bert.pooler.dense.bias": np.zeros(D, np.int32)}),
        "bert.pooler.dense.bias has type I32, expected floating-point",
    ),
    "untied": (
        lambda t: t.update({"cls.predictions.decoder.weight": np.zeros((V, D), np.float32)}),
        "cls.predictions.decoder.weight differs from bert.embeddings.word_embeddings.weight",
    ),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_tensors_that_do_not_fit_are_named(folder, small_config, case):
    change, message = BAD_TENSORS[case]
    edit_tensors(folder, change)
    with pytest.raises(ValueError, match=message):
        huggingface.read(folder).params


@pytest.mark.parametrize("kept", [0, 7, 500, 20_000])
def test_a_truncated_file_is_refused(folder, small_config, kept):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="model.safetensors is damaged or truncated"):
        huggingface.read(folder).params


@pytest.mark.parametrize(
    "found, message",
    [
        (None, "has no model.safetensors"),
        ("pytorch_model.bin", "pytorch_model.bin but no model.safetensors: pickle can run code"),
        ("model.safetensors.index.json", "index.json is not an index of tensors"),
    ],
)
def test_other_weights_are_refused_unread(folder, small_config, found, message):
    (folder / "model.safetensors").unlink()
    if found:
        (folder / found).write_bytes(b"")
    with pytest.raises(ValueError, match=message):
        huggingface.read(folder).params


BAD_FIELDS = [
    ({"model_type": "roberta"}, "model_type is 'roberta', expected 'bert'"),
    ({"hidden_act": "relu"}, "hidden_act is 'relu', expected one of 'gelu', 'gelu_new'"),
    ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key', and this encoder knows"),
    ({"is_decoder": True}, "is_decoder is True"),
    ({"add_cross_attention": True}, "add_cross_attention is True"),
    ({"hidden_size": "24"}, "hidden_size is '24', expected int"),
    ({"num_hidden_layers": None}, "num_hidden_layers is missing"),
    ({"layer_norm_eps": True}, "layer_norm_eps is True, expected a number"),
    ({"num_attention_heads": 5}, "hidden_size 24 is not a multiple of model.num_heads 5"),
    ({"hidden_dropout_prob": 1.5}, r"dropout 1.5 is not in \[0, 1\)"),
]


@pytest.mark.parametrize("fields, message", BAD_FIELDS)
def test_settings_that_this_encoder_cannot_express_are_named(folder, fields, message):
    edit_config(folder, **fields)
    with pytest.raises(ValueError, match=message):
        huggingface.read(folder)


@pytest.mark.parametrize("content, message", [(None, "has no config.json"), ("{", "as JSON"), ("[]", "holds a list")])
def test_a_directory_without_a_usable_config_is_refused(folder, content, message):
    (folder / "config.json").unlink()
    if content:
        (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        huggingface.read(folder)
