"""`flaxbert report`: one page on a run, be it at its end or under way."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from flaxbert.tools.outputs import check_output, write_output
from flaxbert.tools.report_metrics import History, read_history
from flaxbert.tools.report_tuning import Tuning, read_tuning
from flaxbert.training.run import RunConfig, read_run

QUESTIONS = (
    "The capital of France is [MASK].",
    "He was born in [MASK] and died in London.",
    "She did [MASK] know what to say.",
)  # a fact, a place, and a word that grammar alone nearly gives: learnt in the opposite order
_GUESSES = 3


class Filled(NamedTuple):
    """What a checkpoint makes of the questions."""

    step: int
    guesses: list[list[tuple[str, float]]]
    """Of each question the likeliest tokens and their probabilities."""
    trouble: str = ""
    """Why there are no guesses."""


class Report(NamedTuple):
    """All that the page is made of."""

    name: str
    run: RunConfig
    history: History
    parameters: int
    floor: float | None
    """The unigram entropy of the held-out text in nats."""
    filled: list[Filled]
    tuned: list[Tuning]


def write_report(
    folder: str, tuned: tuple[str, ...], output: str, floor_of: Callable[[RunConfig], float | None],
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Writes the page on the run of `folder` and on the fine-tuning folders `tuned`.

    `floor_of` gives the unigram entropy of a run's held-out text in nats, or None. Raises ValueError for a folder that
    is not what it should be and for a page that cannot be written: before anything slow is begun.
    """
    check_output("--output", output, (".html", ".htm"))
    run, path = read_run(folder), Path(folder)
    tables = [read_tuning(each) for each in tuned]
    history, filled = read_history(path, run), fill_masks(path, say)
    name = path.resolve().name
    report = Report(name, run, history, _parameters(run), floor_of(run), filled, tables)

    from flaxbert.tools.report_page import write_page

    write_output("--output", output, write_page(report).encode("utf-8"))
    print(f"written: {output}")


def fill_masks(folder: Path, say: Callable[[str], None]) -> list[Filled]:
    """What each checkpoint that is kept makes of the questions, the oldest first."""
    from flaxbert.training.checkpoint import saved_steps

    found = []
    for step in saved_steps(str(folder)):
        say(f"filling masks with the checkpoint of step {step:,}")
        found.append(_filled(folder, step))
    return found


def _filled(folder: Path, step: int) -> Filled:
    """A run that goes on may delete the checkpoint meanwhile: that is told on the page, and the page is written."""
    from flaxbert.tools.load import load_run

    try:
        model, _ = load_run(folder, step)
        top = min(_GUESSES, model.config.vocab_size or 1)
        answers = [model.fill_mask(question, top)[0] for question in QUESTIONS]
    except ValueError as error:
        return Filled(step, [], str(error))
    return Filled(step, [[(fill.token, fill.probability) for fill in fills] for fills in answers])


def _parameters(run: RunConfig) -> int:
    import jax

    from flaxbert.interop.architectures import Checkpoint, parameter_count
    from flaxbert.model.pretraining import initialize

    model = run.experiment.model
    return parameter_count(Checkpoint(model, jax.eval_shape(lambda: initialize(model, jax.random.key(0)))))
