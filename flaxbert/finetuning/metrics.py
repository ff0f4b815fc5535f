"""Predictions and references → scores, each in [0, 1] or [-1, 1], by the libraries and rules that the field reports by.

Where a score is not defined it is what its source gives: 0 for precision, recall and F1 where there is nothing to find
(scikit-learn, seqeval), 0 for Matthews where all predictions or all references are the same (scikit-learn), NaN for
Pearson and Spearman of constant values or of fewer than two (scipy).
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flaxbert.finetuning.answer_scores import score_answer
from flaxbert.finetuning.forms import Examples
from flaxbert.finetuning.tasks import Task

_QA_PARTS = (("has_answer", True), ("no_answer", False))


def references(examples: Examples) -> list[Any]:
    """What predictions are held against: labels, numbers, the tags of each sentence, or the texts of all answers.

    Raises ValueError where the examples are not labelled.
    """
    found = [_reference(item) for item in examples.items]
    if any(reference is None for reference in found):
        raise ValueError(f"{examples.path} was read without labels: there is nothing to hold predictions against")
    return found


def _reference(item: Any) -> Any:
    if hasattr(item, "answers"):
        return None if item.answers is None else tuple(answer.text for answer in item.answers)
    return list(item.tags) if getattr(item, "tags", None) is not None else getattr(item, "label", None)


def score(task: Task, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
    """The task's metrics by name; in SQuAD 2.0 those of answerable and of unanswerable questions too, where there are
    such.

    Predictions are a label, a number, a list of tags or an answer's text for each example, "" for no answer.
    """
    if len(predictions) != len(references) or not references:
        raise ValueError(f"{len(predictions)} predictions for {len(references)} references: expected as many, and some")
    if task.kind == "qa":
        return _answers(task, predictions, references)
    if task.kind == "tagging" and not task.has_entities:
        predictions, references = _joined(predictions), _joined(references)
    with warnings.catch_warnings():
        # Of undefined scores: what they are instead is said above.
        warnings.simplefilter("ignore")
        return {name: float(_METRICS[name](task, predictions, references)) for name in task.metrics}


def example_scores(task: Task, predictions: Sequence[Any], references: Sequence[Any]) -> list[dict[str, float]]:
    """What each example adds to those metrics of `score` that are means over examples; empty where none is."""
    if task.kind == "qa":
        found = [score_answer(*pair, task.has_no_answer) for pair in zip(predictions, references, strict=True)]
        return [{"exact_match": exact, "f1": f1} for exact, f1 in found]
    if task.kind == "tagging" or "accuracy" not in task.metrics:
        return [{} for _ in references]
    return [{"accuracy": float(found == right)} for found, right in zip(predictions, references, strict=True)]


def rank(task: Task, scores: Mapping[str, float | None]) -> float:
    """What a run is chosen by: its score in the task's first metric; NaN, or None for it, ranks below all."""
    found = scores[task.metrics[0]]
    return -math.inf if found is None or math.isnan(found) else found


def _answers(task: Task, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    parts = example_scores(task, predictions, references)
    found = np.array([(part["exact_match"], part["f1"]) for part in parts])
    scores = {"exact_match": found[:, 0].mean(), "f1": found[:, 1].mean()}
    answerable = np.array([bool(texts) for texts in references])
    for name, which in _QA_PARTS if task.has_no_answer else ():
        if (answerable == which).any():
            exact, f1 = found[answerable == which].mean(axis=0)
            scores |= {f"{name}_exact_match": exact, f"{name}_f1": f1}
    return {name: float(value) for name, value in ({name: scores[name] for name in task.metrics} | scores).items()}


def _joined(sentences: Sequence[Sequence[str]]) -> list[str]:
    return [tag for sentence in sentences for tag in sentence]


def _accuracy(task: Task, predictions: Any, references: Any) -> float:
    if task.has_entities:
        predictions, references = _joined(predictions), _joined(references)
    from sklearn.metrics import accuracy_score

    return accuracy_score(references, predictions)


def _f1(task: Task, predictions: Any, references: Any) -> float:
    """Of the second label, the positive one of MRPC and QQP."""
    from sklearn.metrics import f1_score

    assert task.labels is not None, "only tasks with labels of their own know a positive one"
    return f1_score(references, predictions, pos_label=task.labels[1], zero_division=0)


def _macro_f1(task: Task, predictions: Any, references: Any) -> float:
    """The mean over the labels that occur."""
    from sklearn.metrics import f1_score

    return f1_score(references, predictions, average="macro", zero_division=0)


def _matthews(task: Task, predictions: Any, references: Any) -> float:
    from sklearn.metrics import matthews_corrcoef

    return matthews_corrcoef(references, predictions)


def _pearson(task: Task, predictions: Any, references: Any) -> float:
    from scipy.stats import pearsonr

    return pearsonr(references, predictions).statistic if len(references) > 1 else math.nan


def _spearman(task: Task, predictions: Any, references: Any) -> float:
    from scipy.stats import spearmanr

    return spearmanr(references, predictions).statistic if len(references) > 1 else math.nan


def _entities(measure: str) -> Callable[[Task, Any, Any], float]:
    """Of whole entities, over all types (micro average), in the reading of conlleval: seqeval's default."""

    def measured(task: Task, predictions: Any, references: Any) -> float:
        import seqeval.metrics

        return getattr(seqeval.metrics, f"{measure}_score")(references, predictions, zero_division=0)

    return measured


_METRICS: dict[str, Callable[[Task, Any, Any], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
    "entity_f1": _entities("f1"),
    "entity_precision": _entities("precision"),
    "entity_recall": _entities("recall"),
}
