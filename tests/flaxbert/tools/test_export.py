"""`flaxbert export`: from a run's directory to a Hugging Face directory."""

import json

import ml_dtypes
import numpy as np
import pytest
import tokenizers

from flaxbert.interop import huggingface
from flaxbert.interop.architectures import ARCHITECTURES
from flaxbert.tools.export import export, held_out_results


def write_metrics(run):
    lines = [
        {"step": 50, "split": "validation", "mlm_loss": 5.5, "perplexity": 244.7},
        {"step": 60, "split": "train", "mlm_loss": 5.25},
        {"step": 70, "split": "validation", "mlm_loss": 5.0, "perplexity": 148.4},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "metrics.jsonl").write_text(text + '{"step": 80, "spl')


def test_a_run_becomes_the_directory_that_its_parameters_make(run, small_export, tmp_path, capsys):
    write_metrics(run)
    export(str(run), str(tmp_path / "model"))
    names = {path.name for path in small_export.iterdir()}
    assert {path.name for path in (tmp_path / "model").iterdir()} == names
    for name in names - {"README.md"}:
        assert (tmp_path / "model" / name).read_bytes() == (small_export / name).read_bytes()
    printed = capsys.readouterr().out
    assert "Step 70" in printed and "AutoModelForPreTraining.from_pretrained" in printed


def test_the_card_tells_corpus_results_and_size_but_no_path(run, tmp_path):
    write_metrics(run)
    export(str(run), str(tmp_path / "model"))
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| name | tales |" in card and "someone" not in card
    assert "| masked-token perplexity | 148.40 |" in card and "at step 70" in card
    # V D + positions D + segments D + embedding norm; three layers; pooler; MLM head; NSP head.
    layer = 4 * (24 * 24 + 24) + 2 * 24 * 40 + 40 + 24 + 4 * 24
    parameters = (90 + 48 + 2 + 2) * 24 + 3 * layer + 2 * (24 * 24 + 24) + 2 * 24 + 90 + 2 * 24 + 2
    assert f"{parameters:,} parameters" in card


def test_the_card_tells_whether_tokenizer_json_gives_the_ids_of_the_corpus(run, tmp_path):
    export(str(run), str(tmp_path / "model"))
    card = (tmp_path / "model" / "README.md").read_text()
    assert card.count("whose ids are not those of the corpus | 0 of 2,000 |") == 2
    assert "does not read every text" not in card

    path = run / "tokenizer" / "tokenizer.json"
    other = tokenizers.Tokenizer.from_file(str(path))
    other.normalizer = tokenizers.normalizers.Replace("e", "a")
    other.save(str(path))
    export(str(run), str(tmp_path / "other"))
    assert "does not read every text" in (tmp_path / "other" / "README.md").read_text()


def test_an_earlier_step_is_exported_with_its_own_results(run, tmp_path):
    write_metrics(run)
    export(str(run), str(tmp_path / "model"), step=60)
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| masked-token perplexity | 244.70 |" in card and "step 60 of" in card


def test_a_run_without_an_evaluation_has_no_results(run):
    assert held_out_results(run / "metrics.jsonl", 70) == {}
    write_metrics(run)
    assert held_out_results(run / "metrics.jsonl", 49) == {}


@pytest.mark.parametrize("line", [b"3", b"null", b'{"split": "validation", "step": null}', b'{"step": 70}', b"\xff"])
def test_a_line_of_the_metrics_that_was_edited_is_passed_over(run, line):
    write_metrics(run)
    text = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(line + b"\n" + text + b"\n" + line + b"\n")
    assert held_out_results(run / "metrics.jsonl", 70)["step"] == 70


def test_the_card_tells_what_a_later_launch_changed(run, tmp_path):
    settings = json.loads((run / "config.json").read_text())
    settings["changes"] = [{"step": 40, "settings": {"train.steps": [40, 44]}}]
    (run / "config.json").write_text(json.dumps(settings))
    export(str(run), str(tmp_path / "model"))
    assert "From step 40 on, train.steps was 44 instead of 40" in (tmp_path / "model" / "README.md").read_text()


def test_a_folder_that_holds_no_model_is_refused(small_export, tmp_path):
    with pytest.raises(ValueError, match="no directory: expected that of a run, an export"):
        export(str(tmp_path / "nowhere"), str(tmp_path / "model"))
    with pytest.raises(ValueError, match="step 3 is given, and .* is not a run's directory"):
        export(str(small_export), str(tmp_path / "model"), step=3)
    assert not (tmp_path / "model").exists()


def test_an_export_of_an_export_is_bit_equal(small_export, tmp_path):
    export(str(small_export), str(tmp_path / "again"))
    written = (tmp_path / "again" / "model.safetensors").read_bytes()
    assert written == (small_export / "model.safetensors").read_bytes()


@pytest.mark.parametrize("architecture", ["BertModel", "BertForMaskedLM", "BertForNextSentencePrediction"])
def test_a_class_is_written_with_its_parts_alone(run, tmp_path, small_params, architecture, capsys):
    export(str(run), str(tmp_path / "model"), architecture=architecture)
    found = huggingface.read(tmp_path / "model")
    assert found.architecture == architecture and set(found.params) == set(ARCHITECTURES[architecture].parts)
    kernel = found.params["encoder"]["layers"]["mlp"]["up"]["kernel"]
    np.testing.assert_array_equal(kernel, small_params["encoder"]["layers"]["mlp"]["up"]["kernel"])
    assert f"`{architecture}`" in (tmp_path / "model" / "README.md").read_text()
    assert f"transformers.{ARCHITECTURES[architecture].auto_class}.from_pretrained" in capsys.readouterr().out


def test_a_class_whose_parts_the_model_lacks_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="be written as BertForSequenceClassification: it lacks the output layer"):
        export(str(run), str(tmp_path / "model"), architecture="BertForSequenceClassification")
    with pytest.raises(ValueError, match="architecture 'Bert' is not one of BertForPreTraining"):
        export(str(run), str(tmp_path / "model"), architecture="Bert")
    assert not (tmp_path / "model").exists()


def test_bfloat16_halves_the_weights_and_says_what_it_moves(run, small_export, tmp_path, small_params, capsys):
    export(str(run), str(tmp_path / "model"), dtype="bfloat16")
    size, full = ((folder / "model.safetensors").stat().st_size for folder in (tmp_path / "model", small_export))
    assert size < 0.6 * full
    rounded = np.asarray(small_params["nsp"]["kernel"]).astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(huggingface.read(tmp_path / "model").params["nsp"]["kernel"], rounded)
    assert "bfloat16 moves no output by more than 0." in capsys.readouterr().out


def test_a_directory_that_says_something_else_never_appears(run, tmp_path, monkeypatch):
    def swapped(params, *rest):
        tensors = to_tensors(params, *rest)
        names = "bert.encoder.layer.0.output.dense.bias", "bert.encoder.layer.1.output.dense.bias"
        tensors[names[0]], tensors[names[1]] = tensors[names[1]], tensors[names[0]]
        return tensors

    to_tensors = huggingface.to_tensors
    monkeypatch.setattr(huggingface, "to_tensors", swapped)
    with pytest.raises(RuntimeError, match="gives another hidden than the one written"):
        export(str(run), str(tmp_path / "model"))
    assert not [path for path in tmp_path.iterdir() if "model" in path.name]


def test_an_output_that_exists_is_refused(run, tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match="model exists already"):
        export(str(run), str(tmp_path / "model"))
