"""A fine-tuned model on disk: a folder that transformers loads, and beside it what the task was."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from flaxbert.finetuning.forms import write_labels
from flaxbert.finetuning.tasks import Task, find_task
from flaxbert.interop import huggingface
from flaxbert.interop.architectures import Checkpoint
from flaxbert.tools.load import Model, load
from flaxbert.tools.written import check_written

TASK = "task.json"
FORMAT_VERSION = 1


class TaskFile(NamedTuple):
    """What prediction needs to know beside the model."""

    task: Task
    labels: tuple[str, ...]
    max_length: int
    threshold: float
    """In qa with questions that have no answer: see `spans.Answered.above`."""
    scores: dict[str, float]
    """On the development set."""
    cell: str
    """Which place of the grid it is."""


def write_model(folder: Path, start: Checkpoint, params: Any, tokenizer: Path, facts: TaskFile, card: str) -> None:
    """Writes `folder` in the place of an older one: the export of a model that was read back and says the same, its
    labels and its task. A kill leaves the older or the newer one, or none.
    """
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    checkpoint = start._replace(params=params)
    check = check_written(checkpoint, jnp.float32, None, [])
    huggingface.export(checkpoint, tokenizer, fresh, card, check=check)
    write_labels(fresh, facts.labels)
    found = {"format_version": FORMAT_VERSION, **facts._asdict(), "task": facts.task.name}
    (fresh / TASK).write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(fresh, folder)


def read_model(folder: str | os.PathLike[str]) -> tuple[Model, TaskFile]:
    """A fine-tuned model and its task: of a folder that `write_model` wrote, or of the grid that it is the best of.

    Raises ValueError where there is none.
    """
    path = Path(folder)
    path = path if (path / TASK).is_file() or not (path / "best" / TASK).is_file() else path / "best"
    if not (path / TASK).is_file():
        raise ValueError(f"{folder} has no {TASK}: expected a folder that flaxbert finetune wrote")
    try:
        found = json.loads((path / TASK).read_bytes())
        if found.pop("format_version") != FORMAT_VERSION:
            raise ValueError("of another version of flaxbert")
        task = task_for(find_task(found["task"]), found["max_length"])
        facts = TaskFile(**{**found, "task": task, "labels": tuple(found["labels"])})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path / TASK} is damaged: {error}") from None
    return load(path), facts


def model_card(name: str, start: Checkpoint, source: str, facts: TaskFile, settings: dict[str, Any]) -> str:
    """The text of README.md."""
    from huggingface_hub import ModelCardData

    header = ModelCardData(library_name="transformers", tags=["bert", "flaxbert", facts.task.kind]).to_yaml()
    scores = "\n".join(f"| {metric} | {value:.4f} |" for metric, value in facts.scores.items())
    chosen = "\n".join(f"| {field.replace('_', ' ')} | {value} |" for field, value in settings.items())
    return (
        f"---\n{header}\n---\n\n# {name}\n\n`{source}` fine-tuned by flaxbert for the task {facts.task.name} "
        f"({facts.task.kind}): a {start.architecture} of {start.config.num_layers} layers, hidden size "
        f"{start.config.hidden_size}, for rows of up to {facts.max_length} tokens.\n\n"
        f"On the development set, which also chose it among the runs of its grid:\n\n| | |\n|---|---|\n{scores}\n\n"
        f"Trained with:\n\n| | |\n|---|---|\n{chosen}\n"
    )


def task_for(task: Task, max_length: int) -> Task:
    """The task for rows of this length: a question takes up to half of one."""
    longest = min(task.max_question_length, max_length // 2)
    return dataclasses.replace(task, max_length=max_length, max_question_length=longest)
