"""`flaxbert report`: what stands on the page is what the run wrote, however far the run has come."""

import html.parser
import json
import math
import re
import xml.etree.ElementTree

import numpy as np
import pytest

from flaxbert import cli
from flaxbert.config import Experiment, OptimizerConfig, TrainConfig
from flaxbert.phases import Phase, parts
from flaxbert.tools.load import load_run
from flaxbert.tools.report import write_report
from flaxbert.tools.report_charts import Chart, Curve, charts
from flaxbert.tools.report_masks import QUESTIONS
from flaxbert.tools.report_metrics import History, by_part, read_history
from flaxbert.tools.report_picture import draw, thinned
from flaxbert.training.lock import only_launch
from flaxbert.training.manifest import write_manifest
from flaxbert.training.run import read_run
from flaxbert.training.tensorboard import launches, open_board

SEARCH = {
    "task": "sst2", "init": "/home/<someone>/mini", "max_length": 64, "optimizer": "adam", "compute_dtype": "float32",
    "frozen": True, "fresh": False, "train_examples": None,
}  # fmt: skip
CELLS = [
    {"cell": {"learning_rate": rate, "batch_size": 16, "epochs": "<3>", "seed": seed}, "dev": {"accuracy": accuracy},
     "others": {"test": {"accuracy": 0.7991}}, "diverged": False, "loss": 0.5, "seconds": 4.5,
     "examples_per_second": None}
    for rate, seed, accuracy in ((5e-5, 0, 0.8002), (5e-5, 1, 0.8125), (5e-5, 2, 0.8248), (2e-5, 0, 0.5432))
]  # fmt: skip


def train_line(step, **changed):
    return {
        "step": step, "split": "train", "loss": 8.7, "mlm_loss": 8.0, "perplexity": 2980.9, "mlm_accuracy": 0.05,
        "nsp_loss": 0.7, "nsp_accuracy": 0.55, "nsp_random": 0.6, "learning_rate": 1e-4, "gradient_norm": 2.0,
        "skipped_not_finite": 0, "skipped_spikes": 0, "fill": 0.9, "seconds": 3.0, "save_seconds": 0.0,
        "sequences_per_second": 30.0, "tokens_per_second": 1350.0, "mfu": None,
    } | changed  # fmt: skip


def held_out_line(step, **changed):
    return {
        "step": step, "split": "validation", "loss": 7.7, "mlm_loss": 7.125, "perplexity": 1242.6, "mlm_accuracy": 0.06,
        "nsp_loss": 0.6, "nsp_accuracy": 0.6625, "nsp_random": 0.4,
    } | changed  # fmt: skip


def write_lines(run, lines, end=""):
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + end)


def page_of(run, tmp_path, floor=None, tuned=()):
    write_report(str(run), tuned, str(tmp_path / "page.html"), lambda run: floor, lambda sentence: None)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//|<script|url\(h""", text), "the page needs a network"
    _Nesting().check(text)
    return text


class _Nesting(html.parser.HTMLParser):
    """Every element that is opened is closed in its turn."""

    def check(self, text):
        self.open = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def charts_on(page):
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    return {xml.etree.ElementTree.fromstring(svg).get("aria-label").removesuffix(" over steps") for svg in drawings}


def search_folder(path, cells=CELLS):
    (path / "cells").mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"search": SEARCH, "planned": list("0123")}))
    for number, cell in enumerate(cells):
        (path / "cells" / f"{number}.json").write_text(json.dumps(cell))
    return str(path)


def test_a_run_with_all_there_is_to_tell_is_told_on_one_page(run, tmp_path):
    lines = [train_line(20, skipped_spikes=2), train_line(40, save_seconds=1.5, mfu=0.375, mlm_loss=7.5)]
    write_lines(run, [*lines, held_out_line(40)])
    (run / "checkpoints" / "70").mkdir(parents=True)
    write_manifest(run / "checkpoints" / "70")
    page = page_of(run, tmp_path, floor=6.89, tuned=(search_folder(tmp_path / "sst2 <i>"),))
    assert charts_on(page) == {
        "Masked tokens: loss", "Masked tokens: accuracy", "Next sentence: loss", "Next sentence: accuracy",
        "Learning rate", "Gradient norm", "Throughput", "MFU", "Fill", "Skipped updates", "Waits for saves",
    }  # fmt: skip
    for words in (
        "7.125 nats", "frequencies alone reach 6.89",
        "unigram entropy, 6.89", "66.2%", "commoner label: 60.0%", "not finite: 0; spikes: 2",
        "beside it: 1.5\u00a0s", "37.5%", "3 layers, hidden size 24", "40 of 1,000,000 steps", "<td>&lt;3&gt;</td>",
        "no launch is training now", "tales (fingerprint c0ffee)",
        "81.25\u00a0±\u00a01.23 (best\u00a082.48)", ">54.32<", "test: accuracy 79.91",
        "the output layer alone is trained", "sst2 &lt;i&gt;", "/home/&lt;someone&gt;/mini",
    ):  # fmt: skip
        assert words in page, words
    model, _ = load_run(run, 70)
    for question in QUESTIONS:
        for fill in model.fill_mask(question, 3)[0]:
            assert f"“{html.escape(fill.token)}” {fill.probability:.0%}" in page


