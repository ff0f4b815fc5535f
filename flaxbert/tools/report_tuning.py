"""What fine-tuning folders hold, for the report of the run that their models began with."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from flaxbert.finetuning.metrics import rank
from flaxbert.finetuning.results import scored, shown, summarize
from flaxbert.finetuning.search_folder import SETTINGS, kept_cell, read_results
from flaxbert.finetuning.tasks import Task, find_task

_ORDINARY = {
    "frozen": False, "bilstm_layers": None, "fresh": False, "optimizer": "adam", "compute_dtype": "float32",
    "weight_decay": 0.01, "dropout": None, "train_examples": None,
}  # fmt: skip
_WORDS: dict[str, Callable[[Any], str]] = {
    "bilstm_layers": lambda layers: f"tagged by a BiLSTM over layers {layers} of the frozen encoder",
    "frozen": lambda _: "the output layer alone is trained", "fresh": lambda _: "begun with random parameters",
    "optimizer": str, "weight_decay": "weight decay {}".format, "dropout": "dropout {}".format,
    "compute_dtype": lambda kind: f"products in {kind}",
    "train_examples": lambda count: f"{count:,} training examples, drawn once",
}  # fmt: skip


class Tuning(NamedTuple):
    """A search over a grid, as far as it has come."""

    title: str
    about: str
    headings: list[str]
    """Empty where no run has ended."""
    rows: list[list[str]]
    best: str


def read_tuning(folder: str) -> Tuning:
    """The table of a folder of `flaxbert finetune`, made of the runs that have ended, be the search over or not. Raises
    ValueError where it is none.
    """
    path = Path(folder)
    try:
        found = json.loads((path / SETTINGS).read_bytes())
        settings, planned = found["search"], set(found.get("planned", ()))
        task, about = find_task(settings["task"]), _about(settings)
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{folder} is no folder of flaxbert finetune: it has no {SETTINGS} with a search") from None
    title, results = f"{task.name}: {path.resolve().name}", read_results(path / "cells")
    progress = _progress(len(planned & results.keys()), len(planned))
    if not results:
        return Tuning(title, about, [], [], progress)
    try:
        headings, rows, words = _with_results(task, list(results.values()), results.get(kept_cell(path)))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"a result in {path / 'cells'} is damaged: delete it, and its cell is trained again") from None
    return Tuning(title, about, headings, rows, f"{progress} {words}".strip())


def _progress(done: int, planned: int) -> str:
    """A sentence where the search has not ended."""
    if done == planned:
        return ""
    return f"The search has not ended: {done} of the {planned} runs that it plans are done."


def _about(settings: dict[str, Any]) -> str:
    special = [_WORDS[name](settings[name]) for name, usual in _ORDINARY.items() if settings.get(name, usual) != usual]
    return "; ".join([f"from {settings['init']}, {settings['max_length']} tokens a row", *special])


def _with_results(task: Task, results: list[Any], kept: Any) -> tuple[list[str], list[list[str]], str]:
    """(headings, rows, a sentence on the best run)."""
    best = kept or max(results, key=lambda result: (not result["diverged"], rank(task, result["dev"])))
    found = summarize(task, results, best)
    metrics = list(found["rows"][0]["metrics"])
    rows = [[*_place(row), *(_cell(row, name) for name in metrics)] for row in found["rows"]]
    speed = found["examples_per_second"]
    took = f"All runs took {found['seconds']:,.0f} s" + (f", at {speed:,.0f} examples a second." if speed else ".")
    headings = ["learning rate", "batch", "epochs", "seeds", *(f"{name.replace('_', ' ')}, %" for name in metrics)]
    if best["diverged"]:
        return headings, rows, f"Every run diverged. {took}"
    scores = [f"{split}: {scored(found['best'][split])}" for split in found["best"] if split != "cell"]
    cell = ", ".join(f"{name.replace('_', ' ')} {number!r}" for name, number in best["cell"].items())
    return headings, rows, f"Best run ({cell}): {'; '.join(scores)}. {took}"


def _place(row: dict[str, Any]) -> list[str]:
    ended = row["seeds"] - row["diverged"]
    seeds = f"{row['seeds']}, {row['diverged']} diverged" if row["diverged"] else str(ended)
    return [repr(row["learning_rate"]), str(row["batch_size"]), str(row["epochs"]), seeds]


def _cell(row: dict[str, Any], name: str) -> str:
    """A line breaks before the best, and not within a number and its deviation."""
    if row["diverged"] == row["seeds"]:
        return "diverged"
    return shown(row["metrics"][name]).replace(" ", "\u00a0").replace("\u00a0(", " (")
