"""What a search leaves behind: the table, the card of its model, cells that diverged, and what reads its folder."""

import contextlib
import io
import json
import math

import pytest
from toy_tasks import classification, write_data, write_model

from flaxbert import cli, joins
from flaxbert.commands import Finetune
from flaxbert.finetuning.grid import cells_of
from flaxbert.finetuning.launch import FROZEN_EPOCHS, FROZEN_RATES, _cells
from flaxbert.finetuning.results import show, shown, summarize
from flaxbert.finetuning.search_folder import check_settings, write_settings
from flaxbert.finetuning.tasks import TASKS
from flaxbert.finetuning.tuning import Cell
from flaxbert.tools.load import load
from flaxbert.tools.report_tuning import read_tuning

SMALL = ("--batch-sizes", "16", "--epochs", "1", "--max-length", "16", "--train-examples", "16")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("search")
    write_model(home)
    write_data(home / "data", classification, train=32, dev=16)
    return home


def finetune(home, workdir, *flags):
    """(exit status, what stood on standard output and error)."""
    printed = io.StringIO()
    command = ["finetune", "classification", "--init", str(home / "model"), "--data", str(home / "data")]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        status = cli.main([*command, "--workdir", str(workdir), *SMALL, *flags])
    return status, printed.getvalue()


@pytest.fixture(scope="module")
def searched(home):
    """A search whose first cell diverges, and what it said."""
    status, said = finetune(home, home / "run", "--learning-rates", "1e30,5e-3", "--fresh", "True")
    assert status == cli.DONE
    return home / "run", said


def strict(path):
    """JSON that any other reader takes too."""
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{path} holds {name}"))


def test_a_cell_that_diverges_is_kept_as_such_and_the_others_go_on(searched):
    run, said = searched
    cell = strict(run / "cells" / "lr1e+30-batch16-epochs1-seed0.json")
    assert cell["diverged"] and set(cell["dev"].values()) == {None}
    last = strict(run / "results.json")["rows"][-1]
    assert (last["learning_rate"], last["seeds"], last["diverged"]) == (1e30, 1, 1)
    assert last["metrics"]["accuracy"] == {"mean": None, "deviation": None, "best": None}
    assert strict(run / "best" / "task.json")["cell"].startswith("lr0.005-")
    assert "learning rate 1e+30, batch 16, epochs 1: 1 of 1 runs diverged" in said


def test_a_search_of_nothing_but_diverging_cells_fails_and_trains_none_of_them_twice(home, tmp_path):
    flags = ("--learning-rates", "1e30")
    for trained in (True, False):
        status, said = finetune(home, tmp_path / "run", *flags)
        assert status == cli.USER_ERROR and "every run of the grid diverged" in said.splitlines()[-1]
        assert ("1 of 1" in said) == trained
    assert not (tmp_path / "run" / "best").exists()
    tuning = read_tuning(str(tmp_path / "run"))
    assert tuning.rows[0][-1] == "diverged" and tuning.best.startswith("Every run diverged")


def test_the_card_says_what_the_model_was_and_how_it_was_trained(searched):
    card = (searched[0] / "best" / "README.md").read_text()
    assert "Random parameters in the shape of `model`, not its pretrained ones, trained by flaxbert" in card
    for line in ("trained | all parameters", "training examples | 16 (drawn once from all)", "optimizer | adam",
                 "weight decay | 0.01", "type of matrix products | float32", "seed | 0"):  # fmt: skip
        assert f"| {line} |" in card, line


def test_the_folder_of_a_search_is_its_best_model_everywhere(searched, tmp_path, capsys):
    run, _ = searched
    assert load(run).architecture == "BertForSequenceClassification"
    assert joins.data_of(str(run)) == joins.data_of(str(run / "best"))
    assert joins._tokenizer_of(str(run), tmp_path) == joins._tokenizer_of(str(run / "best"), tmp_path)
    assert cli.main(["export", str(run), str(tmp_path / "export")]) == cli.DONE
    assert (tmp_path / "export" / "model.safetensors").is_file()
    assert cli.main(["fill-mask", str(run), "what is [MASK]"]) == cli.USER_ERROR
    assert "the model is a BertForSequenceClassification: it lacks" in capsys.readouterr().err


def test_a_search_without_a_model_yet_says_so(tmp_path):
    write_settings(tmp_path, {"task": "sst2"}, [])
    with pytest.raises(ValueError, match="is the folder of flaxbert finetune, and has no best/ yet"):
        load(tmp_path)


