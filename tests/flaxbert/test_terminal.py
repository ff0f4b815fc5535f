"""What a command prints does not decide what it does."""

import subprocess
import sys

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


def test_a_file_is_written_whoever_reads_the_tables(tmp_path):
    command = ["plan", "bert_tiny", "--search", "0", "--model.vocab-size", "512", "--json", str(tmp_path / "plan.json")]
    with subprocess.Popen(["true"], stdin=subprocess.PIPE) as reader:
        reader.wait()
        found = run(f"import sys; from flaxbert.cli import main; sys.exit(main({command!r}))", reader.stdin)
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "plan.json").read_text().startswith("{")