def test_the_parameters_told_are_those_of_the_export(run, small_config, small_params, tmp_path):
    from flaxbert.interop.architectures import Checkpoint, parameter_count

    assert f"{parameter_count(Checkpoint(small_config, small_params)):,} parameters" in page_of(run, tmp_path)


def test_a_run_is_shown_however_far_it_has_come(run, tmp_path):
    page = page_of(run, tmp_path)
    assert "No line of metrics is written yet" in page and "No checkpoint is there yet" in page
    write_lines(run, [train_line(20)], end='{"step": 40, "split": "train", "lo')
    with only_launch(str(run)):
        page = page_of(run, tmp_path)
    assert "The run is going on: 20 of" in page and "not evaluated yet" in page
    assert "Masked tokens: loss" in charts_on(page) and "MFU" not in charts_on(page)
    assert "always the commoner label" in page, "a chart that speaks of its dotted line has one"
    assert "the peak of these devices is not known" in page and "No update was skipped" in page


def test_a_loss_that_is_no_number_is_a_gap_and_is_told(run, tmp_path):
    lost = train_line(40, loss=None, mlm_loss=None, gradient_norm=None, skipped_not_finite=20)
    write_lines(run, [train_line(20), lost, train_line(60), held_out_line(60, loss=None, mlm_loss=None)])
    page = page_of(run, tmp_path)
    assert "2 lines have a loss that is not finite" in page and "not finite</b>" in page
    assert "Skipped updates" in charts_on(page)


@pytest.mark.parametrize("name, number, words", [
    ("nsp_random", "1.2", "nsp_random is 1.2, expected a share, from 0 to 1$"),
    ("nsp_random", "-0.1", "nsp_random is -0.1"), ("step", "Infinity", "step is inf, expected a finite number$"),
    ("loss", "1" + "0" * 400, "loss is 10{39}, expected"), ("seconds", "NaN", "seconds is nan, expected"),
])  # fmt: skip
def test_a_number_that_no_run_writes_is_told_of_with_its_file_and_name(run, name, number, words):
    good, bad = json.dumps(held_out_line(20)), json.dumps(held_out_line(20) | {name: "here"})
    (run / "metrics.jsonl").write_text(f"{good}\n" + bad.replace('"here"', number) + "\n")
    with pytest.raises(ValueError, match=f"^{run}/metrics.jsonl: {words}"):
        read_history(run, read_run(str(run)))


def test_a_run_without_pairs_has_no_chart_of_them(run, tmp_path):
    write_lines(run, [{name: n for name, n in train_line(20).items() if not name.startswith("nsp")}])
    assert not any("sentence" in title for title in charts_on(page_of(run, tmp_path)))


def test_a_checkpoint_that_cannot_be_read_is_told_of(run, tmp_path, monkeypatch):
    """As one is that a run deletes meanwhile."""
    monkeypatch.undo()  # the real reader, which finds nothing there
    (run / "checkpoints" / "70").mkdir(parents=True)
    write_manifest(run / "checkpoints" / "70")
    page = page_of(run, tmp_path)
    assert "Step 70: " in page and "cannot be restored" in page and "likeliest" not in page


def phased():
    return parts(Experiment(
        optimizer=OptimizerConfig(warmup_steps=1), train=TrainConfig(steps=100),
        phases=(Phase(steps=60), Phase(sequence_length=512)),
    ))  # fmt: skip


