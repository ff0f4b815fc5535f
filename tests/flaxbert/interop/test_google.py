"""Google's TensorFlow checkpoints, with variables that a test holds: tests/flaxbert/test_cli.py reads a real one."""

import json

import jax
import numpy as np
import pytest

from flaxbert.interop import google

V, D, F, H, POSITIONS = 12, 8, 16, 2, 10
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##b", "c", "d", ".", ","]
SETTINGS = {
    "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": D,
    "initializer_range": 0.02, "intermediate_size": F, "max_position_embeddings": POSITIONS, "num_attention_heads": H,
    "num_hidden_layers": 2, "type_vocab_size": 2, "vocab_size": V, "pooler_type": "first_token_transform",
}  # fmt: skip

# The names and shapes of the reference's variables, written out from its modeling.py and run_pretraining.py.
SHAPES = {
    "bert/embeddings/word_embeddings": (V, D), "bert/embeddings/token_type_embeddings": (2, D),
    "bert/embeddings/position_embeddings": (POSITIONS, D), "bert/embeddings/LayerNorm/gamma": (D,),
    "bert/embeddings/LayerNorm/beta": (D,), "bert/pooler/dense/kernel": (D, D), "bert/pooler/dense/bias": (D,),
    "cls/predictions/transform/dense/kernel": (D, D), "cls/predictions/transform/dense/bias": (D,),
    "cls/predictions/transform/LayerNorm/gamma": (D,), "cls/predictions/transform/LayerNorm/beta": (D,),
    "cls/predictions/output_bias": (V,), "cls/seq_relationship/output_weights": (2, D),
    "cls/seq_relationship/output_bias": (2,),
}  # fmt: skip
for layer in ("bert/encoder/layer_0", "bert/encoder/layer_1"):
    kernels = {"attention/self/query": (D, D), "attention/self/key": (D, D), "attention/self/value": (D, D),
               "attention/output/dense": (D, D), "intermediate/dense": (D, F), "output/dense": (F, D)}  # fmt: skip
    for name, shape in kernels.items():
        SHAPES |= {f"{layer}/{name}/kernel": shape, f"{layer}/{name}/bias": shape[1:]}
    for name in ("attention/output/LayerNorm", "output/LayerNorm"):
        SHAPES |= {f"{layer}/{name}/gamma": (D,), f"{layer}/{name}/beta": (D,)}


@pytest.fixture
def values():
    generator = np.random.default_rng(0)
    found = {name: generator.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    slots = {f"{name}/{slot}": value for name, value in found.items() for slot in ("adam_m", "adam_v")}
    return found | slots | {"global_step": np.array(7, np.int64)}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "bert_config.json").write_text(json.dumps(SETTINGS))
    (tmp_path / "vocab.txt").write_text("".join(piece + "\n" for piece in PIECES))
    (tmp_path / "bert_model.ckpt.index").write_bytes(b"")
    return tmp_path


def variables_of(values):
    return lambda prefix: ({name: value.shape for name, value in values.items()}, values.__getitem__)


