"""`flaxbert doctor` as a user meets it: what it prints, writes and refuses."""

import dataclasses
import json
import os
import pathlib
import random
import re
import resource
import subprocess
import sys

import numpy as np
import pytest

from data_pipeline import verdicts
from data_pipeline.config import PrepareConfig
from data_pipeline.prepare import prepare
from data_pipeline.tokenizer import SPECIAL_PIECES
from flaxbert import cli
from flaxbert.config import Experiment
from flaxbert.tools.doctor import check_outputs, show


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Documents that share a third of their lines, which hold what markup and JSON might trip over."""
    folder, rng = tmp_path_factory.mktemp("doctor"), random.Random(0)
    words = [a + b + c for a in "bdfgklmnpr" for b in "aeiou" for c in "nlr"]
    pieces = [*SPECIAL_PIECES, *words, "[", "]", "/", '"', "$", "ü"]
    documents = [[" ".join(rng.choices(words, k=rng.randint(4, 9))) for _ in range(8)] for _ in range(40)]
    documents = [[*lines, '[ban] "ü$" [/ban] ' * 3, "bal bar ban " * 4, "ban bal bar " * 4] for lines in documents]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    (folder / "text.txt").write_text("\n\n".join("\n".join(lines) for lines in documents) + "\n", encoding="utf-8")
    config = PrepareConfig(str(folder / "vocab.txt"), lowercase=False, sentences="lines", validation_fraction=0.2)
    prepare(config, [str(folder / "text.txt")], str(folder / "my $corpus$ [b]"), workers=1, progress=False)
    return folder / "my $corpus$ [b]"


def doctor(corpus, *flags):
    return cli.main(["doctor", str(corpus), "--lengths", "16", "32", "--batch-size", "4", *map(str, flags)])


def report_of(corpus, capsys):
    assert doctor(corpus, "--json", "-") == cli.DONE
    return json.loads(capsys.readouterr().out)


def test_the_table_says_what_the_json_says(corpus, capsys, monkeypatch):
    report = report_of(corpus, capsys)
    monkeypatch.setenv("COLUMNS", "500")
    assert doctor(corpus) == cli.DONE, "troubles are an answer, not an error"
    shown = [re.split(r"\s{2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    for line in report["lines"]:
        assert [part for part in line.values() if part] in shown
    for stream in report["streams"]:
        assert any(row[:2] == [str(stream["sequence_length"]), stream["pairing"]] and row[-1] == stream["verdict"]
                   and f"{stream['steps']:,}" in row and f"{stream['fill']:.0%}" in row for row in shown)  # fmt: skip
    troubles = sum(line["verdict"] == "trouble" for line in report["lines"])
    assert troubles and any(row[0].startswith(f"{troubles} trouble") for row in shown)


def test_each_line_of_the_json_follows_from_its_facts(corpus, capsys):
    report = report_of(corpus, capsys)
    values = {line["measure"]: line["value"] for line in report["lines"]}
    repeats, facts = report["facts"]["repeated_sentences"], report["facts"]
    share = repeats["repeated"] / repeats["total"]
    assert values["repeated sentences"].startswith(f"{share:.1%} of {repeats['total']}")
    assert values["unigram entropy"].startswith(f"{facts['vocabulary']['entropy']:.2f} nats")
    assert values["labels, nsp at 16"] == f"{report['streams'][0]['random_labels']:.0%} random"
    assert {stream["sequence_length"] for stream in report["streams"]} == {16, 32} and len(report["streams"]) == 10


@pytest.mark.parametrize("columns", [80, 120])
def test_a_narrow_terminal_loses_no_word(corpus, capsys, monkeypatch, columns):
    lines = report_of(corpus, capsys)["lines"]
    monkeypatch.setenv("COLUMNS", str(columns))
    doctor(corpus)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= columns
    words = set(printed.split())
    missing = [word for line in lines for text in line.values() for word in text.split() if word not in words]
    assert missing == []


def test_a_sample_is_said_to_be_one(corpus, capsys):
    doctor(corpus)
    assert "of the training text" not in capsys.readouterr().out
    report = report_of(corpus, capsys)
    report["facts"] |= {"sample_tokens": 1_234, "sample_share": 0.25}
    show(report)
    assert "Measured on 1,234 tokens, 25.0% of the training text" in capsys.readouterr().out


def test_repeated_sentences_are_shown_letter_by_letter(corpus, capsys):
    doctor(corpus)
    assert 'times: [ ban ] " ü $ " [ / ban ]' in capsys.readouterr().out


def test_files_are_written_beside_the_table(corpus, capsys, tmp_path):
    expected = report_of(corpus, capsys)
    doctor(corpus, "--json", tmp_path / "report.json", "--plot", tmp_path / "picture.PNG")
    assert "Measure" in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == expected
    assert (tmp_path / "picture.PNG").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("lengths, panels", [((32,), 5), ((16, 32), 6)])
def test_the_picture_has_a_full_panel_for_each_distribution(corpus, tmp_path, lengths, panels):
    from matplotlib.image import imread

    file = tmp_path / "picture.png"
    flags = ["--lengths", *map(str, lengths), "--json", str(tmp_path / "report.json"), "--plot", str(file)]
    assert cli.main(["doctor", str(corpus), *flags]) == cli.DONE
    picture = imread(file)[..., :3]
    height, width = picture.shape[:2]
    assert width >= 1200 and height >= 1200, "legible on paper too"
    cells = [picture[row * height // 3:(row + 1) * height // 3, half * width // 2:(half + 1) * width // 2]
             for row in range(3) for half in range(2)]  # fmt: skip
    coloured = [float((np.ptp(cell, axis=2) > 0.2).mean()) > 0.002 for cell in cells]
    assert coloured == [True] * panels + [False] * (6 - panels)


@pytest.mark.parametrize("json_file, plot_file, message", [
    (None, "picture.pdf", r"--plot picture.pdf is no picture that can be drawn: expected a name that ends in .png"),
    (None, "nowhere/picture.png", "--plot nowhere/picture.png cannot be written: there is no folder nowhere"),
    (None, "folder.png", "--plot folder.png cannot be written: it is a folder"),
    ("nowhere/report.json", None, "--json nowhere/report.json cannot be written: there is no folder nowhere"),
    (None, "-", "--plot - is no picture"),
    ("/dev/full", None, "--json /dev/full cannot be written: it is no regular file"),
])  # fmt: skip
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(
    tmp_path, monkeypatch, capsys, json_file, plot_file, message
):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("folder.png").mkdir()
    given = [*(["--json", json_file] if json_file else []), *(["--plot", plot_file] if plot_file else [])]
    assert doctor("no-such-corpus", *given) == cli.USER_ERROR
    out, said = capsys.readouterr()
    assert message in said and said.count("\n") == 1 and out == ""


@pytest.mark.parametrize("flag, name", [("--json", "report.json"), ("--plot", "picture.png")])
def test_a_full_disk_costs_neither_the_tables_nor_the_file_of_before(corpus, tmp_path, capsys, flag, name):
    (tmp_path / name).write_bytes(b"before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        status = doctor(corpus, flag, tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    out, said = capsys.readouterr()
    assert status == cli.USER_ERROR and "Measure" in out
    assert said.splitlines()[-1] == f"flaxbert: {flag} {tmp_path / name} cannot be written: File too large"
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


def test_a_folder_without_permission_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match="permission denied"):
        check_outputs(None, str(tmp_path / "picture.png"))


def test_what_is_no_corpus_is_told_in_one_sentence(tmp_path, capsys):
    assert doctor(tmp_path) == cli.USER_ERROR
    assert "flaxbert: " in (said := capsys.readouterr().err.splitlines()[-1]) and "is not a prepared corpus" in said


def test_every_flag_that_an_advice_names_exists():
    flags = {f"--{field.name}" for field in dataclasses.fields(PrepareConfig)}
    for section in (field for field in dataclasses.fields(Experiment) if dataclasses.is_dataclass(field.type)):
        flags |= {f"--{section.name}.{field.name}" for field in dataclasses.fields(section.type)}
    named = set(re.findall(r"--[a-z][a-z.-]*[a-z]", pathlib.Path(verdicts.__file__).read_text(encoding="utf-8")))
    assert len(named) > 8 and named <= {flag.replace("_", "-") for flag in flags}


def test_the_doctor_needs_neither_jax_nor_tensorflow_nor_a_display(corpus, tmp_path):
    code = f"""
import sys
from flaxbert import cli
status = cli.main(["doctor", {str(corpus)!r}, "--lengths", "16", "--plot", {str(tmp_path / "picture.png")!r}])
heavy = sorted({{"jax", "tensorflow", "matplotlib.pyplot"}} & sys.modules.keys())
sys.exit(f"{{status}} {{heavy}}" if status or heavy else 0)
"""
    environment = {name: value for name, value in os.environ.items() if name != "DISPLAY"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
