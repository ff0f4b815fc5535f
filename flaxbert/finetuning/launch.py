"""`flaxbert finetune`: from flags to a searched grid."""

import dataclasses
import hashlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from flaxbert.commands import Finetune
from flaxbert.config import OptimizerConfig
from flaxbert.finetuning.encoding import count_cut, cut_remark
from flaxbert.finetuning.examples import read_examples, sample
from flaxbert.finetuning.files import find_files
from flaxbert.finetuning.forms import Examples
from flaxbert.finetuning.grid import Grid, cells_of, search
from flaxbert.finetuning.metrics import references
from flaxbert.finetuning.objective import ARCHITECTURE
from flaxbert.finetuning.results import show, summarize
from flaxbert.finetuning.saved import FORMAT_VERSION, task_for
from flaxbert.finetuning.search_folder import check_settings, write_settings
from flaxbert.finetuning.tables import Columns
from flaxbert.finetuning.tasks import Task, find_task
from flaxbert.finetuning.tuning import Cell, Split, read_split
from flaxbert.interop.architectures import ARCHITECTURES, ENCODER_ALONE, Checkpoint, describe
from flaxbert.tools.embed import parse_layers
from flaxbert.tools.folders import is_run, model_folder
from flaxbert.tools.load import load
from flaxbert.training.lock import only_launch

# The paper's settings are those of a whole encoder. What is trained on top of a frozen one begins at random, and at
# 5e-5 hardly moves in three epochs. Section 5.3 does not say which it took.
FROZEN_RATES, FROZEN_EPOCHS = (1e-3,), (10,)


def launch(arguments: Finetune, stop: Callable[[], bool], say: Callable[[str], None]) -> None:
    """Reads, trains what is left of the grid, prints the table. Raises `grid.Stopped` after a signal."""
    task = find_task(arguments.task)
    cells = _cells(arguments, task)
    columns = _columns(arguments, task)
    examples = _examples(arguments, task, columns, say)
    model = load(arguments.init)
    layers = _bilstm_layers(arguments, task, model.config.num_layers)
    _check_parts(arguments, task, layers, model.params, say)
    task = task_for(task, _max_length(arguments, task, model.config.max_length))
    for each in examples.values():
        for sentence in each.remarks:
            say(sentence)
    splits = {name: read_split(each, task, model.tokenizer, task.max_length) for name, each in examples.items()}
    _check_segments(splits, model.config.segment_types)
    for split in splits.values():
        if cut := count_cut(split.features):
            say(cut_remark(split.examples.path, cut, len(split.examples.items), task))
    say(", ".join(f"{len(split.examples.items):,} {name} examples" for name, split in splits.items()))
    workdir, init = Path(arguments.workdir), Path(arguments.init)
    settings = _settings(arguments, task, model, splits)
    check_settings(workdir, settings, {name: each.path for name, each in examples.items()})
    optimizer = OptimizerConfig(name=arguments.optimizer, weight_decay=arguments.weight_decay)
    grid = Grid(
        task, init.resolve().name, _begun_with(model.checkpoint, arguments.dropout),
        init / "tokenizer" if is_run(init) else model_folder(init), splits, columns, workdir, optimizer,
        arguments.compute_dtype, arguments.frozen, arguments.fresh, layers, arguments.train_examples,
    )  # fmt: skip
    with only_launch(arguments.workdir, say):
        write_settings(workdir, settings, cells)
        results, kept = search(grid, cells, stop, say)
        show(task, summarize(task, results, kept), workdir)


def _begun_with(pretrained: Checkpoint, dropout: float | None) -> Checkpoint:
    """With the dropout that is asked for, which the fine-tuned model's configuration then tells of."""
    if dropout is None:
        return pretrained
    return pretrained._replace(
        config=dataclasses.replace(pretrained.config, dropout=dropout, attention_dropout=dropout)
    )


def _columns(arguments: Finetune, task: Task) -> Columns:
    """Those that are named. Raises ValueError for a name that no reader of the task's files would look for."""
    found = Columns(arguments.first, arguments.second, arguments.label)
    if found.second is not None and task.kind == "tagging":
        raise ValueError(f"--second {found.second} names the column of a second text, and task {task.name} has none")
    paths = find_files(arguments.data, task).values()
    if any(found) and all(path.endswith(".json") for path in paths):
        raise ValueError(
            f"--first, --second and --label name fields of JSON lines, and {arguments.data} holds SQuAD's JSON alone"
        )
    return found


def _bilstm_layers(arguments: Finetune, task: Task, num_layers: int) -> tuple[int, ...]:
    if arguments.bilstm_layers is None:
        return ()
    if task.kind != "tagging":
        raise ValueError(f"--bilstm-layers is for tagging, and task {task.name} is none")
    return parse_layers(arguments.bilstm_layers, num_layers, "--bilstm-layers")