def test_every_variable_finds_its_place_and_slots_are_skipped(folder, values):
    found = google.read(folder, variables_of(values))
    assert found.unused == () and set(found.params) == {"encoder", "pooler", "mlm", "nsp"}
    assert sum(leaf.size for leaf in jax.tree.leaves(found.params)) == sum(map(np.prod, SHAPES.values())) + (
        128 - V
    ) * (D + 1)
    layers = found.params["encoder"]["layers"]
    for number in range(2):
        prefix = f"bert/encoder/layer_{number}"
        # The reference's kernels multiply from the right, as ours do; its heads are neighbours along the last axis.
        query = values[f"{prefix}/attention/self/query/kernel"].reshape(D, H, D // H)
        np.testing.assert_array_equal(layers["attention"]["query"]["kernel"][number], query)
        output = values[f"{prefix}/attention/output/dense/kernel"].reshape(H, D // H, D)
        np.testing.assert_array_equal(layers["attention"]["output"]["kernel"][number], output)
        up = values[f"{prefix}/intermediate/dense/kernel"]
        np.testing.assert_array_equal(layers["mlp"]["up"]["kernel"][number], up)
        np.testing.assert_array_equal(layers["mlp"]["down"]["kernel"][number], values[f"{prefix}/output/dense/kernel"])
        np.testing.assert_array_equal(layers["mlp_norm"]["scale"][number], values[f"{prefix}/output/LayerNorm/gamma"])
    np.testing.assert_array_equal(found.params["nsp"]["kernel"], values["cls/seq_relationship/output_weights"].T)
    np.testing.assert_array_equal(found.params["pooler"]["kernel"], values["bert/pooler/dense/kernel"])
    np.testing.assert_array_equal(found.params["mlm"]["bias"][:V], values["cls/predictions/output_bias"])


def test_settings_are_those_of_bert_config(folder, values):
    config = google.read(folder, variables_of(values)).config
    assert (config.num_layers, config.num_heads, config.mlp_size, config.max_length) == (2, H, F, POSITIONS)
    assert config.activation == "gelu" and config.layer_norm_epsilon == 1e-12


def test_an_encoder_without_heads_says_what_it_lacks(folder, values):
    found = google.read(folder, variables_of({k: v for k, v in values.items() if not k.startswith("cls/")}))
    assert set(found.params) == {"encoder", "pooler"}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda v: v.pop("bert/pooler/dense/bias"), "tensor bert.pooler.dense.bias is missing"),
        (lambda v: v.update(extra=np.zeros(3)), "tensor extra is left over"),
        (
            lambda v: v.update({"bert/pooler/dense/kernel": np.zeros((D, 3))}),
            r"bert.pooler.dense.weight has shape \[3, 8\], and its settings make it \[8, 8\]",
        ),
    ],
)
def test_variables_that_do_not_fit_are_named(folder, values, change, message):
    change(values)
    with pytest.raises(ValueError, match=message):
        google.read(folder, variables_of(values))


def test_variables_left_over_are_listed_where_they_are_allowed(folder, values):
    values["bert/extra/kernel"] = np.zeros((3, 3))
    assert google.read(folder, variables_of(values), allow_unused=True).unused == ("bert.extra.weight",)


def test_one_of_several_checkpoints_must_be_named(folder, values):
    (folder / "model.ckpt-100.index").write_bytes(b"")
    with pytest.raises(ValueError, match="several checkpoints: name one, as in .*model.ckpt-100"):
        google.read(folder, variables_of(values))
    asked = []
    google.read(folder / "model.ckpt-100", lambda prefix: asked.append(prefix) or variables_of(values)(prefix))
    assert asked == [str(folder / "model.ckpt-100")]
    with pytest.raises(ValueError, match="model.ckpt-7 is no checkpoint: there is no model.ckpt-7.index"):
        google.read(folder / "model.ckpt-7", variables_of(values))


def test_a_folder_without_a_checkpoint_is_refused(folder, values):
    (folder / "bert_model.ckpt.index").unlink()
    with pytest.raises(ValueError, match="holds no checkpoint"):
        google.read(folder, variables_of(values))


def test_a_vocabulary_with_capitals_is_cased_unless_it_is_said_otherwise(folder):
    assert google.read_tokenizer(folder, V).lowercase
    assert not google.read_tokenizer(folder, V, lowercase=False).lowercase
    (folder / "vocab.txt").write_text("".join(piece + "\n" for piece in [*PIECES[:-1], "A"]))
    assert not google.read_tokenizer(folder, V).lowercase


def test_a_vocabulary_of_another_size_is_refused(folder):
    with pytest.raises(ValueError, match="vocab.txt holds 12 pieces, and bert_config.json makes vocab_size 13"):
        google.read_tokenizer(folder, V + 1)
