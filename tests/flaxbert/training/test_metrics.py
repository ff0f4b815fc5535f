"""Numbers and where they go: FLOPs by the formula, lines that survive a crash, charts that open."""

import json
import math
import subprocess
import sys

import pytest

from flaxbert.config import PRESETS, ModelConfig
from flaxbert.terminal import Lines
from flaxbert.training import metrics
from flaxbert.training.metrics import flops_per_row, open_report, peak_flops

BASE = ModelConfig(vocab_size=30_522)


def train_record(step, **more):
    return {
        "step": step, "split": "train", "loss": 7.5, "mlm_loss": 7.0, "perplexity": 1096.6, "mlm_accuracy": 0.1,
        "nsp_loss": 0.5, "nsp_accuracy": 0.7, "nsp_random": 0.6, "learning_rate": 1e-4, "gradient_norm": 1.0,
        "fill": 0.9, "seconds": 2.0, "sequences_per_second": 50.0, "tokens_per_second": 5760.0, "mfu": None,
    } | more  # fmt: skip


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_base_at_128_costs_0_516_gigaflops_a_token():
    """The custom counts all of the last layer and says 0.546."""
    assert flops_per_row(BASE, 128, 20, 1) / 128 == pytest.approx(0.5157e9, rel=1e-4)
    assert flops_per_row(BASE, 128, 20, 108) / 128 == pytest.approx(0.5463e9, rel=1e-4), "where the heads read all"
    assert flops_per_row(BASE, 128, 20, 500) == flops_per_row(BASE, 128, 20, 108), "there is no more than all"


@pytest.mark.parametrize("name, length", [("tiny", 128), ("base", 512), ("large", 128)])
def test_flops_are_those_of_the_products_counted_one_by_one(name, length):
    model = PRESETS[name]
    d, f, v, p = model.hidden_size, 4 * model.hidden_size, 1000, 20
    multiply_adds = p * (d * d + d * v)  # transform, and the logits
    for read in [length] * (model.num_layers - 1) + [p + 2]:  # two sequences in a row
        multiply_adds += (
            2 * length * d * d  # key and value
            + 2 * read * d * d  # query and output
            + 2 * read * length * d  # scores, and the sum of values
            + 2 * read * d * f  # up and down
        )
    expected = 3 * 2 * multiply_adds  # the backward pass costs two forward ones; a multiply-add counts two
    sized = ModelConfig(
        vocab_size=v, num_layers=model.num_layers, hidden_size=model.hidden_size, num_heads=model.num_heads
    )
    assert flops_per_row(sized, length, p, 2) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind, peak", [
    ("NVIDIA H200", 989e12), ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA A100-SXM4-40GB", 312e12), ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12), ("TPU v5e", 197e12), ("TPU v5p", 459e12), ("TPU v5", 459e12), ("TPU v6 lite", 918e12),
    ("cpu", None), ("some new device", None),
])  # fmt: skip
def test_the_peak_of_a_device_is_known_or_null(kind, peak):
    assert peak_flops(kind) == peak


def test_records_are_written_as_they_come(tmp_path):
    with open_report(str(tmp_path), 0, 10) as report:
        report.record(train_record(2))
        assert lines(tmp_path) == [train_record(2)], "a reader need not wait for the end"
        report.record({"step": 2, "split": "validation", "loss": 7.0})
    assert lines(tmp_path) == [train_record(2), {"step": 2, "split": "validation", "loss": 7.0}]


def test_a_loss_that_is_no_number_is_null_and_the_line_is_json(tmp_path):
    with open_report(str(tmp_path), 0, 10) as report:
        report.record({"step": 1, "split": "train", "mlm_loss": math.nan, "loss": math.inf, "mlm_accuracy": 0.5})
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail) == {
        "step": 1, "split": "train", "mlm_loss": None, "loss": None, "mlm_accuracy": 0.5
    }  # fmt: skip


def test_lines_of_steps_to_be_done_again_are_dropped(tmp_path):
    with open_report(str(tmp_path), 0, 10) as report:
        for step in (2, 4, 6):
            report.record(train_record(step))
            report.record({"step": step, "split": "validation", "loss": 7.0})
    with open_report(str(tmp_path), 4, 10) as report:
        assert [(line["step"], line["split"]) for line in lines(tmp_path)] == [
            (2, "train"), (2, "validation"), (4, "train"), (4, "validation")
        ]  # fmt: skip
        report.record(train_record(6, loss=1.0))
    assert lines(tmp_path)[-1] == train_record(6, loss=1.0)
    assert len(lines(tmp_path)) == 5


@pytest.mark.parametrize("tail", ['{"step": 3, "split": "tr', '{"step": 3}', "\x00\x00\x00", '"text"\n', "[]\n", "3\n"])
def test_a_last_line_cut_short_is_dropped(tmp_path, tail):
    with open_report(str(tmp_path), 0, 10) as report:
        report.record(train_record(2))
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(tail)
    with open_report(str(tmp_path), 4, 10) as report:
        report.record(train_record(6))
    assert [line["step"] for line in lines(tmp_path)] == [2, 6]


