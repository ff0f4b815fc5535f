"""`flaxbert predict`: what a fine-tuned model says of new text, as JSON lines."""

import contextlib
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from flaxbert.config import OptimizerConfig
from flaxbert.finetuning.encoding import encode
from flaxbert.finetuning.examples import read_examples
from flaxbert.finetuning.files import parse_json
from flaxbert.finetuning.forms import Choice, Examples, Question, TaggedExample, TextExample
from flaxbert.finetuning.objective import output_count
from flaxbert.finetuning.predictions import answers, predictions
from flaxbert.finetuning.saved import TaskFile, read_model
from flaxbert.finetuning.step import TuningFunctions, build_functions
from flaxbert.finetuning.tasks import Task
from flaxbert.finetuning.tuning import predict
from flaxbert.tools.load import Model

STANDARD = "-"
_LINES = 1024  # of standard input that are read before they are answered


def predict_file(model: str, source: str, output: str) -> None:
    """Reads `source` (`-`: standard input), writes a JSON line for each example into `output` (`-`: standard output).

    Raises ValueError for a folder without a fine-tuned model, and naming file and line for what cannot be read.
    """
    loaded, facts = read_model(model)
    functions = functions_of(loaded, facts)
    with _opened(output) as file:
        for examples in _parts(source, facts):
            for line in said(examples, loaded, facts, functions):
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()


def functions_of(model: Model, facts: TaskFile, rows: int = 1) -> TuningFunctions:
    """The compiled functions of a fine-tuned model, for batches of a multiple of `rows`."""
    outputs = output_count(facts.task.kind, len(facts.labels))
    return build_functions(
        facts.task.kind, model.config, outputs, rows, OptimizerConfig(), bilstm_layers=facts.bilstm_layers
    )


def said(examples: Examples, model: Any, facts: TaskFile, functions: TuningFunctions) -> list[dict[str, Any]]:
    """A dictionary for each example: its id, the prediction, and how sure the model is of it."""
    features = encode(examples, facts.task, model.tokenizer, facts.max_length)
    logits = predict(features, model.params, functions, rows=min(32, len(features)))
    found = predictions(examples, features, logits, facts.task, facts.threshold)
    sure = _certainty(examples, features, logits, facts)
    return [
        {"id": item.id, "prediction": prediction, **more}
        for item, prediction, more in zip(examples.items, found, sure, strict=True)
    ]


def _certainty(examples: Examples, features: Any, logits: Any, facts: TaskFile) -> list[dict[str, Any]]:
    """For each example: the probabilities of all labels or choices, or of the n-best answers."""
    if facts.task.kind == "qa":
        return [
            {"n_best": [{"text": c.text, "probability": c.probability, "start": c.start} for c in each.n_best]}
            for each in answers(examples, features, logits, facts.task)
        ]
    if facts.task.kind in ("classification", "multiple_choice"):
        names = facts.labels or tuple(map(str, range(len(logits[0]))))
        return [{"probabilities": dict(zip(names, map(float, _softmax(each))))} for each in logits]
    return [{} for _ in examples.items]


def _softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max())
    total: np.ndarray = shares / shares.sum()
    return total


def _parts(source: str, facts: TaskFile) -> Iterator[Examples]:
    """The examples of a file, or of standard input as it comes."""
    if source != STANDARD:
        yield read_examples(source, facts.task, facts.labels, facts.columns, labelled=False)
        return
    lines = enumerate(sys.stdin, 1)
    empty = True
    while part := list(itertools.islice(lines, _LINES)):
        items = [
            _item(facts.task, number, line.rstrip("\r\n")) for number, line in part if line.strip()
        ]  # fmt: skip
        if items:
            empty = False
            yield Examples("standard input", items, facts.labels)
    if empty:
        raise ValueError("standard input is empty: expected a text on each line")


def _item(task: Task, number: int, line: str) -> Any:
    """One line: a text, or texts with tabs between them, or a JSON object."""
    where = f"standard input, line {number}"
    if line.lstrip().startswith("{"):
        found = parse_json(line, where)
        texts: Sequence[Any] = [found.get(name) for name in _names(task)]
        if any(text is None for text in texts):
            raise ValueError(f"{where}: expected the fields {', '.join(_names(task))}; found {', '.join(found)}")
    else:
        texts = line.split("\t")
    return _example(task, str(number), texts, where)


def _names(task: Task) -> tuple[str, ...]:
    """The fields of a JSON object of standard input."""
    second = {"qa": "context", "multiple_choice": "choices"}.get(task.kind, "second")
    first = {"qa": "question", "tagging": "words"}.get(task.kind, "first")
    return (first, second) if task.second else (first,)


def _example(task: Task, number: str, texts: Sequence[Any], where: str) -> Any:
    if task.kind == "tagging":
        words = texts[0] if isinstance(texts[0], list) else texts[0].split()
        return TaggedExample(number, tuple(words), None)
    if task.kind == "multiple_choice":
        choices = texts[1] if isinstance(texts[1], list) else texts[1:]
        return Choice(number, texts[0], tuple(choices), None)
    wanted = 2 if task.second else 1
    if len(texts) != wanted:
        raise ValueError(f"{where} has {len(texts)} texts with tabs between them, and the task has {wanted}")
    if task.kind == "qa":
        return Question(number, texts[0], texts[1], None)
    return TextExample(number, texts[0], texts[1] if wanted == 2 else None, None)


@contextlib.contextmanager
def _opened(output: str) -> Iterator[TextIO]:
    if output == STANDARD:
        yield sys.stdout
        return
    if Path(output).exists():
        raise ValueError(f"output {output} exists already: name a new file")
    with open(output, "w", encoding="utf-8") as file:
        yield file
