"""The comparison of a plan's memory with that of a run runs, on a case so small that its figures say little."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_a_run_is_measured_beside_its_plan(tmp_path):
    arguments = ["--runs", "bert_tiny:4x16", "--output", tmp_path / "r.json"]
    one_device = os.environ | {"XLA_FLAGS": ""}
    program = subprocess.run(
        [sys.executable, "-m", "benchmarks.plan_memory", *arguments], cwd=ROOT, env=one_device, capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip
    assert program.returncode == 0, program.stderr[-2000:]
    [found] = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["runs"]
    assert found["run"] == "bert_tiny:4x16" and found["planned"] == sum(found["memory"].values())
    assert found["taken"] > found["memory"]["weights"] + found["memory"]["moments"]
    assert program.stdout.startswith("bert_tiny:4x16: planned 0.0")