def scalars(folder):
    """Every (tag, step, value) of the event files, read without TensorFlow by the framing of TFRecord."""
    import struct

    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("events.*"), key=lambda path: path.stat().st_mtime_ns):
        data, start = path.read_bytes(), 0
        while start < len(data):
            size = struct.unpack("<Q", data[start:start + 8])[0]
            event = Event.FromString(data[start + 12:start + 12 + size])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            start += 16 + size
    return found


def test_tensorboard_has_every_number_under_its_split(tmp_path):
    with open_report(str(tmp_path), 0, 10) as report:
        report.record(train_record(2))
        report.record({"step": 2, "split": "validation", "loss": 6.5})
    found = scalars(tmp_path / "tensorboard")
    assert ("train/loss", 2, 7.5) in found
    assert ("validation/loss", 2, 6.5) in found
    numbers = {f"train/{name}" for name, value in train_record(2).items() if isinstance(value, float)}
    assert {tag for tag, _, _ in found} == numbers | {"validation/loss"}, "no step, no split, nothing that is null"


def test_tensorboard_gets_no_number_that_is_none(tmp_path, caplog):
    with open_report(str(tmp_path), 0, 10) as report:
        report.record(train_record(2, mlm_loss=math.nan, perplexity=math.inf))
    assert {"train/mlm_loss", "train/perplexity"}.isdisjoint(tag for tag, _, _ in scalars(tmp_path / "tensorboard"))
    assert caplog.text == "", "tensorboardX warns of each such value, without its name"


def test_training_goes_on_where_tensorboard_cannot_write(tmp_path, capsys):
    (tmp_path / "tensorboard").write_text("in the way")
    with open_report(str(tmp_path), 0, 10) as report:
        for step in (2, 4):
            report.record(train_record(step))
    assert capsys.readouterr().err.count("TensorBoard is off, training goes on") == 1
    assert len(lines(tmp_path)) == 2


def test_the_console_says_what_matters(tmp_path, capsys):
    with open_report(str(tmp_path), 0, 1000) as report:
        report.say("resumed at step 1")
        report.step(2)
        report.record(train_record(2))
        report.record(train_record(4, mfu=0.412))
        report.record({"step": 4, "split": "validation", "loss": 7.0, "mlm_loss": 6.0, "mlm_accuracy": 0.25,
                       "perplexity": 403.4})  # fmt: skip
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4
    assert said[0] == "resumed at step 1"
    for word in ("2/1,000", "mlm 7.000 (10.0%)", "nsp 0.500 (70.0%, majority 60.0%)", "50 seq/s", "5,760 tok/s"):
        assert word in said[1]
    assert "MFU" not in said[1] and "MFU 41.2%" in said[2]
    assert "perplexity 403.4" in said[3] and "seq/s" not in said[3]


BRACKETS = "checkpoint /runs/[lamb]/1 could not be saved: [/dev/sda1] is full"


def test_a_sentence_keeps_its_brackets(tmp_path, capsys):
    with open_report(str(tmp_path), 0, 10) as report:
        report.say(BRACKETS)
    assert capsys.readouterr().err == BRACKETS + "\n"


def test_a_sentence_keeps_its_brackets_on_a_terminal_too(tmp_path, monkeypatch):
    import io

    screen = io.StringIO()
    monkeypatch.setattr(metrics, "Lines", lambda: Lines(file=screen, force_terminal=True, width=200))
    with open_report(str(tmp_path), 0, 10) as report:
        report.say(BRACKETS)
    assert BRACKETS in screen.getvalue()


def test_a_terminal_shows_a_live_line(tmp_path, monkeypatch):
    import io

    screen = io.StringIO()
    monkeypatch.setattr(metrics, "Lines", lambda: Lines(file=screen, force_terminal=True, width=200))
    with open_report(str(tmp_path), 0, 1000) as report:
        report.step(2)
        report.record(train_record(2))
        report.record({"step": 2, "split": "validation", "loss": 7.0, "mlm_loss": 6.0, "mlm_accuracy": 0.25,
                       "perplexity": 403.4})  # fmt: skip
    shown = screen.getvalue()
    assert "step 2/1,000" in shown and "50 seq/s" in shown and "perplexity 403.4" in shown


TALKS_ON = """
import sys
from flaxbert.training.metrics import open_report
with open_report(sys.argv[1], 0, 1000) as report:
    print("ready", file=sys.stderr, flush=True)
    sys.stdin.read()  # until the reader has gone
    for step in range(1, 4):
        report.say("a sentence")
        report.record({"step": step, "split": "validation", "loss": 7.0})
"""


def test_training_goes_on_where_nobody_reads_the_console_any_more(tmp_path):
    program = subprocess.Popen(
        [sys.executable, "-c", TALKS_ON, str(tmp_path)], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert program.stderr.readline() == b"ready\n"
    program.stderr.close()
    program.stdin.close()
    assert program.wait(timeout=60) == 0
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
