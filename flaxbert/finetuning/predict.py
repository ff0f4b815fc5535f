"""`flaxbert predict`: what a fine-tuned model says of new text, as JSON lines."""

import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np

from flaxbert.config import OptimizerConfig
from flaxbert.finetuning.batching import bucket_lengths
from flaxbert.finetuning.encoding import count_cut, cut_remark, encode
from flaxbert.finetuning.examples import read_examples
from flaxbert.finetuning.features import Feature
from flaxbert.finetuning.forms import Examples
from flaxbert.finetuning.objective import output_count
from flaxbert.finetuning.predictions import answers, predictions
from flaxbert.finetuning.saved import TaskFile, read_model
from flaxbert.finetuning.spans import Answered
from flaxbert.finetuning.standard_input import NAME, parts
from flaxbert.finetuning.step import TuningFunctions, build_functions
from flaxbert.finetuning.tagging import entities
from flaxbert.finetuning.tuning import predict
from flaxbert.tools.load import Model
from flaxbert.tools.outputs import whole_output

STANDARD = "-"
_ROWS = (1, 8, 32)  # of a batch: few numbers, since each is compiled


def predict_file(model: str, source: str, output: str, say: Callable[[str], None] = lambda sentence: None) -> None:
    """Reads `source` (`-`: standard input, answered as it comes), writes a JSON line for each example into `output`
    (`-`: standard output; a file appears whole or not at all).

    Raises ValueError for a folder without a fine-tuned model, and naming file and line for what cannot be read.
    """
    with _opened(output) as file:
        loaded, facts = read_model(model)
        loaded = loaded._replace(params=jax.device_put(loaded.params))  # once, not for each part
        functions = functions_of(loaded, facts)
        cut = count = 0
        try:
            for examples in _parts(source, facts):
                for sentence in examples.remarks:
                    say(sentence)
                features = encode(examples, facts.task, loaded.tokenizer, facts.max_length)
                cut, count = cut + count_cut(features), count + len(examples.items)
                for line in said(examples, features, loaded, facts, functions):
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
                file.flush()
        finally:
            if cut:
                say(cut_remark(NAME if source == STANDARD else source, cut, count, facts.task))


def functions_of(model: Model, facts: TaskFile, rows: int = 1) -> TuningFunctions:
    """The compiled functions of a fine-tuned model, for batches of a multiple of `rows`."""
    outputs = output_count(facts.task.kind, len(facts.labels))
    return build_functions(
        facts.task.kind, model.config, outputs, rows, OptimizerConfig(), bilstm_layers=facts.bilstm_layers
    )


def said(
    examples: Examples, features: list[Feature], model: Model, facts: TaskFile, functions: TuningFunctions
) -> Iterator[dict[str, Any]]:
    """A dictionary for each example: its id, the prediction, and how sure the model is of it."""
    rows = next((rows for rows in _ROWS if rows >= len(features)), _ROWS[-1])
    logits = predict(features, model.params, functions, rows, bucket_lengths(facts.max_length))
    if facts.task.kind == "qa":
        for item, each in zip(examples.items, answers(examples, features, logits, facts.task), strict=True):
            yield {"id": item.id, "prediction": each.above(facts.threshold), **_reasons(each, facts)}
        return
    found = predictions(examples, features, logits, facts.task)
    if facts.task.kind == "tagging":
        for item, tags in zip(examples.items, found, strict=True):
            line = {"id": item.id, "tokens": item.words, "prediction": tags}
            if facts.task.has_entities:
                line["entities"] = [each._asdict() for each in entities(item.words, tags)]
            yield line
        return
    for item, prediction, more in zip(examples.items, found, _certainty(examples, logits, facts), strict=True):
        yield {"id": item.id, "prediction": prediction, **more}


def _reasons(found: Answered, facts: TaskFile) -> dict[str, Any]:
    """The n-best answers and, where there may be none, what decides: none is given above the threshold."""
    best = [{"text": each.text, "probability": each.probability, "start": each.start} for each in found.n_best]
    if not facts.task.has_no_answer:
        return {"n_best": best}
    return {"no_answer_score": found.no_answer, "threshold": facts.threshold, "n_best": best}


def _certainty(examples: Examples, logits: Any, facts: TaskFile) -> list[dict[str, Any]]:
    """For each example, the probabilities of all labels or choices."""
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
    if source == STANDARD:
        yield from parts(sys.stdin.buffer, facts.task, facts.labels, facts.columns)
    else:
        yield read_examples(source, facts.task, facts.labels, facts.columns, labelled=False)


@contextlib.contextmanager
def _opened(output: str) -> Iterator[TextIO]:
    if output == STANDARD:
        yield sys.stdout
        return
    if Path(output).exists():
        raise ValueError(f"--output {output} exists already: name a new file")
    with whole_output("--output", output) as file, io.TextIOWrapper(file, encoding="utf-8") as text:
        yield text
