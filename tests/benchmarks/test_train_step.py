"""The parts of the comparison with torch's step that need no torch."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from bare_machine import LACKING, ROOT, bare_environment, write_batch_file

from benchmarks.train_step import ours
from benchmarks.train_step.__main__ import cases_of, main, parse
from benchmarks.train_step.case import Case, batches_of, make_experiment, without_dropout
from benchmarks.train_step.compare import check_losses, compare, describe, numbers
from flaxbert.training.attention_choice import with_attention
from flaxbert.training.metrics import flops_per_row


@pytest.fixture
def batches(tmp_path):
    """The path of a file of batches."""
    write_batch_file(tmp_path / "batches.npz")
    return str(tmp_path / "batches.npz")


def make_case(batches, name="tiny-16", full_rows=False, device="cpu", batch_size=4):
    experiment = make_experiment(name, batches, None, batch_size, None, device)
    return Case(name, experiment, batches, full_rows, device, 2, "default")


def test_our_step_runs_where_the_libraries_of_pipeline_and_command_line_are_missing(batches, tmp_path):
    code = f"""
import importlib.util, json
from benchmarks.train_step import __main__ as program
from benchmarks.train_step.ours import Ours
options = program.parse(["--batches", {batches!r}, "--cases", "tiny-16", "--batch-size", "tiny-16=4"])
case, = program.cases_of(options, "cpu")
ours = Ours(case, {str(tmp_path / "weights")!r})
before, seconds = ours.loss(), ours.block(1, 2)
there = [name for name in {LACKING} if importlib.util.find_spec(name) is not None]
print(json.dumps([there, before, ours.loss(), seconds, int(ours.state.step)]))
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT, check=False,
        env=bare_environment(tmp_path),
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    there, before, after, seconds, steps = json.loads(run.stdout.splitlines()[-1])
    assert there == []
    assert before == pytest.approx(np.log(90) + np.log(2), rel=0.02), "an untrained model guesses"
    assert after < before and seconds > 0 and steps == 3


def test_losses_that_differ_are_refused_with_both_numbers(batches):
    case = make_case(batches)
    check_losses(case, {"flaxbert": 5.0, "eager": 5.00002})
    with pytest.raises(ValueError, match="first loss of eager is 5.001 and ours is 5, .* do not compute the same"):
        check_losses(case, {"flaxbert": 5.0, "eager": 5.001})
    with pytest.raises(ValueError, match="first loss of stock is nan"):
        check_losses(case, {"flaxbert": 5.0, "eager": 5.0, "stock": float("nan")})
    check_losses(make_case(batches, device="gpu"), {"flaxbert": 5.0, "eager": 5.0002})


def test_speeds_follow_from_the_median_and_ratios_from_each_round(batches):
    case = make_case(batches)
    found = numbers(case, "NVIDIA H200", seconds=[0.2, 0.4, 0.3], ours=[0.1, 0.1, 0.3], product=1e9)
    used = np.mean([(batch["sequence_ids"] > 0).mean() for batch in batches_of(case)])
    flops = 4 * flops_per_row(case.experiment.model, 16, 3, 1)
    assert describe(case)["flops_per_step"] == flops
    assert found["step_milliseconds"] == pytest.approx(300)
    assert found["sequences_per_second"] == pytest.approx(4 / 0.3)
    assert found["tokens_per_second_with_padding"] == pytest.approx(4 * 16 / 0.3)
    assert found["tokens_per_second"] == pytest.approx(4 * 16 * used / 0.3)
    assert found["mfu"] == pytest.approx(flops / 0.3 / 989e12)
    assert found["share_of_measured_peak"] == pytest.approx(flops / 0.3 / 1e9)
    assert found["flaxbert_is_faster_by"] == pytest.approx({"medians": 3.0, "least": 1.0, "most": 4.0})
    assert numbers(case, "cpu", [0.1], [0.1], 1e9)["mfu"] is None


def test_batches_are_distinct_and_full_rows_have_no_padding(batches):
    drawn, full = batches_of(make_case(batches)), batches_of(make_case(batches, full_rows=True))
    assert len(drawn) == 6 and len(full) == 3
    assert len(np.unique(np.concatenate([batch["input_ids"] for batch in drawn]), axis=0)) == 24
    assert all((batch["sequence_ids"] > 0).all() for batch in full)
    assert describe(make_case(batches, full_rows=True))["fill"] == 1 > describe(make_case(batches))["fill"]