def _check_parts(
    arguments: Finetune, task: Task, layers: tuple[int, ...], there: Collection[str], say: Callable[[str], None]
) -> None:  # fmt: skip
    """What the model lacks beside the output layer is told of, and refused where it would stay as it begins."""
    parts = ARCHITECTURES[ENCODER_ALONE if layers else ARCHITECTURE[task.kind]].parts
    lacking = tuple(part for part in parts if part not in there and part != "head")
    if not lacking or arguments.fresh:
        return
    if arguments.frozen and not layers:
        raise ValueError(
            f"init {arguments.init} lacks {describe(lacking)}, and --frozen would leave a random one in its place: "
            "expected a model with it, or no --frozen"
        )
    say(f"init {arguments.init}: it lacks {describe(lacking)}, newly initialised")


def _cells(arguments: Finetune, task: Task) -> list[Cell]:
    if arguments.seeds < 1:
        raise ValueError(f"--seeds {arguments.seeds} is not positive")
    frozen = arguments.frozen or arguments.bilstm_layers is not None
    known = (FROZEN_RATES, FROZEN_EPOCHS) if frozen else (task.learning_rates, task.epochs)
    rates = _listed("--learning-rates", arguments.learning_rates, float, known[0])
    sizes = _listed("--batch-sizes", arguments.batch_sizes, int, task.batch_sizes)
    epochs = _listed("--epochs", arguments.epochs, int, known[1])
    return cells_of(rates, sizes, epochs, range(arguments.seeds))


def _listed(flag: str, text: str | None, kind: Any, known: Sequence[Any]) -> list[Any]:
    """The numbers of a list with commas; the first of the task's own where there is none."""
    if text is None:
        return [known[0]]
    try:
        found = [kind(part) for part in text.split(",")]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise ValueError(f"{flag} {text!r} is not a list of {what} with commas between them") from None
    if not all(0 < value < float("inf") for value in found):
        raise ValueError(f"{flag} {text!r} holds a number that is not positive and finite")
    if len(set(found)) < len(found):
        raise ValueError(f"{flag} {text!r} names a value twice")
    return found


def _examples(
    arguments: Finetune, task: Task, columns: Columns, say: Callable[[str], None]
) -> dict[str, Examples]:
    """The splits that are there; what cannot be scored beside train and dev is told of."""
    paths = find_files(arguments.data, task)
    train = read_examples(paths.pop("train"), task, None, columns)
    if arguments.train_examples is not None:
        if not 1 <= arguments.train_examples <= len(train.items):
            raise ValueError(f"--train-examples {arguments.train_examples} is not in [1, {len(train.items)}]")
        train = sample(train, arguments.train_examples)
    found = {"train": train, "dev": read_examples(paths.pop("dev"), task, train.labels, columns)}
    for name, path in paths.items():
        try:
            found[name] = read_examples(path, task, train.labels, columns)
            references(found[name])
        except ValueError as error:  # the tests of GLUE and SQuAD come without labels: `flaxbert predict` reads them
            say(f"{name} is left out: {error}")
            found.pop(name, None)
    return found


def _max_length(arguments: Finetune, task: Task, longest: int) -> int:
    wished = arguments.max_length
    if wished is not None and wished > longest:
        raise ValueError(f"--max-length {wished} exceeds the model's {longest}")
    return min(task.max_length, longest) if wished is None else wished


def _check_segments(splits: dict[str, Split], segment_types: int) -> None:
    row = splits["train"].features[0].rows[0]
    if row.first_length < len(row.input_ids) and segment_types < 2:
        raise ValueError("the task has pairs of texts, and the model knows one segment")


def _settings(arguments: Finetune, task: Task, model: Any, splits: dict[str, Split]) -> dict[str, Any]:
    """What makes the results of a cell what they are; the grid itself may grow."""
    kept = (
        "frozen", "fresh", "optimizer", "weight_decay", "compute_dtype", "train_examples", "bilstm_layers",
    )  # fmt: skip
    own = _begun_with(model.checkpoint, arguments.dropout).config == model.checkpoint.config
    return {
        "format_version": FORMAT_VERSION,
        "task": task.name, "init": str(Path(arguments.init).absolute()), "weights": _digest(model.params),
        "max_length": task.max_length, "labels": list(splits["train"].examples.labels),
        "data": {name: _digest_of_rows(split) for name, split in splits.items()},
        "scored": {
            name: _digest_of_examples(split.examples) for name, split in splits.items() if name != "train"
        },
        "dropout": None if own else arguments.dropout,
        **{name: getattr(arguments, name) for name in kept},
    }  # fmt: skip


def _digest(params: Any) -> str:
    """Of all parameters."""
    import jax
    import numpy as np

    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        total.update(jax.tree_util.keystr(path).encode())
        total.update(np.ascontiguousarray(leaf).tobytes())
    return total.hexdigest()[:16]


def _digest_of_rows(split: Split) -> str:
    """Of all that the model reads and learns of a split."""
    total = hashlib.sha256()
    for feature in split.features:
        total.update(repr(feature.label).encode())
        for row in feature.rows:
            total.update(row.input_ids.tobytes())
    return total.hexdigest()[:16]


def _digest_of_examples(examples: Examples) -> str:
    """Of all that predictions are made of, written with and held against."""
    total = hashlib.sha256()
    for item in examples.items:
        total.update(repr(item).encode())
    return total.hexdigest()[:16]
