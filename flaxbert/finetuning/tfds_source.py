"""TensorFlow Datasets: the same tasks for those who have a network, or a data set prepared beforehand."""

import functools
import os
import socket
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

from flaxbert.finetuning.conll import tagged
from flaxbert.finetuning.files import TFDS, clean
from flaxbert.finetuning.forms import Examples, Question, TextExample
from flaxbert.finetuning.questions import check_questions, listed_answers
from flaxbert.finetuning.tables import Columns, find_column
from flaxbert.finetuning.tasks import Task
from flaxbert.finetuning.texts import read_label, read_score

_HOST = "storage.googleapis.com"  # where TFDS looks first


def split_names(name: str) -> list[str]:
    """The splits of `tfds:NAME`, which is downloaded where it is not prepared yet."""
    return sorted(_builder(name).info.splits)


def read_split(name: str, task: Task, columns: Columns, labelled: bool) -> Examples:
    """The examples of `tfds:NAME@SPLIT`. Raises ValueError for a split or a feature that is not there."""
    dataset, _, split = name.partition("@")
    if task.kind == "multiple_choice":
        raise ValueError(f"{name}: task {task.name} is read from files, not from TFDS")
    builder = _builder(dataset)
    if split not in builder.info.splits:
        raise ValueError(f"{name}: no split {split!r}; found {', '.join(sorted(builder.info.splits))}")
    there = tuple(builder.info.features)
    first = find_column(name, there, columns.first, task.first, "the text")
    pair = bool(task.second or columns.second)
    second = find_column(name, there, columns.second, task.second, "the second text") if pair else None
    label = find_column(name, there, columns.label, task.label, "the label") if labelled else None
    names = _class_names(builder.info.features[label], task) if label is not None else ()
    return _READERS[task.kind](name, _rows(builder, name, split), task, (first, second, label), names)


def _rows(builder: Any, name: str, split: str) -> "_Rows":
    try:
        yield from builder.as_dataset(split=split, shuffle_files=False).as_numpy_iterator()
    except Exception as error:  # TensorFlow's own, which this package does not import
        raise ValueError(f"{name} cannot be read, or is damaged: {_sentence(error)}") from error


_Rows = Iterator[dict[str, Any]]
_Places = tuple[str, str | None, str | None]


def _text_examples(name: str, rows: _Rows, task: Task, places: _Places, names: tuple[str, ...]) -> Examples:
    items, cut = [], 0
    for number, row in enumerate(rows, 1):
        where = f"{name}, example {number}"
        texts = {place: row[place].decode("utf-8") for place in places[:2] if place}
        if task.skips_cut_rows and places[2] is not None and not all(map(str.strip, texts.values())):
            cut += 1
            continue
        first, *rest = [
            "" if task.skips_cut_rows and not text.strip() else clean(text, f"{where}, {place!r}")
            for place, text in texts.items()
        ]
        label = None if places[2] is None else _label(row[places[2]], task, names, where)
        items.append(TextExample(str(number), first, rest[0] if rest else None, label))
    return Examples(name, items, cut_rows=cut)


def _label(value: Any, task: Task, names: tuple[str, ...], where: str) -> str | float:
    if task.kind == "regression":
        return read_score(value, f"{where}, label", task)
    if names and int(value) < 0:
        raise ValueError(f"{where} has no label: TFDS holds the hidden test set")
    return names[int(value)] if names else read_label(_plain(value), f"{where}, label")


def _plain(value: Any) -> Any:
    return value.decode("utf-8") if isinstance(value, bytes) else value.item()


def _class_names(feature: Any, task: Task) -> tuple[str, ...]:
    """The classes of a feature as the task's own files name them: by the same name, or else by their number."""
    feature = getattr(feature, "feature", feature)
    found = tuple(getattr(feature, "names", ()))
    numbers = tuple(map(str, range(len(found))))
    return numbers if task.labels is not None and set(numbers) == set(task.labels) else found


def _tagged_examples(name: str, rows: _Rows, task: Task, places: _Places, names: tuple[str, ...]) -> Examples:
    def sentences() -> Iterator[tuple[int, list[str], list[str]]]:
        for number, row in enumerate(rows, 1):
            words = [word.decode("utf-8") for word in row[places[0]]]
            tags = [] if places[2] is None else [names[tag] if names else _plain(tag) for tag in row[places[2]]]
            yield number, words, tags

    return tagged(name, sentences(), task, places[2] is not None)


def _questions(name: str, rows: _Rows, task: Task, places: _Places, names: tuple[str, ...]) -> Examples:
    items = []
    for number, row in enumerate(rows, 1):
        where = f"{name}, example {number}"
        question, context = (clean(row[place].decode("utf-8"), f"{where}, {place!r}") for place in places[:2] if place)
        answers = None
        if places[2] is not None:
            found = row[places[2]]
            texts = [text.decode("utf-8") for text in found["text"]]
            listed = {"text": texts, "answer_start": found["answer_start"].tolist()}
            answers = () if row.get("is_impossible", False) else listed_answers(listed, context, where)
        items.append(Question(row["id"].decode("utf-8"), question, context, answers))
    return check_questions(name, items, task)


_READERS: dict[str, Callable[[str, _Rows, Task, _Places, tuple[str, ...]], Examples]] = {
    "classification": _text_examples, "regression": _text_examples, "tagging": _tagged_examples, "qa": _questions,
}  # fmt: skip


@functools.cache
def _builder(name: str) -> Any:
    """The data set, prepared. Raises ValueError, in one sentence, where it is unknown or cannot be fetched."""
    # TensorFlow reads; without these it tells at length how it would compute.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder, registered

    dataset = name.removeprefix(TFDS)
    try:
        return read_only_builder.builder_from_files(dataset)
    except registered.DatasetNotFoundError:
        pass
    except Exception as error:  # names that do not parse, folders of other versions of TFDS
        raise ValueError(f"{name} cannot be read: {_sentence(error)}") from error
    try:
        builder = tfds.builder(dataset)
    except Exception as error:  # unknown data sets, configs and versions, each with an error of its own
        raise ValueError(f"{name} is no data set that TFDS knows: {_sentence(error)}") from None
    _check_network(name)
    try:
        tfds.disable_progress_bar()
        builder.download_and_prepare()
    except Exception as error:  # whatever a network, a disk or a data set's own code may raise
        raise ValueError(f"{name} could not be prepared: {_sentence(error)}") from error
    return builder


def _check_network(name: str) -> None:
    """TFDS tries for minutes before it gives up."""
    if urllib.request.getproxies():
        return
    try:
        socket.getaddrinfo(_HOST, 443)
    except OSError:
        raise ValueError(
            f"{name} is not prepared on this machine, and there is no network to fetch it from: prepare it elsewhere "
            "and set TFDS_DATA_DIR to its folder, or give files"
        ) from None


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
