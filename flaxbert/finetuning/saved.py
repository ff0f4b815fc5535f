"""A fine-tuned model on disk: a folder that transformers loads, and beside it what the task was."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxbert.finetuning.forms import write_labels
from flaxbert.finetuning.objective import TAGGER
from flaxbert.finetuning.tables import Columns
from flaxbert.finetuning.tasks import Task, find_task
from flaxbert.interop import huggingface
from flaxbert.interop.architectures import Checkpoint
from flaxbert.interop.safetensors_files import WEIGHTS, open_tensors, write_tensors
from flaxbert.tools.folders import BEST
from flaxbert.tools.load import Model, load
from flaxbert.tools.written import check_written
from flaxbert.training.files import write_atomically

TASK = "task.json"
FORMAT_VERSION = 2


class TaskFile(NamedTuple):
    """What prediction needs to know beside the model."""

    task: Task
    labels: tuple[str, ...]
    columns: Columns
    """Those that the user named; new files have them too."""
    max_length: int
    threshold: float
    """In qa with questions that have no answer: see `spans.Answered.above`."""
    scores: dict[str, float | None]
    """On the development set."""
    cell: str
    """Which place of the grid it is."""
    bilstm_layers: tuple[int, ...] = ()
    """The layers that a BiLSTM reads, whose parameters stand in a file of their own; none: an ordinary output layer."""


def write_model(folder: Path, start: Checkpoint, params: Any, tokenizer: Path, facts: TaskFile, card: str) -> None:
    """Writes `folder` in the place of an older one: the export of a model that was read back and says the same, its
    labels and its task. Beside an encoder with a BiLSTM, which no class of transformers has, that stands in a file of
    its own. After a kill in between, `settle_model` ends what was begun.
    """
    fresh = _beside(folder)
    shutil.rmtree(fresh, ignore_errors=True)
    checkpoint = start._replace(params={name: part for name, part in params.items() if name != TAGGER})
    check = check_written(checkpoint, jnp.float32, None, [])
    huggingface.export(checkpoint, tokenizer, fresh, card, check=check)
    write_labels(fresh, facts.labels)
    if TAGGER in params:
        (fresh / TAGGER).mkdir()
        tensors = flatten_dict(jax.tree.map(np.asarray, params[TAGGER]), sep=".")
        write_tensors(fresh / TAGGER / WEIGHTS, tensors)
    found = {"format_version": FORMAT_VERSION, **facts._asdict(), "task": facts.task.name}
    write_atomically(fresh / TASK, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    settle_model(folder)


def settle_model(folder: Path) -> None:
    """Puts a model that is whole, and was not yet in its place, there."""
    fresh = _beside(folder)
    if (fresh / TASK).is_file():  # the last file of all
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(fresh, folder)


def _beside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.new")


def is_tuned(folder: Path) -> bool:
    """Whether it is the folder of a fine-tuned model, or of the grid that it is the best of."""
    return (folder / TASK).is_file() or (folder / BEST / TASK).is_file()


def read_model(folder: str | os.PathLike[str]) -> tuple[Model, TaskFile]:
    """A fine-tuned model and its task: of a folder that `write_model` wrote, or of the grid that it is the best of.

    Raises ValueError where there is none.
    """
    path = Path(folder)
    path = path / BEST if not (path / TASK).is_file() and is_tuned(path) else path
    facts, model = read_task(path), load(path)
    if facts.bilstm_layers:
        with open_tensors(path / TAGGER) as tensors:
            tagger = unflatten_dict({name: tensor.read() for name, tensor in tensors.items()}, sep=".")
        model = model._replace(params=model.params | {TAGGER: tagger})
    return model, facts


def read_task(path: Path) -> TaskFile:
    """What stands beside a fine-tuned model. Raises ValueError where there is none."""
    if not (path / TASK).is_file():
        raise ValueError(f"{path} has no {TASK}: expected a folder that flaxbert finetune wrote")
    try:
        found = json.loads((path / TASK).read_bytes())
        if found.pop("format_version") != FORMAT_VERSION:
            raise ValueError("it was written by another version of flaxbert")
        task = task_for(find_task(found["task"]), found["max_length"])
        labels, columns, layers = tuple(found["labels"]), Columns(*found["columns"]), tuple(found["bilstm_layers"])
        return TaskFile(**{**found, "task": task, "labels": labels, "columns": columns, "bilstm_layers": layers})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path / TASK} cannot be used: {error}") from None


def model_card(name: str, start: Checkpoint, facts: TaskFile, begun_with: str, settings: dict[str, Any]) -> str:
    """The text of README.md. `begun_with` is its first sentence up to `by flaxbert`; `settings`: how it was trained."""
    from huggingface_hub import ModelCardData

    header = ModelCardData(library_name="transformers", tags=["bert", "flaxbert", facts.task.kind]).to_yaml()
    scores = "\n".join(
        f"| {metric} | {'undefined' if value is None else format(value, '.4f')} |"
        for metric, value in facts.scores.items()
    )
    chosen = "\n".join(f"| {field.replace('_', ' ')} | {value} |" for field, value in settings.items())
    kind, number = start.architecture, start.config.num_layers
    layers = "1 layer" if number == 1 else f"{number} layers"
    if facts.bilstm_layers:
        read = ", ".join(map(str, facts.bilstm_layers))
        kind = f"BiLSTM (`{TAGGER}/`, read by flaxbert alone) over layers {read} of the unchanged {kind}"
    return (
        f"---\n{header}\n---\n\n# {name}\n\n{begun_with} by flaxbert for the task {facts.task.name} "
        f"({facts.task.kind}): a {kind} of {layers}, hidden size "
        f"{start.config.hidden_size}, for rows of up to {facts.max_length} tokens.\n\n"
        f"On the development set, which also chose it among the runs of its grid:\n\n| | |\n|---|---|\n{scores}\n\n"
        f"Trained with:\n\n| | |\n|---|---|\n{chosen}\n"
    )


def task_for(task: Task, max_length: int) -> Task:
    """The task for rows of this length: a question takes up to half of one."""
    longest = min(task.max_question_length, max_length // 2)
    return dataclasses.replace(task, max_length=max_length, max_question_length=longest)
