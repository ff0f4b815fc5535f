"""What is pretraining worth? Tasks fine-tuned from a model, from random weights of the same shape, and not at all.

    python -m benchmarks.downstream --init RUN --data TASKS --workdir DIR [--tasks sst2 qnli ...] [--json RESULT.json]

TASKS holds the folders `sst2`, `qnli-small`, `wnut17` and `qa-newwiki`. Each task is fine-tuned by `flaxbert finetune`
with the flags of its row below, twice: from RUN, and with `--fresh True`; 3 seeds each. Beside them stand floors that
read no model: the majority label, naive Bayes over words, the share of a question's words that a sentence has, the
tags that a word mostly has in training, the sentence with the most words of the question. What has ended is kept in DIR
and not trained again.
"""

import argparse
import collections
import json
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flaxbert.finetuning.examples import read_examples
from flaxbert.finetuning.files import find_files
from flaxbert.finetuning.forms import Examples
from flaxbert.finetuning.metrics import references, score
from flaxbert.finetuning.tasks import Task, find_task

SEEDS = 3
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
    flags: tuple[str, ...]


ROWS = {
    "sst2": Row("sst2", "sst2", {"majority": majority, "naive Bayes": naive_bayes}, (
        "--learning-rates", "1e-4,3e-4", "--batch-sizes", "32", "--epochs", "3", "--max-length", "64",
    )),
    "qnli": Row("qnli", "qnli-small", {"majority": majority, "word overlap": word_overlap}, (
        "--learning-rates", "1e-4,3e-4", "--batch-sizes", "32", "--epochs", "4", "--max-length", "128",
    )),
    "wnut": Row("ner", "wnut17", {"known words": known_words}, (
        "--learning-rates", "3e-4", "--batch-sizes", "32", "--epochs", "5", "--max-length", "64",
    )),
    "qa": Row("squad", "qa-newwiki", {"sentence of most shared words": best_sentence}, (
        "--learning-rates", "3e-4", "--batch-sizes", "32", "--epochs", "2", "--max-length", "128",
        "--train-examples", "2000",
    )),
}  # fmt: skip


def floors_of(row: Row, data: Path) -> dict[str, dict[str, float]]:
    """Floor → the task's metrics on the development set."""
    task: Task = find_task(row.task)
    paths = find_files(data / row.folder, task)
    train = read_examples(paths["train"], task)
    dev = read_examples(paths["dev"], task, train.labels)
    return {name: score(task, floor(train, dev), references(dev)) for name, floor in row.floors.items()}


def tuned(row: Row, init: str, data: Path, workdir: Path, more: Sequence[str]) -> dict[str, Any]:
    """The results of one search, which goes on where it stopped."""
    command = [
        sys.executable, "-m", "flaxbert", "finetune", row.task, "--init", init, "--data", str(data / row.folder),
        "--workdir", str(workdir), "--seeds", str(SEEDS), *row.flags, *more,
    ]  # fmt: skip
    subprocess.run(command, check=True)
    found: dict[str, Any] = json.loads((workdir / "results.json").read_text())
    return found


def table(found: dict[str, Any]) -> str:
    """Markdown: a line a task, of the metric that chooses."""
    lines = ["| task | metric | floors | random weights | pretrained | gain |", "|---|---|---|---|---|---|"]
    for name, each in found.items():
        metric = each["metric"]
        floors = ", ".join(f"{floor} {100 * scores[metric]:.1f}" for floor, scores in each["floors"].items())
        fresh, ours = (each[kind]["rows"][0]["metrics"][metric] for kind in ("fresh", "pretrained"))
        shown = [f"{100 * cell['mean']:.1f} ± {100 * cell['deviation']:.1f}" for cell in (fresh, ours)]
        lines.append(
            f"| {name} | {metric} | {floors} | {shown[0]} | {shown[1]} | {100 * (ours['mean'] - fresh['mean']):+.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--init", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    for name in arguments.tasks:
        row = ROWS[name]
        found[name] = {"metric": find_task(row.task).metrics[0], "flags": list(row.flags)}
        found[name]["floors"] = floors_of(row, arguments.data)
        for kind, more in (("pretrained", ()), ("fresh", ("--fresh", "True"))):
            workdir = arguments.workdir / f"{name}-{kind}"
            found[name][kind] = tuned(row, arguments.init, arguments.data, workdir, more)
        print(table(found), flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"machine": platform.machine(), **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
