"""The search over a grid: every cell trained once, its results kept as it ends, the best model beside them."""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from flaxbert.config import OptimizerConfig
from flaxbert.finetuning.answer_scores import score_answer
from flaxbert.finetuning.forms import Example, Examples, TaggedExample
from flaxbert.finetuning.metrics import example_scores, rank, references, score
from flaxbert.finetuning.objective import output_count
from flaxbert.finetuning.predictions import answers, predictions
from flaxbert.finetuning.results import scored
from flaxbert.finetuning.saved import BEST, TaskFile, model_card, settle_model, write_model
from flaxbert.finetuning.search_folder import kept_cell, read_results
from flaxbert.finetuning.spans import best_threshold
from flaxbert.finetuning.step import TuningFunctions, build_functions
from flaxbert.finetuning.tables import Columns
from flaxbert.finetuning.tasks import Task
from flaxbert.finetuning.tuning import PREDICTION_ROWS, Cell, Found, Split, begin, fine_tune, predict
from flaxbert.interop.architectures import Checkpoint
from flaxbert.training.files import write_atomically

Result = dict[str, Any]
Scores = dict[str, float | None]


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
    train_examples: int | None = None
    """How many were drawn; None: all."""


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
    A cell that diverges has a result without scores, and its model is never kept.

    Raises Stopped after a signal, ValueError where every cell diverged.
    """
    folder = grid.workdir / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    settle_model(grid.workdir / BEST)
    results = read_results(folder)
    for number, cell in enumerate(cells):
        if cell.name not in results:
            say(f"{number + 1} of {len(cells)}: {cell.described}")
            results[cell.name] = _run_cell(grid, cell, list(results.values()), stop, say)
    kept = results.get(kept_cell(grid.workdir))
    while kept is None or "others" not in kept:
        cell = Cell(**_best(grid.task, list(results.values()))["cell"])
        say(f"the best model is not there: {cell.described}")
        kept = results[cell.name] = _run_cell(grid, cell, [], stop, say)
    return list(results.values()), kept


def _best(task: Task, results: Sequence[Result]) -> Result:
    ended = [result for result in results if not result["diverged"]]
    if not ended:
        raise ValueError("every run of the grid diverged: its loss is not finite; name lower --learning-rates")
    return max(ended, key=lambda result: rank(task, result["dev"]))


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
    logits = predict(grid.splits["dev"].features, found.params, predictor)
    if _diverged(found, logits):
        say("    diverged: its loss or its outputs are not finite")
        return _keep(grid, cell, _result(cell, found, dict.fromkeys(grid.task.metrics), 0.0, diverged=True))
    said, threshold = _answers(grid, "dev", logits, None)
    scores = _scores(grid, "dev", said)
    say(f"    dev {scored(scores)}")
    result = _result(cell, found, scores, threshold)
    facts = TaskFile(
        grid.task, labels, grid.columns, grid.task.max_length, threshold, scores, cell.name, grid.bilstm_layers
    )
    rivals = [other["dev"] for other in others if not other["diverged"]]
    if all(rank(grid.task, scores) > rank(grid.task, rival) for rival in rivals):
        card = model_card(grid.workdir.name, start, facts, _begun_with(grid), _trained_with(grid, cell))
        write_model(grid.workdir / BEST, start, found.params, grid.tokenizer, facts, card)
        result["others"] = _others(grid, found.params, predictor, threshold)
    write_predictions(grid.workdir / "cells" / f"{cell.name}-dev.jsonl", grid.task, grid.splits["dev"].examples, said)
    return _keep(grid, cell, result)


def _keep(grid: Grid, cell: Cell, result: Result) -> Result:
    """Written last of all: what is there counts as done."""
    text = json.dumps(result, indent=1, allow_nan=False) + "\n"
    write_atomically(grid.workdir / "cells" / f"{cell.name}.json", text)
    return result


def _diverged(found: Found, logits: Sequence[np.ndarray]) -> bool:
    """Whether loss, parameters or outputs are not finite: the last update has no loss of its own."""
    whole = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found.params))
    return not math.isfinite(found.loss) or not whole or any(np.isnan(each).any() for each in logits)


def _scores(grid: Grid, split: str, said: Sequence[Any]) -> Scores:
    """None in place of NaN, which JSON does not know."""
    found = score(grid.task, said, references(grid.splits[split].examples))
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def _begun_with(grid: Grid) -> str:
    """What the model was before, as its card says it."""
    if grid.fresh:
        return f"Random parameters in the shape of `{grid.init}`, not its pretrained ones, trained"
    return f"`{grid.init}` fine-tuned"


def _trained_with(grid: Grid, cell: Cell) -> dict[str, Any]:
    """The settings that a model's card names."""
    trained = "the output layer alone" if grid.frozen else "all parameters"
    drawn = "all" if grid.train_examples is None else "drawn once from all"
    return dataclasses.asdict(cell) | {
        "trained": "the BiLSTM alone" if grid.bilstm_layers else trained,
        "training examples": f"{len(grid.splits['train'].examples.items):,} ({drawn})",
        "optimizer": grid.optimizer.name, "weight decay": grid.optimizer.weight_decay,
        "dropout": grid.pretrained.config.dropout, "attention dropout": grid.pretrained.config.attention_dropout,
        "type of matrix products": grid.compute_dtype,
    }  # fmt: skip


