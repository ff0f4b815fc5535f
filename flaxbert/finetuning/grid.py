"""The search over a grid: every cell trained once, its results kept as it ends, the best model beside them."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flaxbert.config import OptimizerConfig
from flaxbert.finetuning.answer_scores import score_answer
from flaxbert.finetuning.forms import Examples
from flaxbert.finetuning.metrics import example_scores, rank, references, score
from flaxbert.finetuning.objective import output_count
from flaxbert.finetuning.predictions import answers, predictions
from flaxbert.finetuning.saved import BEST, TASK, TaskFile, model_card, read_task, settle_model, write_model
from flaxbert.finetuning.spans import best_threshold
from flaxbert.finetuning.step import TuningFunctions, build_functions
from flaxbert.finetuning.tables import Columns
from flaxbert.finetuning.tasks import Task
from flaxbert.finetuning.tuning import PREDICTION_ROWS, Cell, Found, Split, begin, fine_tune, predict
from flaxbert.interop.architectures import Checkpoint
from flaxbert.training.files import write_atomically
from flaxbert.training.lock import LOCK

SETTINGS = "config.json"

Result = dict[str, Any]


class Stopped(Exception):
    """A signal came; the cells that had ended are kept."""


class Grid(NamedTuple):
    """What is searched, and where the results go."""

    task: Task
    init: str
    """What the model is named after."""
    pretrained: Checkpoint
    tokenizer: Path
    """The folder of the model's tokenizer."""
    splits: dict[str, Split]
    """`train`, `dev` and, where there are such, those that the best model is evaluated on at the end."""
    columns: Columns
    """Of the data, where the user named them."""
    workdir: Path
    optimizer: OptimizerConfig
    compute_dtype: str = "float32"
    frozen: bool = False
    fresh: bool = False
    """Begin with new parameters in place of the pretrained ones."""
    bilstm_layers: tuple[int, ...] = ()
    """The layers of a frozen encoder that a BiLSTM reads; none: an ordinary output layer."""


def cells_of(
    rates: Sequence[float], batch_sizes: Sequence[int], epochs: Sequence[int], seeds: Sequence[int]
) -> list[Cell]:
    """Every combination; the seeds of one combination follow one another."""
    return [Cell(*found) for found in itertools.product(rates, batch_sizes, epochs, seeds)]


def search(
    grid: Grid, cells: Sequence[Cell], stop: Callable[[], bool], say: Callable[[str], None]
) -> tuple[list[Result], Result]:
    """The results of these cells, and of all that earlier launches have ended: those are not trained again; and the one
    of them whose model is kept. Where that model is lost, or the result it goes with, the best one is trained again.

    Raises Stopped after a signal.
    """
    folder = grid.workdir / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    settle_model(grid.workdir / BEST)
    results = read_results(folder)
    for number, cell in enumerate(cells):
        if cell.name not in results:
            say(f"{number + 1} of {len(cells)}: {_described(cell)}")
            results[cell.name] = _run_cell(grid, cell, list(results.values()), stop, say)
    kept = results.get(_kept_cell(grid.workdir))
    if kept is None or "others" not in kept:
        cell = Cell(**max(results.values(), key=lambda result: rank(grid.task, result["dev"]))["cell"])
        say(f"the best model is not there: {_described(cell)}")
        kept = results[cell.name] = _run_cell(grid, cell, [], stop, say)
    return list(results.values()), kept


def _kept_cell(workdir: Path) -> str:
    """The name of the cell whose model is kept; empty where there is none."""
    return read_task(workdir / BEST).cell if (workdir / BEST / TASK).is_file() else ""


def _run_cell(
    grid: Grid, cell: Cell, others: Sequence[Result], stop: Callable[[], bool], say: Callable[[str], None]
) -> Result:
    labels = grid.splits["train"].examples.labels
    start = begin(grid.pretrained, grid.task, labels, cell.seed, grid.fresh, len(grid.bilstm_layers))
    functions, predictor = (_functions(grid, rows) for rows in (cell.batch_size, PREDICTION_ROWS))

    def stopped() -> None:
        if stop():
            raise Stopped

    def told(step: int, steps: int, loss: float) -> None:
        say(f"    step {step}/{steps}  loss {loss:.4f}")

    found = fine_tune(cell, start, grid.splits["train"].features, grid.task, functions, stopped, told)
    said, threshold = _answers(grid, "dev", found.params, predictor, None)
    scores = score(grid.task, said, references(grid.splits["dev"].examples))
    say("    dev " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))
    result = _result(cell, found, scores, threshold)
    facts = TaskFile(
        grid.task, labels, grid.columns, grid.task.max_length, threshold, scores, cell.name, grid.bilstm_layers
    )
    if all(rank(grid.task, scores) > rank(grid.task, other["dev"]) for other in others):
        card = model_card(grid.workdir.name, start, grid.init, facts, dataclasses.asdict(cell))
        write_model(grid.workdir / BEST, start, found.params, grid.tokenizer, facts, card)
        result["others"] = _others(grid, found.params, predictor, threshold)
    write_predictions(grid.workdir / "cells" / f"{cell.name}-dev.jsonl", grid.task, grid.splits["dev"].examples, said)
    # Last: what is there counts as done.
    write_atomically(grid.workdir / "cells" / f"{cell.name}.json", json.dumps(result, indent=1) + "\n")
    return result


