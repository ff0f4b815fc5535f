"""What fine-tuning folders hold, for the report of the run that their models began with."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from flaxbert.finetuning.grid import SETTINGS
from flaxbert.finetuning.results import RESULTS, scored, shown

_ORDINARY = {
    "frozen": False, "bilstm_layers": None, "fresh": False, "optimizer": "adam", "compute_dtype": "float32",
    "train_examples": None,
}  # fmt: skip
_WORDS: dict[str, Callable[[Any], str]] = {
    "bilstm_layers": lambda layers: f"tagged by a BiLSTM over layers {layers} of the frozen encoder",
    "frozen": lambda _: "the output layer alone is trained", "fresh": lambda _: "begun with random parameters",
    "optimizer": str, "compute_dtype": lambda kind: f"products in {kind}",
    "train_examples": lambda count: f"{count:,} training examples, drawn once",
}  # fmt: skip


class Tuning(NamedTuple):
    """A search over a grid."""

    title: str
    about: str
    headings: list[str]
    """Empty where the search has not ended."""
    rows: list[list[str]]
    best: str


def read_tuning(folder: str) -> Tuning:
    """The tables of a folder of `flaxbert finetune`. Raises ValueError where it is none."""
    path = Path(folder)
    try:
        settings = json.loads((path / SETTINGS).read_bytes())["search"]
        title = f"{settings['task']}: {path.resolve().name}"
        about = _about(settings)
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{folder} is no folder of flaxbert finetune: it has no {SETTINGS} with a search") from None
    if not (path / RESULTS).is_file():
        done = len(list((path / "cells").glob("*.json")))
        return Tuning(title, about, [], [], f"The search has not ended: {done} of its runs are done.")
    try:
        return _with_results(title, about, json.loads((path / RESULTS).read_bytes()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path / RESULTS} is damaged: flaxbert finetune writes it anew") from None


def _about(settings: dict[str, Any]) -> str:
    special = [_WORDS[name](settings[name]) for name in _ORDINARY if settings.get(name) != _ORDINARY[name]]
    return "; ".join([f"from {settings['init']}, {settings['max_length']} tokens a row", *special])


def _with_results(title: str, about: str, found: dict[str, Any]) -> Tuning:
    metrics = list(found["rows"][0]["metrics"]) if found["rows"] else []
    rows = [
        [f"{row['learning_rate']:g}", str(row["batch_size"]), str(row["epochs"]), str(row["seeds"])]
        + [shown(row["metrics"][name]) for name in metrics]
        for row in found["rows"]
    ]
    best = found["best"]
    scores = [f"{split}: {scored(best[split])}" for split in best if split != "cell"]
    cell = ", ".join(f"{name.replace('_', ' ')} {number:g}" for name, number in best["cell"].items())
    speed = found["examples_per_second"]
    took = f"All runs took {found['seconds']:,.0f} s" + (f", at {speed:,.0f} examples a second." if speed else ".")
    headings = ["learning rate", "batch", "epochs", "seeds", *(f"{name}, %" for name in metrics)]
    return Tuning(title, about, headings, rows, f"Best run ({cell}): {'; '.join(scores)}. {took}")
