"""What is pretraining worth? Tasks fine-tuned from a model, from random weights of the same shape, and not at all.

    python -m benchmarks.downstream --init RUN --data TASKS --workdir DIR [--tasks sst2 qnli ...] [--json RESULT.json]
        [--seeds N] [--epochs N] [--max-length N] [--train-examples N] [--learning-rates R,R,...]
        [--compute-dtype bfloat16]

TASKS holds the folders `sst2`, `qnli-small`, `wnut17` and `qa-newwiki`. Each task is fine-tuned by `flaxbert finetune`
with the settings of its row below, twice: from RUN, and with `--fresh True`; 3 seeds each. Beside them stand floors
that read no model: the majority label, naive Bayes over words, the share of a question's words that a sentence has, the
tags that a word mostly has in training, the sentence with the most words of the question. What has ended is kept in DIR
and not trained again. The last five flags take the place of the settings of every chosen row. Of several learning rates
each kind of weights has the one whose mean on the development set is best: two kinds need not want the same.

The settings are for two cores, an hour or two for BERT-mini. With more time or a GPU, `--tasks qa --max-length 384
--train-examples 6742` and more epochs.
"""

import argparse
import collections
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from flaxbert.finetuning.examples import read_examples, sample
from flaxbert.finetuning.files import find_files
from flaxbert.finetuning.forms import Examples
from flaxbert.finetuning.metrics import references, score
from flaxbert.finetuning.tasks import Task, find_task

Floor = Callable[[Examples, Examples], list[Any]]


def majority(train: Examples, dev: Examples) -> list[Any]:
    """The label that training has most often."""
    label = collections.Counter(item.label for item in train.items).most_common(1)[0][0]
    return [label] * len(dev.items)


def naive_bayes(train: Examples, dev: Examples) -> list[Any]:
    """Multinomial, over words and pairs of neighbours."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(CountVectorizer(ngram_range=(1, 2)), MultinomialNB())
    model.fit([item.first for item in train.items], [item.label for item in train.items])
    return list(model.predict([item.first for item in dev.items]))


def word_overlap(train: Examples, dev: Examples) -> list[Any]:
    """By the share of the first text's words that the second has, cut where training says."""
    from sklearn.tree import DecisionTreeClassifier

    def shares(examples: Examples) -> list[list[float]]:
        return [[_shared(item.first, item.second)] for item in examples.items]

    stump = DecisionTreeClassifier(max_depth=1).fit(shares(train), [item.label for item in train.items])
    return list(stump.predict(shares(dev)))


def known_words(train: Examples, dev: Examples) -> list[Any]:
    """Each word's most frequent tag in training, O where it is new."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for item in train.items:
        for word, tag in zip(item.words, item.tags, strict=True):
            counts[word][tag] += 1
    return [[counts[word].most_common(1)[0][0] if word in counts else "O" for word in item.words] for item in dev.items]


def best_sentence(train: Examples, dev: Examples) -> list[Any]:
    """The sentence of the context that has most of the question's words."""
    return [
        max(re.split(r"(?<=[.!?]) ", item.context), key=lambda sentence: _shared(item.question, sentence))
        for item in dev.items
    ]


def _shared(first: str, second: str) -> float:
    one, other = (set(re.findall(r"\w+", text.lower())) for text in (first, second))
    return len(one & other) / max(len(one), 1)


class Row(NamedTuple):
    """A task of the table."""

    task: str
    folder: str
    floors: dict[str, Floor]
    settings: dict[str, str]
    """Flags of `flaxbert finetune` and their values."""


SETTINGS = {"optimizer": "adamw", "learning-rates": "3e-4", "batch-sizes": "32", "dropout": "0.1"}
"""Of all rows, and the same for both kinds of weights. A model of this size wants a higher rate than the paper's three,
and at that rate Adam's bias correction, without which a seed may stay at chance."""

ROWS = {
    "sst2": Row("sst2", "sst2", {"majority": majority, "naive Bayes": naive_bayes}, {
        **SETTINGS, "epochs": "3", "max-length": "40",
    }),
    "qnli": Row("qnli", "qnli-small", {"majority": majority, "word overlap": word_overlap}, {
        **SETTINGS, "batch-sizes": "16", "epochs": "4", "max-length": "64",
    }),
    # Longer sentences are divided at words, and joined again.
    "wnut": Row("ner", "wnut17", {"known words": known_words}, {
        **SETTINGS, "epochs": "5", "max-length": "32",
    }),
    "qa": Row("squad", "qa-newwiki", {"sentence of most shared words": best_sentence}, {
        **SETTINGS, "epochs": "3", "max-length": "128", "train-examples": "800",
    }),
}  # fmt: skip