def _functions(grid: Grid, rows: int) -> TuningFunctions:
    outputs = output_count(grid.task.kind, len(grid.splits["train"].examples.labels))
    return build_functions(
        grid.task.kind, grid.pretrained.config, outputs, rows, grid.optimizer, grid.compute_dtype, grid.frozen,
        grid.bilstm_layers,
    )  # fmt: skip


def _answers(
    grid: Grid, split: str, params: Any, functions: TuningFunctions, threshold: float | None
) -> tuple[list[Any], float]:
    """(predictions on a split, the threshold of no answer: the given one, or the best for this split)."""
    examples, features = grid.splits[split]
    logits = predict(features, params, functions)
    if threshold is None:
        threshold = 0.0
        if grid.task.has_no_answer:
            threshold = _best_threshold(grid.task, examples, features, logits)
    return predictions(examples, features, logits, grid.task, threshold), threshold


def _best_threshold(task: Task, examples: Examples, features: Any, logits: Any) -> float:
    found, right = answers(examples, features, logits, task), references(examples)
    scores = [score_answer(each.text, texts, True)[1] for each, texts in zip(found, right, strict=True)]
    return best_threshold(found, scores, [bool(texts) for texts in right])


def _others(grid: Grid, params: Any, functions: TuningFunctions, threshold: float) -> dict[str, dict[str, float]]:
    """Scores on the labelled splits beside train and dev."""
    found = {}
    for name in grid.splits:
        if name not in ("train", "dev"):
            said, _ = _answers(grid, name, params, functions, threshold)
            found[name] = score(grid.task, said, references(grid.splits[name].examples))
            write_predictions(grid.workdir / f"{name}.jsonl", grid.task, grid.splits[name].examples, said)
    return found


def _result(cell: Cell, found: Found, scores: dict[str, float], threshold: float) -> Result:
    return {
        "cell": dataclasses.asdict(cell), "dev": scores, "threshold": threshold, "loss": found.loss,
        "steps": found.steps, "seconds": round(found.seconds, 3),
        "examples_per_second": round(found.examples_per_second, 3) if found.examples_per_second > 0 else None,
    }  # fmt: skip


def write_predictions(path: Path, task: Task, examples: Examples, said: Sequence[Any]) -> None:
    """One JSON line an example: its id, what was predicted, what is right, and what it adds to the task's metrics."""
    right = references(examples)
    rows = (
        {"id": item.id, "prediction": prediction, "reference": reference, **scores}
        for item, prediction, reference, scores in zip(
            examples.items, said, right, example_scores(task, said, right), strict=True
        )
    )
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_results(folder: Path) -> dict[str, Result]:
    """Name → what it came to, of all cells that have ended."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            found[path.stem] = json.loads(path.read_bytes())
        except ValueError:
            raise ValueError(f"{path} is damaged: delete it, and its cell is trained again") from None
    return found


def check_settings(workdir: Path, settings: dict[str, Any]) -> None:
    """Raises ValueError where the folder holds anything but a search with these settings, naming those that differ.
    Writes nothing.
    """
    path = workdir / SETTINGS
    if not path.is_file():
        if workdir.exists() and (not workdir.is_dir() or {each.name for each in workdir.iterdir()} - {LOCK}):
            raise ValueError(f"{workdir} is not empty and holds no search")
        return
    try:
        before = json.loads(path.read_bytes())["search"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{workdir} holds no search: its {SETTINGS} is that of something else") from None
    changed = [name for name in settings if before.get(name) != settings[name]]
    if changed:
        differ = ", ".join(f"{name} was {before.get(name)} and is now {settings[name]}" for name in changed)
        raise ValueError(f"{workdir} holds another search: {differ}; name another --workdir")


def write_settings(workdir: Path, settings: dict[str, Any]) -> None:
    """Begins a search's folder."""
    write_atomically(workdir / SETTINGS, json.dumps({"search": settings}, indent=1, ensure_ascii=False) + "\n")


def _described(cell: Cell) -> str:
    return (
        f"learning rate {cell.learning_rate:g}, batch {cell.batch_size}, {cell.epochs} epochs, seed {cell.seed}"
    )
