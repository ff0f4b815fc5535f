"""What a command prints does not decide what it does."""

import subprocess
import sys

import pytest

from data_pipeline.config import PrepareConfig
from data_pipeline.prepare import prepare

TABLES = """
import sys
from flaxbert.terminal import Tables
for _ in range(2000):
    Tables().print("[bold]a line of a table[/bold]")
sys.stdout.flush()
print("done", file=sys.stderr)
"""
LINES = TABLES.replace("Tables", "Lines").partition("sys.stdout.flush")[0]


def run(code, stdout, stderr=subprocess.PIPE):
    return subprocess.run([sys.executable, "-c", code], stdout=stdout, stderr=stderr, text=True, timeout=60)


def test_brackets_are_no_markup():
    assert run(TABLES, subprocess.PIPE).stdout.startswith("[bold]a line of a table[/bold]\n")


def test_a_reader_that_has_gone_ends_nothing():
    with subprocess.Popen(["head", "-n", "1"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as reader:
        found = run(TABLES, reader.stdin)
    assert (found.returncode, found.stderr) == (0, "done\n")


def test_a_full_disk_is_an_error_on_standard_output_alone():
    with open("/dev/full", "w") as full:
        found = run(TABLES, full)
        assert found.returncode != 0 and "No space left" in found.stderr
        assert run(LINES, subprocess.PIPE, full).returncode == 0


@pytest.mark.parametrize("kind", ["plan", "doctor"])
def test_a_file_is_written_whoever_reads_what_is_printed(tmp_path, kind):
    """Of doctor the report itself, which is more than a pipe's buffer, goes there."""
    if kind == "plan":
        name, beginning = "plan.json", b"{"
        command = ["plan", "bert_tiny", "--search", "0", "--model.vocab-size", "512", "--json", str(tmp_path / name)]
    else:
        name, beginning = "plot.png", b"\x89PNG"
        text = tmp_path / "text.txt"
        text.write_text("".join(f"The river {n} is long.\nA town {n} lies on it.\n\n" for n in range(60)))
        prepare(PrepareConfig(vocab_size=39), [str(text)], str(tmp_path / "corpus"), progress=False)
        command = ["doctor", str(tmp_path / "corpus"), "--json", "-", "--plot", str(tmp_path / name)]
    with subprocess.Popen(["true"], stdin=subprocess.PIPE) as reader:
        reader.wait()
        found = run(f"import sys; from flaxbert.cli import main; sys.exit(main({command!r}))", reader.stdin)
    assert found.returncode == 0, found.stderr
    assert (tmp_path / name).read_bytes().startswith(beginning)
