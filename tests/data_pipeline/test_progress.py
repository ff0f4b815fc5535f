"""What is shown while one waits."""

import contextlib
import io

import pytest

from data_pipeline.progress import Progress

BRACKETS = "examining /corpora/[lamb] of [/dev/sda1]"


class Screen(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    for name, value in {"TERM": "xterm", "COLUMNS": "200"}.items():
        monkeypatch.setenv(name, value)


def test_a_path_keeps_its_brackets_while_one_waits():
    with contextlib.redirect_stderr(Screen()) as screen, Progress(visible=True).waiting(BRACKETS):
        pass
    assert screen.getvalue().count(BRACKETS) >= 2, "while it lasts, and at its end"


def test_a_path_keeps_its_brackets_beside_a_bar():
    with contextlib.redirect_stderr(Screen()) as screen, Progress(visible=True).bytes(BRACKETS, 100, 0) as show:
        show(50)
    assert BRACKETS in screen.getvalue()