def _functions(grid: Grid, rows: int) -> TuningFunctions:
    outputs = output_count(grid.task.kind, len(grid.splits["train"].examples.labels))
    return build_functions(
        grid.task.kind, grid.pretrained.config, outputs, rows, grid.optimizer, grid.compute_dtype, grid.frozen,
        grid.bilstm_layers,
    )  # fmt: skip


def _answers(grid: Grid, split: str, logits: list[np.ndarray], threshold: float | None) -> tuple[list[Any], float]:
    """(predictions on a split, the threshold of no answer: the given one, or the best for this split)."""
    examples, features = grid.splits[split]
    if threshold is None:
        threshold = 0.0
        if grid.task.has_no_answer:
            threshold = _best_threshold(grid.task, examples, features, logits)
    return predictions(examples, features, logits, grid.task, threshold), threshold


def _best_threshold(task: Task, examples: Examples, features: Any, logits: Any) -> float:
    found, right = answers(examples, features, logits, task), references(examples)
    scores = [score_answer(each.text, texts, True)[1] for each, texts in zip(found, right, strict=True)]
    return best_threshold(found, scores, [bool(texts) for texts in right])


def _others(grid: Grid, params: Any, functions: TuningFunctions, threshold: float) -> dict[str, Scores]:
    """Scores on the labelled splits beside train and dev."""
    found = {}
    for name in grid.splits:
        if name not in ("train", "dev"):
            said, _ = _answers(grid, name, predict(grid.splits[name].features, params, functions), threshold)
            found[name] = _scores(grid, name, said)
            write_predictions(grid.workdir / f"{name}.jsonl", grid.task, grid.splits[name].examples, said)
    return found


def _result(cell: Cell, found: Found, scores: Scores, threshold: float, diverged: bool = False) -> Result:
    return {
        "cell": dataclasses.asdict(cell), "dev": scores, "diverged": diverged, "threshold": threshold,
        "loss": found.loss if math.isfinite(found.loss) else None, "steps": found.steps,
        "seconds": round(found.seconds, 3),
        "examples_per_second": round(found.examples_per_second, 3) if found.examples_per_second > 0 else None,
    }  # fmt: skip


def write_predictions(path: Path, task: Task, examples: Examples, said: Sequence[Any]) -> None:
    """One JSON line an example: its id, what was predicted, what is right, and what it adds to the task's metrics."""
    right = references(examples)
    rows = (
        {"id": item.id, **_words(item), "prediction": prediction, "reference": reference, **scores}
        for item, prediction, reference, scores in zip(
            examples.items, said, right, example_scores(task, said, right), strict=True
        )
    )
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _words(item: Example) -> dict[str, Any]:
    return {"tokens": item.words} if isinstance(item, TaggedExample) else {}
