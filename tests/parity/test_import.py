"""Directories that others wrote: each is imported and computes the same, or is refused by name."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from flaxbert import cli
from flaxbert.interop.architectures import ARCHITECTURES
from flaxbert.tools.import_model import import_model
from flaxbert.tools.load import load

torch = pytest.importorskip("torch", reason="parity needs torch: install the extra `parity`")
transformers = pytest.importorskip("transformers", reason="parity needs transformers: install the extra `parity`")

pytestmark = pytest.mark.parity

SIZES = {  # hidden size, layers, heads, feed-forward
    "tiny": (32, 1, 2, 64),
    "small": (48, 3, 4, 80),
    "wide": (96, 2, 6, 384),
}
PIECES = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] the The dog Dog sleeps runs sea full never is river ##s ##ing ##er . , ? un ##known"
).split()
TEXTS = ["The dog sleeps.", "the sea is never full, the rivers running unknown", "Dog?", ""]
PAIRS = [("The dog sleeps.", "the sea is full"), ("Is the dog running?", "never.")]
# Float32 in another order of summation: hidden states are of size one, so these are some fifty roundings.
TOLERANCE = 1e-5


def saved(folder: Path, name: str, size="tiny", cased=False, length=128, shards=False, options=None, **settings):
    """A model of transformers with random weights, saved by transformers with a tokenizer of its own."""
    hidden, layers, heads, feed_forward = SIZES[size]
    config = transformers.BertConfig(
        vocab_size=len(PIECES), hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=feed_forward, max_position_embeddings=length, **settings,
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, name)(config, **(options or {})).eval()
    with torch.no_grad():  # away from the ones and zeros that it begins with
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    (folder / "vocab").mkdir(parents=True)
    (folder / "vocab" / "vocab.txt").write_text("".join(piece + "\n" for piece in PIECES))
    tokenizer = transformers.BertTokenizerFast(str(folder / "vocab" / "vocab.txt"), do_lower_case=not cased)
    tokenizer.save_pretrained(folder / "model")
    model.save_pretrained(folder / "model", max_shard_size="20KB" if shards else "5GB")
    assert shards == (folder / "model" / "model.safetensors.index.json").is_file()
    return folder / "model", model, tokenizer


def imported(source: Path, **options):
    import_model(str(source), str(source.parent / "imported"), None, **options)
    return load(source.parent / "imported")


def assert_hidden_states_equal(ours, theirs, tokenizer, assert_parity, texts=TEXTS):
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    base = theirs if type(theirs).__name__ == "BertModel" else theirs.bert
    with torch.no_grad():
        expected = base(**inputs).last_hidden_state.numpy()
    hidden, mask = ours.encode(texts)
    mask = mask[:, :expected.shape[1]]
    np.testing.assert_array_equal(mask, inputs["attention_mask"].numpy() == 1)
    found = np.asarray(hidden)[:, :expected.shape[1]]
    assert expected[mask].std() > 0.5
    assert_parity("hidden states of an import", "transformers, its own directory", abs(found - expected)[mask].max(),
                  TOLERANCE)  # fmt: skip


@pytest.mark.parametrize("size, length, cased", [("tiny", 128, False), ("small", 512, True), ("wide", 128, True)])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_class_in_each_size_is_imported(name, size, length, cased, tmp_path, assert_parity):
    source, theirs, tokenizer = saved(tmp_path, name, size, cased, length)
    model = imported(source)
    assert model.config.max_length == length and not set(ARCHITECTURES[name].parts) - set(model.params)
    assert_hidden_states_equal(model, theirs, tokenizer, assert_parity)
    assert_hidden_states_equal(model, theirs, tokenizer, assert_parity, PAIRS)
    longest = " ".join(["the dog sleeps"] * length).split()[:length - 2]
    assert_hidden_states_equal(model, theirs, tokenizer, assert_parity, [" ".join(longest[:-1])])


@pytest.mark.parametrize("name", [name for name, each in ARCHITECTURES.items() if each.output])
def test_the_outputs_of_a_fine_tuned_model_are_equal(name, tmp_path, assert_parity):
    labels: dict = {} if name in ("BertForQuestionAnswering", "BertForMultipleChoice") else dict(
        id2label={0: "no", 1: "yes", 2: "maybe"}, label2id={"no": 0, "yes": 1, "maybe": 2}
    )
    source, theirs, tokenizer = saved(tmp_path, name, "small", **labels)
    tokens = tokenizer(TEXTS, padding=True, return_tensors="pt")
    one_choice = name == "BertForMultipleChoice"
    with torch.no_grad():
        out = theirs(**{key: value[:, None] if one_choice else value for key, value in tokens.items()})
    expected = torch.stack([out.start_logits, out.end_logits], -1) if "start_logits" in out else out.logits
    model = imported(source)
    choice = name == "BertForMultipleChoice"
    assert model.labels == (tuple(labels.get("label2id", ("LABEL_0", "LABEL_1"))) if not choice else ())
    again = getattr(transformers, name).from_pretrained(tmp_path / "imported")
    assert again.config.id2label == theirs.config.id2label
    found = np.asarray(model.outputs(TEXTS))
    apart = abs(found[:, :expected.shape[1]] - expected.numpy()) if found.ndim == 3 else abs(found - expected.numpy())
    real = tokens["attention_mask"].numpy() == 1 if found.ndim == 3 else ...
    assert_parity("outputs of a fine-tuned import", "transformers", apart[real].max(), TOLERANCE)


def test_the_pretraining_heads_are_equal(tmp_path, assert_parity):
    source, theirs, tokenizer = saved(tmp_path, "BertForPreTraining", "small", hidden_act="gelu_new")
    inputs = tokenizer(PAIRS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = theirs(**inputs)
    found = imported(source).logits(PAIRS)
    width = inputs["input_ids"].shape[1]
    worst = abs(np.asarray(found.mlm)[:, :width] - expected.prediction_logits.numpy())[found.mask[:, :width]].max()
    assert_parity("MLM logits of an import", "transformers", worst, TOLERANCE)
    worst = abs(np.asarray(found.nsp) - expected.seq_relationship_logits.numpy()).max()
    assert_parity("NSP logits of an import", "transformers", worst, TOLERANCE)


@pytest.mark.parametrize("name", ["BertModel", "BertForPreTraining", "BertForSequenceClassification"])
def test_weights_in_shards_are_imported(name, tmp_path, assert_parity):
    source, theirs, tokenizer = saved(tmp_path, name, "small", shards=True)
    assert_hidden_states_equal(imported(source), theirs, tokenizer, assert_parity)


def test_an_encoder_without_a_pooler_is_imported_and_gets_one(tmp_path, capsys, assert_parity):
    source, theirs, tokenizer = saved(tmp_path, "BertModel", options=dict(add_pooling_layer=False))
    model = imported(source)
    assert "newly initialised: the pooler, the masked-language-model head" in capsys.readouterr().out
    assert_hidden_states_equal(model, theirs, tokenizer, assert_parity)


@pytest.mark.parametrize("name", ["BertForMaskedLM", "BertForPreTraining"])
def test_an_untied_decoder_is_refused_by_name_or_its_head_left_out(name, tmp_path, assert_parity):
    source, theirs, tokenizer = saved(tmp_path, name, tie_word_embeddings=False)
    with pytest.raises(ValueError, match="cls.predictions.decoder.weight differs from bert.embeddings.word_embeddings"):
        imported(source)
    assert_hidden_states_equal(imported(source, allow_unused=True), theirs, tokenizer, assert_parity)


@pytest.mark.parametrize("settings, message", [
    (dict(is_decoder=True), "is_decoder is True"),
    (dict(hidden_act="relu"), "hidden_act is 'relu'"),
])  # fmt: skip
def test_what_this_encoder_cannot_express_is_refused_by_name(tmp_path, settings, message):
    source, _, _ = saved(tmp_path, "BertModel", **settings)
    with pytest.raises(ValueError, match=message):
        imported(source)
    assert not (tmp_path / "imported").exists()


def test_other_classes_and_other_models_are_refused_by_name(tmp_path):
    source, _, _ = saved(tmp_path / "head", "BertLMHeadModel", is_decoder=False)
    with pytest.raises(ValueError, match="BertLMHeadModel"):
        imported(source)
    config = transformers.RobertaConfig(
        vocab_size=20, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    transformers.RobertaModel(config).save_pretrained(tmp_path / "roberta")
    with pytest.raises(ValueError, match="model_type is 'roberta', expected 'bert'"):
        imported(tmp_path / "roberta")


def test_a_tokenizer_of_transformers_serves_prepare(tmp_path, capsys):
    from data_pipeline import tokenizer as tokenizers

    source, _, theirs = saved(tmp_path, "BertModel")
    imported(source)
    own = tokenizers.load(tmp_path / "imported")
    assert own.encode(TEXTS) == theirs(TEXTS, add_special_tokens=False)["input_ids"]


def test_the_checkpoint_of_google_computes_what_transformers_computes_of_it(shared_data, tmp_path, assert_parity):
    """Its variables are named and turned here once more, by the rule of transformers' own converter."""
    from data_pipeline.tensorflow_import import import_tensorflow

    toy = shared_data / "tf1-toy-ckpt"
    reader = import_tensorflow().train.load_checkpoint(str(toy / "bert_model.ckpt"))
    settings = json.loads((toy / "bert_config.json").read_text())
    theirs = transformers.BertForPreTraining(transformers.BertConfig(**settings))
    skipped = re.compile(r"adam_[mv]|global_step")
    for variable in reader.get_variable_to_shape_map():
        if skipped.search(variable):
            continue
        pointer, array = theirs, torch.tensor(reader.get_tensor(variable))
        for step in variable.split("/"):
            found = re.fullmatch(r"layer_(\d+)", step)
            if found:
                pointer = pointer.layer[int(found.group(1))]
            elif step in ("kernel", "gamma", "output_weights"):
                pointer = pointer.weight
            elif step in ("output_bias", "beta"):
                pointer = pointer.bias
            else:
                pointer = getattr(pointer, step)
        target = pointer.weight if variable.endswith("_embeddings") else pointer
        array = array.T if variable.endswith("/kernel") else array
        assert target.shape == array.shape
        target.data = array
    assert cli.main(["import", str(toy), str(tmp_path / "toy")]) == cli.DONE
    ours = load(tmp_path / "toy")
    inputs = transformers.AutoTokenizer.from_pretrained(tmp_path / "toy")(
        [("all work and", "no play"), ("makes jack", "a dull boy")], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        expected = theirs.eval()(**inputs)
    found = ours.logits([("all work and", "no play"), ("makes jack", "a dull boy")], max_length=16)
    width = inputs["input_ids"].shape[1]
    assert len(set(inputs["input_ids"][0].tolist())) > 4, "the texts are read as unknown tokens"
    worst = abs(np.asarray(found.mlm)[:, :width] - expected.prediction_logits.numpy())[found.mask[:, :width]].max()
    assert_parity("MLM logits of Google's toy checkpoint", "transformers, its weights placed by hand", worst, TOLERANCE)
    worst = abs(np.asarray(found.nsp) - expected.seq_relationship_logits.numpy()).max()
    assert_parity("NSP logits of Google's toy checkpoint", "transformers, its weights placed by hand", worst, TOLERANCE)
