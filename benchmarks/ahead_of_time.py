"""What benchmarks of steps compiled for devices that are not here have in common: minutes a case, so none is lost."""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from flaxbert.training.files import write_atomically

Record = dict[str, Any]
RESULTS = Path(__file__).parent / "results"


class Page(NamedTuple):
    """How results are shown in Markdown."""

    title: str
    module: str
    text: str
    columns: str
    """The table's first two lines."""
    line: Callable[[str, Record], str]
    """The line of a case, by its name and what was found."""


def add_flags(parser: argparse.ArgumentParser, page: Page, names: list[str]) -> None:
    """`--output`, `--only` and `--again`."""
    parser.add_argument("--output", type=Path, default=RESULTS / f"{page.module}.json", help="a file for the results")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", default=names, help="cases, by their names")
    parser.add_argument("--again", action="store_true", help="compile those too that the file holds already")


def compile_all(
    output: Path, cases: Mapping[str, Callable[[], Record]], only: list[str], page: Page, again: bool = False
) -> None:
    """Compiles the chosen cases that the file does not hold yet (`again`: those too that it holds), and writes each
    where it ends, beside the page. Other processes may write others meanwhile, which libtpu allows where
    ALLOW_MULTIPLE_LIBTPU_LOAD is 1.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from flaxbert.tools.topologies import compiler_version  # which imports JAX

    for name in only:
        if name in _kept(output) and not again:
            print(f"{name}: {output} holds it already; --again compiles it once more", flush=True)
            continue
        begin = time.perf_counter()
        found = cases[name]() | {"versions": compiler_version(), "seconds": round(time.perf_counter() - begin, 1)}
        with FileLock(f"{output}.lock"):
            known = _kept(output) | {name: found}
            order = [*cases, *(other for other in known if other not in cases)]
            whole = {"machine": _machine(), "cases": {each: known[each] for each in order if each in known}}
            write_atomically(output, json.dumps(whole, indent=1) + "\n")
            write_page(output, page)
        print(page.line(name, found), f"{found['seconds']} s", flush=True)


def _kept(output: Path) -> dict[str, Record]:
    cases: dict[str, Record] = json.loads(output.read_text())["cases"] if output.exists() else {}
    return cases


def _machine() -> dict[str, str]:
    return {"system": f"{platform.system()} {platform.machine()}", "python": platform.python_version()}


def write_page(output: Path, page: Page) -> None:
    """The results of the file as a table, beside it."""
    cases = _kept(output)
    used: dict[str, set[str]] = {}
    for found in cases.values():
        for package, version in found["versions"].items():
            used.setdefault(package, set()).add(version)
    versions = ", ".join(f"{package} {' and '.join(sorted(each))}" for package, each in used.items())
    where = f"`python -m benchmarks.{page.module}`, on a machine without TPUs; {versions}."
    lines = [page.line(name, found) for name, found in cases.items()]
    text = "\n".join([f"# {page.title}", "", where, "", page.text, page.columns, *lines])
    write_atomically(output.with_suffix(".md"), text + "\n")
