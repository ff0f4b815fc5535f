"""The benchmarks of a start and of the loop, on what needs no machine of their own."""

import pytest

from benchmarks.loop_overhead import summarize
from benchmarks.startup import has_line


def test_a_line_counts_when_it_is_whole_and_of_training(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert not has_line(path, 1)
    path.write_text('{"step": 1, "split": "validation"}\n{"step": 1, "split": "train"')
    assert not has_line(path, 1)
    path.write_text('{"step": 1, "split": "validation"}\n{"step": 1, "split": "train"}\n')
    assert has_line(path, 1) and not has_line(path, 2)


def test_a_block_of_the_loop_is_compared_with_the_steps_around_it():
    """A machine that grows slower by as much in both is no overhead."""
    found = summarize(loop=[9.0, 1.1, 2.2, 4.4], alone=[1.0, 1.0, 1.0, 3.0, 5.0])
    assert found["ratio"] == pytest.approx(1.1) and found["least"] == pytest.approx(1.1)
    assert found["milliseconds_alone"] == pytest.approx(2000)
    assert found["milliseconds_in_the_loop"] == pytest.approx(2200)