def test_a_report_shows_the_runs_that_have_ended_and_how_many_are_planned(searched):
    """The table of a finished search is an old one as soon as its grid has grown."""
    run, _ = searched
    ended = read_tuning(str(run))
    assert "not ended" not in ended.best and [row[0] for row in ended.rows] == ["0.005", "1e+30"]
    assert ended.rows[1][3:] == ["1, 1 diverged", "diverged", "diverged"]
    before = (run / "config.json").read_text()
    write_settings(run, json.loads(before)["search"], cells_of([1e30, 5e-3], [16], [1], range(3)))
    assert "has not ended: 2 of the 6 runs that it plans are done" in read_tuning(str(run)).best
    (run / "config.json").write_text(before)


def test_a_report_of_a_search_alone_says_what_is_wanted(searched, capsys):
    assert cli.main(["report", str(searched[0])]) == cli.USER_ERROR
    said = capsys.readouterr().err
    assert "is the folder of flaxbert finetune" in said and f"flaxbert report RUN {searched[0]}" in said


def result(rate, seed, scores, diverged=False):
    cell = {"learning_rate": rate, "batch_size": 16, "epochs": 1, "seed": seed}
    return {"cell": cell, "dev": scores, "diverged": diverged, "seconds": 1.0, "examples_per_second": None}


def test_no_line_of_the_table_is_cut_at_eighty_characters(tmp_path, capsys, monkeypatch):
    """Not with the most and longest metrics that there are, and rates as long as they come."""
    monkeypatch.setenv("COLUMNS", "80")
    names = ["f1", "exact_match", "has_answer_exact_match", "has_answer_f1", "no_answer_exact_match", "no_answer_f1"]
    results = [
        result(rate, seed, {name: 1.0 - seed for name in names}, diverged=seed == 2)
        for rate in (1.234567e-5, 5e-5) for seed in range(3)
    ]  # fmt: skip
    show(TASKS["squad2"], summarize(TASKS["squad2"], results, results[0]), tmp_path)
    said = capsys.readouterr().out
    heading = "rate batch epochs seeds metric mean best".split()
    assert heading in [line.split() for line in said.splitlines()]
    assert "…" not in said and all(len(line.rstrip()) <= 80 for line in said.splitlines() if "model:" not in line)
    rows = [line.split() for line in said.splitlines()]
    assert ["1.234567e-05", "16", "1", "2", "of", "3", "f1", "50.00", "±", "70.71", "100.00"] in rows
    assert sum(row[:1] == ["has_answer_f1"] and "±" in row for row in rows) == 2


def test_a_score_that_is_not_defined_is_null_and_one_seed_has_no_best(tmp_path, capsys):
    results = [result(5e-5, 0, {"spearman": None, "pearson": 0.5})]
    found = summarize(TASKS["stsb"], results, results[0])
    show(TASKS["stsb"], found, tmp_path)
    assert strict(tmp_path / "results.json")["rows"][0]["metrics"]["spearman"]["mean"] is None
    said = capsys.readouterr().out
    assert "undefined" in said and said.count("50.00") == 2, "the mean, and the best run's"
    assert shown(found["rows"][0]["metrics"]["pearson"]) == "50.00"


def test_two_rates_that_are_equal_to_six_digits_do_not_share_a_file():
    close = [Cell(rate, 16, 1, 0).name for rate in (1e-4, math.nextafter(1e-4, 1))]
    assert close[0] == "lr0.0001-batch16-epochs1-seed0" and len(set(close)) == 2
    assert "1 epoch," in Cell(1e-4, 16, 1, 0).described and "2 epochs," in Cell(1e-4, 16, 2, 0).described


@pytest.mark.parametrize("flags", [{"frozen": True}, {"bilstm_layers": "-1"}, {}])
def test_what_is_trained_on_a_frozen_encoder_has_settings_of_its_own(flags):
    cell, = _cells(Finetune("ner", "m", "d", "w", **flags), TASKS["ner"])
    expected = (FROZEN_RATES[0], FROZEN_EPOCHS[0]) if flags else (5e-5, 3)
    assert (cell.learning_rate, cell.epochs) == expected
    cell, = _cells(Finetune("ner", "m", "d", "w", learning_rates="2e-5", epochs="4", **flags), TASKS["ner"])
    assert (cell.learning_rate, cell.epochs) == (2e-5, 4)


def test_files_that_have_changed_are_named(tmp_path):
    files = {"train": "d/train.tsv", "dev": "d/dev.tsv", "test": "d/test.tsv"}
    write_settings(tmp_path, {"data": {"train": "a", "dev": "b"}}, [])
    with pytest.raises(ValueError, match="holds another search: d/dev.tsv has changed, d/test.tsv was not there;"):
        check_settings(tmp_path, {"data": {"train": "a", "dev": "c", "test": "d"}}, files)