def test_curves_hold_the_numbers_of_the_lines_and_are_not_joined_across_a_phase():
    train = [
        train_line(step, mlm_loss=None if step == 40 else step / 10, phase=int(step > 60)) for step in (20, 40, 60, 80)
    ]
    held_out = [held_out_line(60, mlm_accuracy=0.25, phase=0), held_out_line(80, mlm_accuracy=0.5, phase=1)]
    history = History(phased(), by_part(train, phased()), by_part(held_out, phased()), [], False)
    found = {chart.title: chart for chart in charts(history, "Next sentence", 6.9)}
    loss, accuracy = found["Masked tokens: loss"], found["Masked tokens: accuracy"]
    np.testing.assert_equal(loss.curves[0].stretches, [([20, 40, 60], [2, math.nan, 6]), ([80], [8])])
    assert loss.level[1] == 6.9
    assert accuracy.curves[1].stretches == [([60], [25]), ([80], [50])]
    common = found["Next sentence: accuracy"].curves[2]
    assert common.stretches[0][1] == pytest.approx([60]), "the commoner label has 1 - nsp_random"
    guessed = found["Next sentence: loss"].curves[2].stretches[0][1]
    assert guessed == pytest.approx([-0.4 * math.log(0.4) - 0.6 * math.log(0.6)])
    drawn = draw(loss, [60], [40], 80)
    assert all(words in drawn for words in ("phase 2", "launched again", "held-out", "nats a token", ">step<"))


def test_a_page_on_many_thousand_lines_is_small_and_loses_no_skipped_update(run, tmp_path):
    write_lines(run, [train_line(step, mlm_loss=8 + math.sin(step), skipped_spikes=1) for step in range(1, 20_001)])
    assert len(page_of(run, tmp_path)) < 1_500_000
    updates = Curve("spikes", [([*range(20_000)], [1.0] * 20_000)], "other bars")
    assert ">50<" in draw(Chart("Skipped", "updates", [updates], "", counts=True), [], [], 20_000), "50 in each bar"
    steps, counted = thinned((list(range(1000)), [1.0] * 999 + [math.nan]), np.nansum)
    assert len(steps) <= 400 and counted.sum() == 999 and steps[-1] == 999


def test_launches_are_read_from_what_each_began_to_draw(tmp_path):
    assert launches(tmp_path / "none") == []
    for step in (0, 449):
        with open_board(tmp_path / str(step), step, print) as write:
            write(train_line(step + 1))
        path = next((tmp_path / str(step)).iterdir())
        path.rename(tmp_path / f"{path.name}-{step}")
    (tmp_path / "events.out.tfevents.cut").write_bytes(b"\x18\0\0")
    assert [step for _, step in launches(tmp_path)] == [0, 449]


def test_the_command_draws_no_entropy_of_a_corpus_that_is_gone(run, tmp_path, capsys):
    write_lines(run, [train_line(20), held_out_line(20)])
    assert cli.main(["report", str(run), "--output", str(tmp_path / "a.html")]) == cli.DONE
    assert "the corpus is not where it was" in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_a_search_under_way_has_a_table_of_the_runs_that_have_ended(run, tmp_path):
    begun, on_its_way = search_folder(tmp_path / "begun", []), search_folder(tmp_path / "on", CELLS[:3])
    (tmp_path / "on" / "results.json").write_text("that of a smaller grid")
    page = page_of(run, tmp_path, tuned=(begun, on_its_way))
    assert "has not ended: 0 of the 4 runs" in page and "has not ended: 3 of the 4 runs" in page
    assert page.count("81.25\u00a0±\u00a01.23 (best\u00a082.48)") == 1


@pytest.mark.parametrize("arguments, words", [
    (("{tmp}",), "is not a run's directory"), (("{tuned}",), "flaxbert report RUN"),
    (("{run}", "{run}"), "no folder of flaxbert finetune"), (("{run}", "{tmp}/none"), "no folder of flaxbert finetune"),
    (("{run}", "--output", "{tmp}/a.pdf"), ".html"), (("{run}", "--output", "{tmp}/no/a.html"), "there is no folder"),
    (("{run}", "{cut}"), "0.json is damaged: delete it"),
])  # fmt: skip
def test_a_mistake_is_answered_in_one_sentence(run, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    places = {"tmp": str(tmp_path), "run": str(run), "tuned": search_folder(tmp_path / "tuned")}
    places["cut"] = search_folder(tmp_path / "cut", [{}])
    assert cli.main(["report", *(argument.format(**places) for argument in arguments)]) == cli.USER_ERROR
    said = capsys.readouterr().err
    assert words in said and len(said.splitlines()) == 1
    assert not list(tmp_path.glob("*.html"))
