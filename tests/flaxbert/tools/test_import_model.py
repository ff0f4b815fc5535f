"""`flaxbert import`: other people's directories become ours, or nothing appears."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from flaxbert.tools.import_model import import_model
from flaxbert.tools.load import load


def import_(source, output, **options):
    import_model(str(source), str(output), None, **options)


@pytest.fixture
def bare_encoder(small_export, tmp_path):
    """A BertModel without prefix and without pooler."""
    folder = shutil.copytree(small_export, tmp_path / "bare")
    tensors = load_file(folder / "model.safetensors")
    kept = {name.removeprefix("bert."): t for name, t in tensors.items() if name.startswith(("bert.enc", "bert.emb"))}
    save_file(kept, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["BertModel"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_an_import_of_an_export_is_bit_equal(small_export, tmp_path):
    import_(small_export, tmp_path / "model")
    for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_info.json"):
        assert (tmp_path / "model" / name).read_bytes() == (small_export / name).read_bytes()


def test_what_the_source_lacks_is_initialised_and_said_on_the_terminal_and_in_the_card(bare_encoder, tmp_path, capsys):
    import_(bare_encoder, tmp_path / "model", seed=3)
    model, source = load(tmp_path / "model"), load(bare_encoder)
    assert model.architecture == "BertForPreTraining" and set(source.params) == {"encoder"}
    np.testing.assert_array_equal(model.encode(["the dog"]).hidden, source.encode(["the dog"]).hidden)
    added = "the pooler, the masked-language-model head, the next-sentence head"
    assert f"newly initialised: {added}" in capsys.readouterr().out
    assert f"newly initialised: {added}" in (tmp_path / "model" / "README.md").read_text()


def test_a_model_without_a_head_says_so_when_it_is_asked_to_guess(bare_encoder):
    model = load(bare_encoder)
    with pytest.raises(ValueError, match="is a BertModel: it lacks the masked-language-model head"):
        model.fill_mask("the [MASK]")
    with pytest.raises(ValueError, match="is a BertModel: it lacks the output layer"):
        model.outputs(["the dog"])
    assert model.logits(["the dog"])[:2] == (None, None)


def test_tensors_left_out_are_listed(small_export, tmp_path, capsys):
    folder = shutil.copytree(small_export, tmp_path / "source")
    tensors = load_file(folder / "model.safetensors") | {"extra.weight": np.zeros(3, np.float32)}
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match="tensor extra.weight is left over"):
        import_(folder, tmp_path / "model")
    import_(folder, tmp_path / "model", allow_unused=True)
    assert "in the source, and left out: extra.weight" in capsys.readouterr().out


def test_the_activation_may_be_corrected(small_export, tmp_path):
    import_(small_export, tmp_path / "model", activation="gelu")
    assert load(tmp_path / "model").config.activation == "gelu"


@pytest.mark.parametrize("case", ["run", "nothing", "missing", "lowercase", "exists"])
def test_what_is_no_source_is_refused_and_nothing_appears(run, small_export, tmp_path, case):
    (tmp_path / "empty").mkdir()
    (tmp_path / "there").mkdir()
    source, output, options, message = {
        "run": (run, "model", {}, "is a run's directory: flaxbert export writes its model"),
        "nothing": (tmp_path / "empty", "model", {}, "is no model to import: expected a folder with bert_config.json"),
        "missing": (tmp_path / "nowhere", "model", {}, "nowhere is no model to import"),
        "lowercase": (small_export, "model", {"lowercase": True}, "says itself whether its tokenizer is cased"),
        "exists": (small_export, "there", {}, "there exists already"),
    }[case]
    with pytest.raises(ValueError, match=message):
        import_(source, tmp_path / output, **options)
    assert not (tmp_path / "model").exists() and list((tmp_path / "there").iterdir()) == []