def floors_of(row: Row, data: Path) -> dict[str, dict[str, float]]:
    """Floor → the task's metrics on the development set, learnt from the examples that the model learns from."""
    task: Task = find_task(row.task)
    paths = find_files(data / row.folder, task)
    train = read_examples(paths["train"], task)
    dev = read_examples(paths["dev"], task, train.labels)
    if "train-examples" in row.settings:
        train = sample(train, int(row.settings["train-examples"]))
    return {name: score(task, floor(train, dev), references(dev)) for name, floor in row.floors.items()}


def tuned(row: Row, init: str, data: Path, workdir: Path, seeds: int, fresh: bool) -> dict[str, Any]:
    """The command of one search, which goes on where it stopped; `metrics`: each one's mean and deviation over seeds
    on the development set, at the learning rate that does best; `means` at each; and the best run of the folder.
    """
    flags = {"init": init, "data": str(data / row.folder), "workdir": str(workdir), "seeds": str(seeds)} | row.settings
    if fresh:
        flags["fresh"] = "True"
    command = ["finetune", row.task, *(part for name, value in flags.items() for part in (f"--{name}", value))]
    subprocess.run([sys.executable, "-m", "flaxbert", *command], check=True)
    found: dict[str, Any] = json.loads((workdir / "results.json").read_text())
    # The folder may hold what an earlier call searched with other rates or more epochs.
    rates = [float(rate) for rate in row.settings["learning-rates"].split(",")]
    wished = [float(row.settings[name]) for name in ("batch-sizes", "epochs")]
    places = [
        each for each in found["rows"]
        if each["learning_rate"] in rates and [each["batch_size"], each["epochs"]] == wished
    ]  # fmt: skip
    place, metric = places[0], find_task(row.task).metrics[0]  # the best mean stands first
    return {
        "command": shlex.join(["flaxbert", *command]), "seeds": place["seeds"], "metrics": place["metrics"],
        "learning_rate": place["learning_rate"],
        "means": {str(each["learning_rate"]): each["metrics"][metric]["mean"] for each in places},
        "best": found["best"], "examples_per_second": found["examples_per_second"], "seconds": found["seconds"],
    }  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """Markdown: a line a task, of the metric that chooses."""
    lines = ["| task | metric | floors | random weights | pretrained | gain |", "|---|---|---|---|---|---|"]
    for name, each in found.items():
        metric = each["metric"]
        floors = ", ".join(f"{floor} {100 * scores[metric]:.1f}" for floor, scores in each["floors"].items())
        fresh, ours = (each[kind]["metrics"][metric] for kind in ("fresh", "pretrained"))
        gain = "" if None in (fresh["mean"], ours["mean"]) else f"{100 * (ours['mean'] - fresh['mean']):+.1f}"
        lines.append(f"| {name} | {metric} | {floors} | {_shown(fresh)} | {_shown(ours)} | {gain} |")
    return "\n".join(lines)


def _shown(metric: dict[str, Any]) -> str:
    if metric["mean"] is None:
        return "diverged"
    spread = "" if metric["deviation"] is None else f" ± {100 * metric['deviation']:.1f}"
    return f"{100 * metric['mean']:.1f}{spread}"


def wished_rows(arguments: argparse.Namespace) -> dict[str, Row]:
    """The chosen rows, their settings replaced by those of the command line."""
    names = ("epochs", "max-length", "train-examples", "learning-rates", "compute-dtype")
    named = {name: getattr(arguments, name.replace("-", "_")) for name in names}
    given = {name: str(value) for name, value in named.items() if value is not None}
    return {name: ROWS[name]._replace(settings=ROWS[name].settings | given) for name in arguments.tasks}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--init", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    for name in ("--epochs", "--max-length", "--train-examples"):
        parser.add_argument(name, type=int)
    parser.add_argument("--learning-rates")
    parser.add_argument("--compute-dtype", choices=("float32", "bfloat16"))
    return parser.parse_args(argv)


def main() -> None:
    arguments, found = parse(), dict[str, Any]()
    machine = {"machine": platform.machine(), "cores": len(os.sched_getaffinity(0))}
    for name, row in wished_rows(arguments).items():
        each: dict[str, Any] = {"metric": find_task(row.task).metrics[0], "settings": row.settings}
        each["floors"] = floors_of(row, arguments.data)
        for kind in ("pretrained", "fresh"):
            workdir = arguments.workdir / f"{name}-{kind}"
            each[kind] = tuned(row, arguments.init, arguments.data, workdir, arguments.seeds, kind == "fresh")
        found[name] = each
        print(table(found), flush=True)
        if arguments.json is not None:  # after each row, so that one that fails loses none before it
            command = shlex.join(["python", "-m", "benchmarks.downstream", *sys.argv[1:]])
            whole = machine | {"command": command, "tasks": found}
            arguments.json.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
