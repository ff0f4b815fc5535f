"""The text of the tasks' training files, without labels and questions, to pretrain on the tasks' own kinds of text too.

    python -m benchmarks.task_text --data TASKS --output FILE [--copies N]

TASKS is that of `benchmarks.downstream`. What is written is input of `flaxbert prepare`: a line for each review, post,
sentence of a pair, and passage of questions, 20 to a document, in another order in each copy. Of development and test
files no text is taken. Gururangan et al. 2020 (arXiv:2004.10964) call it task-adaptive pretraining.
"""

import argparse
import random
from pathlib import Path

from benchmarks.downstream import ROWS
from flaxbert.finetuning.examples import read_examples
from flaxbert.finetuning.files import find_files
from flaxbert.finetuning.forms import Examples
from flaxbert.finetuning.tasks import find_task

LINES_OF_A_DOCUMENT = 20


def texts(name: str, examples: Examples) -> list[str]:
    """The texts of one task, each once, in the order of the file."""
    found = {
        "sst2": lambda item: item.first,
        "qnli": lambda item: item.second,
        "wnut": lambda item: " ".join(item.words),
        "qa": lambda item: item.context,
    }[name]
    # A line of the file that is written is a paragraph.
    return list(dict.fromkeys(" ".join(found(item).split()) for item in examples.items))


def documents(lines: list[str], copies: int) -> list[list[str]]:
    """`copies` times all lines, each time in another order."""
    source, found = random.Random(0), []
    for _ in range(copies):
        lines = source.sample(lines, len(lines))
        found += [lines[begin:begin + LINES_OF_A_DOCUMENT] for begin in range(0, len(lines), LINES_OF_A_DOCUMENT)]
    return found


def written(found: list[list[str]]) -> str:
    """An empty line between documents."""
    return "\n\n".join("\n".join(lines) for lines in found) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--copies", type=int, default=6)
    arguments = parser.parse_args(argv)
    found = []
    for name, row in ROWS.items():
        task = find_task(row.task)
        lines = texts(name, read_examples(find_files(arguments.data / row.folder, task)["train"], task))
        print(f"{name}: {len(lines)} texts, {sum(map(len, lines)):,} characters")
        found += documents(lines, arguments.copies)
    arguments.output.write_text(written(found), encoding="utf-8")


if __name__ == "__main__":
    main()
