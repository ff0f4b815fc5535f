"""How far is flaxbert from other people's code?

    python -m benchmarks.parity [--output FILE]

Runs the suite in tests/parity and the tests of optimizer and learning rate, in which each test states what it compared
and the worst deviation that it saw (`assert_parity` in tests/conftest.py), and writes them as a table. The exit status
is pytest's; a suite that fails leaves no table.
"""

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SUITE = ("tests/parity", "tests/flaxbert/training/test_optimizer.py", "tests/flaxbert/training/test_schedule.py")
PACKAGES = ("flaxbert", "jax", "flax", "torch", "transformers")

Row = tuple[str, str, float, float]  # what, peer, worst deviation, tolerance


class Recorder:
    """A pytest plugin that collects what the tests state."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.outcomes: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.skipped:
            self.outcomes.append(report.outcome)
            self.rows += [value for name, value in report.user_properties if name == "parity"]  # type: ignore[misc]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.outcomes.append("skipped")


def table(rows: list[Row]) -> str:
    """Markdown: one line for each thing that was compared, with the worst of all its cases."""
    cases: dict[tuple[str, str, float], list[float]] = {}
    for what, peer, worst, tolerance in rows:
        cases.setdefault((what, peer, tolerance), []).append(worst)
    lines = ["| what | compared with | cases | worst deviation | tolerance |", "|---|---|---|---|---|"]
    for (what, peer, tolerance), found in cases.items():
        lines.append(f"| {what} | {peer} | {len(found)} | {max(found):.2g} | {tolerance:g} |")
    return "\n".join(lines)


def page(recorder: Recorder) -> str:
    """The whole of the file: the command, the machine, the versions and the table."""
    passed, skipped = (recorder.outcomes.count(outcome) for outcome in ("passed", "skipped"))
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return f"""# Parity

`python -m benchmarks.parity`: {passed} tests passed, {skipped} were skipped.
{machine()}, Python {platform.python_version()}, {versions}.

A deviation is the largest absolute difference where its line says nothing else. Each tolerance has its reason in the
test.

{table(recorder.rows)}
"""


def machine() -> str:
    """`Linux x86_64, 2 processors (AMD EPYC 7B13)`."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = f" ({models[0]})" if models else ""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors{name}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "parity.md")
    options = parser.parse_args()
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        parser.error(f"{', '.join(missing)} missing: install the extras `test` and `parity`")
    recorder = Recorder()
    status = int(pytest.main([*(str(ROOT / path) for path in SUITE), "-q"], plugins=[recorder]))
    if status == 0:
        options.output.write_text(page(recorder), encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
