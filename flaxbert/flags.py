"""What a user types: flags → a dataclass, by tyro, and the name of an experiment; a mistake is one sentence."""

import contextlib
import dataclasses
import importlib
import importlib.util
import io
import os
import pathlib
import re
import runpy
import sys
import typing
from collections.abc import Iterator
from typing import Any

import tyro

from flaxbert.config import Experiment
from flaxbert.phases import without_effect


def parse(kind: Any, program: str, argv: list[str], default: Any = None) -> Any:
    """The dataclass `kind` as the flags fill it, over `default` where one is given; `--help` prints and exits.

    Raises ValueError with the one sentence at the head of tyro's page about a mistake.
    """
    argv, given = _spelled_out(kind, argv), {} if default is None else {"default": default}
    page = io.StringIO()
    try:
        with contextlib.redirect_stderr(page), _wide_terminal("-h" not in argv and "--help" not in argv):
            return tyro.cli(kind, args=argv, prog=program, config=(tyro.conf.FlagConversionOff,), **given)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(_head_of(page.getvalue())) from None


def _spelled_out(kind: Any, argv: list[str]) -> list[str]:
    """The arguments with `True` after each switch that stands alone: `--frozen` is `--frozen True`."""
    switches, found = set(_switches(kind)), list[str]()
    for place, argument in enumerate(argv):
        found.append(argument)
        alone = argv[place + 1:place + 2] not in (["True"], ["False"], ["None"])
        if alone and argument.startswith("--") and argument[2:].rpartition(".")[2].replace("-", "_") in switches:
            found.append("True")
    return found


def _switches(kind: Any) -> Iterator[str]:
    """The names of a dataclass's fields, and of those in it, that are true or false."""
    for name, hint in typing.get_type_hints(kind).items():
        if bool in (hint, *typing.get_args(hint)):
            yield name
        elif dataclasses.is_dataclass(hint):
            yield from _switches(hint)


def check_effect(settings: Experiment, before: Experiment) -> None:
    """Raises ValueError for a setting that was changed in vain: every phase of the experiment has its own."""
    if vain := without_effect(settings, before):
        flag = vain[0].replace("_", "-")
        own = f"--phases.0.{flag.partition('.')[2]}"
        raise ValueError(f"--{flag} changes nothing: every phase of this experiment has its own, as {own} would set it")


def _head_of(page: str) -> str:
    """The first paragraph of tyro's boxed page, and its suggestion, as one sentence. Where the output is not in
    Unicode, the box is of spaces and hyphens.
    """
    lines = [line.strip("│ ") for line in page.splitlines()[1:] if not line.startswith("╰")]
    parts = [part.strip() for part in re.split(r"^[─-]{5,}$", "\n".join(lines), flags=re.MULTILINE) if part.strip()]
    if parts[0].startswith("Missing from"):
        return "missing " + ", ".join(re.findall(r"^\s*(--\S+|[A-Z.]{3,}$)", parts[0].partition(":")[2], re.MULTILINE))
    head = re.sub(r"^Error parsing [\w.]+: ", "", " ".join(parts[0].split()))
    meant = re.search(r"(?:Perhaps you meant:|similar to \S+:)\s+(--\S+)", page.replace("│", ""))
    return head + (f" (did you mean {meant.group(1)}?)" if meant else "")


@contextlib.contextmanager
def _wide_terminal(wide: bool) -> Iterator[None]:
    """Keeps tyro from breaking a sentence over lines."""
    before = os.environ.get("COLUMNS")
    if wide:
        os.environ["COLUMNS"] = "1000"
    try:
        yield
    finally:
        if wide:
            os.environ.pop("COLUMNS")
            if before is not None:
                os.environ["COLUMNS"] = before


def load_experiment(name: str) -> Experiment:
    """The EXPERIMENT of a file, or of a module in experiments/."""
    if name.endswith(".py") or os.sep in name:
        if not pathlib.Path(name).is_file():
            raise ValueError(f"no such experiment file: {name}")
        found = _run_file(name).get("EXPERIMENT")
    elif not name.isidentifier() or importlib.util.find_spec(f"experiments.{name}") is None:
        folder = pathlib.Path(importlib.import_module("experiments").__path__[0])
        known = ", ".join(sorted(path.stem for path in folder.glob("[!_]*.py")))
        raise ValueError(f"no experiment is named {name!r}; there are {known}, or give the path of a .py file")
    else:
        found = getattr(importlib.import_module(f"experiments.{name}"), "EXPERIMENT", None)
    if not isinstance(found, Experiment):
        raise ValueError(f"{name} does not define EXPERIMENT, a flaxbert.config.Experiment")
    return found


def _run_file(name: str) -> dict[str, Any]:
    """The names that a user's file defines. It can import its neighbours, as it could under `python FILE`."""
    folder = str(pathlib.Path(name).resolve().parent)
    sys.path.insert(0, folder)
    try:
        return runpy.run_path(name)
    except SystemExit as stop:
        raise ValueError(f"experiment file {name} cannot be run: it ends the program, with {stop.code or 0}") from stop
    except Exception as error:  # whatever a user's file may raise
        raise ValueError(f"experiment file {name} cannot be run: {type(error).__name__}: {error}") from error
    finally:
        with contextlib.suppress(ValueError):  # the file may have taken it away itself
            sys.path.remove(folder)
