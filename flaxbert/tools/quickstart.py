"""The guided tour: prepare, pretrain, look and export on one machine, without data or network."""

import json
import pathlib
import shlex

from rich.table import Table

from flaxbert.terminal import Tables

CORPUS, RUN, EXPORT = "corpus", "run", "export"

QUESTIONS = (
    "raises a [MASK] if the key is not found.",
    "return a new [MASK] with all the elements of the list.",
    "the [MASK] of the array along the given axis.",
    "if the file does not [MASK], an error is raised.",
)  # what a Python programmer can judge

VOCAB_SIZE = 2_000  # small, so that each entry is seen often in the few minutes of the tour


def commands(folder: str) -> list[list[str]]:
    """The commands of the tour, as a user would type them. Taken again, it neither exports nor prepares once more: the
    packages whose documentation is the corpus may have changed since.
    """
    root = pathlib.Path(folder)
    corpus, run, export = (str(root / name) for name in (CORPUS, RUN, EXPORT))
    prepare = ["prepare", "python-docs", "--output", corpus]
    prepare += ["--vocab-size", str(VOCAB_SIZE), "--validation-fraction=0.05"]
    middle = [["pretrain", "quickstart", "--corpus", corpus, "--workdir", run], ["fill-mask", run, *QUESTIONS]]
    first = [] if (root / CORPUS / "dataset.json").exists() else [prepare]
    last = [] if (root / EXPORT).exists() else [["export", run, export]]
    return first + middle + last


def corpus_folder(folder: str) -> str:
    """Where the tour's corpus lies."""
    return str(pathlib.Path(folder) / CORPUS)


def announce(command: list[str]) -> None:
    """Shows the command that comes next."""
    Tables().print(f"\n$ {shlex.join(['flaxbert', *command])}", style="bold", soft_wrap=True)


def show_what_it_learnt(folder: str, unigram_entropy: float) -> None:
    """Prints the last held-out numbers of the run beside what a model without context, or without thought, reaches."""
    lines = (pathlib.Path(folder) / RUN / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    last = [record for record in map(json.loads, lines) if record["split"] == "validation"][-1]
    majority = max(last["nsp_random"], 1 - last["nsp_random"])
    table = Table(title=f"On held-out text, after {last['step']:,} steps")
    for heading in ("", "this model", "without learning", ""):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_row(
        "masked words, loss in nats", f"{last['mlm_loss']:.2f}", f"{unigram_entropy:.2f}",
        "unigram entropy: the best guess from frequencies alone",
    )  # fmt: skip
    table.add_row("masked words, accuracy", f"{last['mlm_accuracy']:.1%}", "", "")
    nsp = f"{last['nsp_accuracy']:.1%}"
    table.add_row("next sentence, accuracy", nsp, f"{majority:.1%}", "always the commoner label")
    Tables().print(table)


def say_what_is_next(folder: str) -> None:
    """The three commands for a text of one's own."""
    Tables().print(
        f"\nThe model is in {pathlib.Path(folder) / EXPORT}; transformers loads it with "
        "AutoModelForPreTraining.from_pretrained.\nNow on your own text (an empty line between documents):\n\n"
        "  flaxbert prepare YOUR_TEXT.txt --output corpus\n"
        "  flaxbert pretrain bert_mini --corpus corpus --workdir runs/mini\n"
        "  flaxbert export runs/mini my-bert\n",
        soft_wrap=True,
    )
