"""`flaxbert export`: from a run's directory to a Hugging Face directory."""

import json

import pytest
import tokenizers

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


def test_a_folder_that_is_no_run_is_refused(small_export, tmp_path):
    for folder in (small_export, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="is not a run's directory"):
            export(str(folder), str(tmp_path / "model"))
    assert not (tmp_path / "model").exists()


def test_an_output_that_exists_is_refused(run, tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match="model exists already"):
        export(str(run), str(tmp_path / "model"))
