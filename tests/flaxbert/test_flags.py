"""What a user types: experiment files, and the flags that a refusal names."""

import dataclasses
import sys
from typing import Annotated

import pytest
import tyro

from data_pipeline import tokenizer_training
from data_pipeline.config import PrepareConfig
from flaxbert.flags import load_experiment, parse

EXPERIMENT = "from flaxbert.config import Experiment\nEXPERIMENT = Experiment()\n"


@pytest.mark.parametrize("lines, why", [
    ("import sys\nsys.exit()\n", "it ends the program, with 0"),
    ("import sys\nsys.exit('no data')\n", "it ends the program, with no data"),
    ("import argparse\nargparse.ArgumentParser().parse_args(['--wrong'])\n", "it ends the program, with 2"),
    ("1 / 0\n", "ZeroDivisionError: division by zero"),
])  # fmt: skip
def test_a_file_that_does_not_run_to_its_end_is_one_sentence(tmp_path, lines, why):
    (tmp_path / "mine.py").write_text(lines + EXPERIMENT)
    with pytest.raises(ValueError) as refusal:
        load_experiment(str(tmp_path / "mine.py"))
    assert str(refusal.value) == f"experiment file {tmp_path / 'mine.py'} cannot be run: {why}"


def test_a_file_imports_its_neighbours_and_leaves_no_path_behind(tmp_path, monkeypatch):
    (tmp_path / "neighbour_of_mine.py").write_text(EXPERIMENT)
    (tmp_path / "mine.py").write_text("from neighbour_of_mine import EXPERIMENT\n")
    (tmp_path / "broken.py").write_text("import neighbour_of_mine\nimport sys\nsys.exit()\n")
    before = list(sys.path)
    monkeypatch.chdir(tmp_path)
    for name in ("./mine.py", str(tmp_path / "mine.py")):
        assert load_experiment(name).train.steps == 1_000_000
    with pytest.raises(ValueError, match="ends the program"):
        load_experiment("broken.py")
    assert sys.path == before


@dataclasses.dataclass(frozen=True)
class Inner:
    really: bool = False
    number: int = 3


@dataclasses.dataclass(frozen=True)
class Outer:
    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    inner: Inner = Inner()
    at_all: bool = False
    perhaps: bool | None = None


@pytest.mark.parametrize("argv, expected", [
    (["--at-all", "x"], Outer("x", at_all=True)), (["x", "--at-all", "False"], Outer("x")),
    (["x", "--inner.really", "--inner.number", "4"], Outer("x", Inner(True, 4))),
    (["x", "--perhaps"], Outer("x", perhaps=True)), (["x", "--perhaps", "None"], Outer("x")),
])  # fmt: skip
def test_a_switch_alone_is_true(argv, expected):
    assert parse(Outer, "program", argv) == expected


def test_the_refusal_of_a_large_vocabulary_names_a_flag_that_mends_it():
    sentences = ["A little text.", "And another one."] * 20
    with pytest.raises(ValueError, match=r"expected at most \d+, which --vocab-size sets$") as refusal:
        tokenizer_training.train("sentencepiece", sentences, 30_522, lowercase=True)
    most = str(refusal.value).split()[-4].rstrip(",")
    size = parse(PrepareConfig, "flaxbert prepare", ["--vocab-size", most]).vocab_size
    assert tokenizer_training.train("sentencepiece", sentences, size, lowercase=True).vocab_size == size
