"""What the checkpoints of a run put for [MASK] in a few sentences, always the same."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

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