@pytest.mark.parametrize("arguments, sentence", [
    (["--cases", "enormous-16"], "case enormous-16 is not one of tiny, mini"),
    (["--cases", "tiny-128"], "no rows of shape 128: it has 16"),
    (["--cases", "tiny-16", "--batch-size", "mini-16=4"], "--batch-size mini-16=4: expected a case of this run"),
    (["--cases", "tiny-16", "--batch-size", "tiny-16=many"], "--batch-size tiny-16=many: expected"),
    (["--cases", "tiny-16", "--vocab-size", "50"], "--vocab-size 50 is less than that of .*batches.npz, 90"),
])  # fmt: skip
def test_what_cannot_be_run_is_said_in_one_sentence(batches, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        list(cases_of(parse(["--batches", batches, *arguments]), "cpu"))


def test_a_batch_larger_than_the_file_is_refused(batches):
    with pytest.raises(ValueError, match="case tiny-16: a batch of 25 is more than the 24 rows of"):
        batches_of(make_case(batches, batch_size=25))
    with pytest.raises(ValueError, match="a batch of 13 is more than the 12 rows without padding of"):
        batches_of(make_case(batches, full_rows=True, batch_size=13))


def test_a_contender_takes_its_modules_from_another_checkout(batches, tmp_path, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")  # the tests' several devices
    other = tmp_path / "other"
    shutil.copytree(ROOT, other, ignore=shutil.ignore_patterns(".*", "*.egg-info", "tests", "docs", "results"))
    source = other / "benchmarks" / "train_step" / "ours.py"
    source.write_text(source.read_text().replace("def peak_memory(self) -> int | None:", '''def peak_memory(self):
        return 12345

    def unused(self):'''))
    found = compare(make_case(batches), "cpu", [], {"before": str(other)}, rounds=1, steps=1)["contenders"]
    assert {name: each["peak_memory_bytes"] for name, each in found.items()} == {"flaxbert": None, "before": 12345}
    assert found["before"]["first_loss"] == found["flaxbert"]["first_loss"]
    assert str(other) not in sys.path


@pytest.mark.parametrize("given", ["before", "before=nowhere", "=.", "eager=."])
def test_a_checkout_that_is_none_is_refused(batches, capsys, given):
    with pytest.raises(SystemExit):
        parse(["--batches", batches, "--against", given])
    assert f"--against {given}" in capsys.readouterr().err


def test_cases_that_the_time_was_too_short_for_are_named_in_the_files(batches, tmp_path, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")
    result, page = tmp_path / "result.json", tmp_path / "result.md"
    main([
        "--batches", batches, "--cases", "tiny-16,tiny-16x2", "--batch-size", "tiny-16=4,tiny-16x2=4", "--peers", "",
        "--rounds", "1", "--steps", "1", "--minutes", "0.0001", "--json", str(result), "--markdown", str(page),
    ])  # fmt: skip
    found = json.loads(result.read_text())
    assert list(found["cases"]) == ["tiny-16"] and found["left_out"] == ["tiny-16x2"]
    assert "Left out, for the time was over: tiny-16x2." in page.read_text()


@pytest.mark.slow
def test_our_own_step_without_dropout_is_a_contender(batches, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")
    case = make_case(batches)
    model = without_dropout(case).experiment.model
    assert (model.dropout, model.attention_dropout) == (0, 0)
    found = compare(case, "cpu", ["undropped"], {}, rounds=1, steps=1)
    assert found["attention"] == "xla" and found["contenders"]["undropped"]["step_milliseconds"] > 0
    assert found["contenders"]["undropped"]["first_loss"] == found["contenders"]["flaxbert"]["first_loss"]


def test_the_step_is_built_with_the_attention_that_is_chosen(batches, tmp_path, monkeypatch):
    asked = []

    def choose(experiment, mesh, say, folder):
        say("attention by fused (as this test wants it)")
        return with_attention(experiment, "fused")

    def build(experiment, mesh):
        asked.append(experiment.train.attention)
        raise Stop

    class Stop(Exception):
        pass

    monkeypatch.setattr(ours, "chosen", choose)
    monkeypatch.setattr(ours, "build_functions", build)
    monkeypatch.setattr(ours, "check_device", lambda case: None)
    with pytest.raises(Stop):
        ours.Ours(make_case(batches), str(tmp_path / "weights"))
    assert asked == ["fused"]


def test_a_case_that_fails_is_named_and_the_others_go_on(batches, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("XLA_FLAGS")
    page = tmp_path / "result.md"
    with pytest.raises(SystemExit, match="train_step: tiny-16x2: not measured"):
        main([
            "--batches", batches, "--cases", "tiny-16x2,tiny-16", "--batch-size", "tiny-16=4,tiny-16x2=10000",
            "--peers", "", "--rounds", "1", "--steps", "1", "--markdown", str(page),
        ])  # fmt: skip
    assert "a batch of 10000 is more than" in capsys.readouterr().out
    told = page.read_text()
    assert "failed: ValueError: case tiny-16x2" in told and "| tiny-16, 4 rows, float32, xla," in told


def test_rounds_end_with_the_minutes(batches, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")
    found = compare(make_case(batches), "cpu", [], {}, rounds=9, steps=1, deadline=0.0)["contenders"]["flaxbert"]
    assert len(found["milliseconds_of_each_round"]) == 1


def test_dropout_of_attention_alone(batches):
    options = parse(["--batches", batches, "--cases", "tiny-16", "--attention-dropout", "0", "--attention", "fused"])
    (case,) = cases_of(options, "cpu")
    model, train = case.experiment.model, case.experiment.train
    assert (model.dropout, model.attention_dropout, train.attention) == (0.1, 0.0, "fused")
