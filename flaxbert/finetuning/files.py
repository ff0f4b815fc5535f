"""Where the examples of a task lie, and the text of a file."""

import fnmatch
import json
import os
from pathlib import Path
from typing import Any

from flaxbert.finetuning.tasks import Task

TFDS = "tfds:"

# What TFDS calls the splits of the tasks here.
_TFDS_SPLITS = {
    "train": ("train",),
    "dev": ("validation", "validation_matched", "dev"),
    "dev_mismatched": ("validation_mismatched",),
    "test": ("test", "test_matched"),
    "test_mismatched": ("test_mismatched",),
}


def find_files(data: str | os.PathLike[str], task: Task) -> dict[str, str]:
    """Split → path, for the splits of a task that are in a folder, or in a data set `tfds:NAME`.

    Raises ValueError where `train` or `dev` is missing.
    """
    if str(data).startswith(TFDS):
        return _tfds_splits(str(data))
    folder = Path(data)
    if not folder.is_dir():
        raise ValueError(f"data {data} is no folder: expected one with {_wanted(task, 'train')}, or tfds:NAME")
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    found = {}
    for split, patterns in task.files.items():
        matches = next(filter(None, (fnmatch.filter(names, pattern) for pattern in patterns)), [])
        if len(matches) > 1:
            several = f"several {split} files: {', '.join(matches)}"
            raise ValueError(f"data {data} has {several}; keep each data set in a folder of its own")
        if matches:
            found[split] = str(folder / matches[0])
    for split in ("train", "dev"):
        if split not in found:
            wanted, there = _wanted(task, split), ", ".join(names) or "nothing"
            raise ValueError(
                f"data {data} has no {split} file for task {task.name}: looked for {wanted}; found {there}"
            )
    return found


def _wanted(task: Task, split: str) -> str:
    return ", ".join(task.files[split])


def _tfds_splits(name: str) -> dict[str, str]:
    from flaxbert.finetuning.tfds_source import split_names

    there = split_names(name)
    found = {
        split: f"{name}@{theirs[0]}"
        for split, wanted in _TFDS_SPLITS.items()
        if (theirs := [known for known in wanted if known in there])
    }
    for split in ("train", "dev"):
        if split not in found:
            raise ValueError(f"{name} has no split for {split}; found {', '.join(there) or 'none'}")
    return found


def read_text(path: str) -> str:
    """The text of a file. Raises ValueError for one that is missing, empty, or not UTF-8."""
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 at byte {error.start}: save it in that encoding") from None
    if not text.strip():
        raise ValueError(f"{path} is empty")
    return text


def lines(text: str) -> list[str]:
    """The lines of a text, without the empty ones at its end. Only LF and CR LF end one: others occur inside texts."""
    found = [line.removesuffix("\r") for line in text.split("\n")]
    while found and not found[-1]:
        found.pop()
    return found


def parse_json(text: str, where: str) -> Any:
    """A JSON value. Raises ValueError, naming `where`, for text that is none."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"{where} is not JSON that can be read: it is nested too deeply") from None


def clean(value: Any, where: str) -> str:
    """A string that tokenizers take. Raises ValueError, naming `where`, for another value and for one that is blank."""
    if not isinstance(value, str):
        raise ValueError(f"{where} is {repr(value)[:40]}, expected text")
    if not value.strip():
        raise ValueError(f"{where} is empty")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{where} is not valid Unicode: it holds half a surrogate pair")
    return value
