"""What a model reads of an example, and what is kept beside it to make an answer of what the model says."""

from typing import Any, NamedTuple

import numpy as np


class Row(NamedTuple):
    """One sequence with its special tokens."""

    input_ids: np.ndarray  # [S] int32
    first_length: int
    """Tokens of segment 0, those before the second text."""
    cut: bool = False
    """Whether a text lost tokens that no other row shows."""


class Window(NamedTuple):
    """A part of the context of a question, N tokens."""

    start: int
    """Where it begins in the row."""
    offsets: np.ndarray
    """[N, 2] int32: the characters of the context that a token stands for, white space aside."""
    max_context: np.ndarray
    """[N] bool: no other window shows more of what is around the token."""


class Feature(NamedTuple):
    """One example, or one part of it: a window of its context, or some words of its sentence."""

    example: int
    """Its place in the list of examples."""
    rows: tuple[Row, ...]
    """One; in multiple choice, one for each choice."""
    label: Any
    """The number of a class or of a choice; a number in regression; [S] int32 in tagging, -1 where no word begins;
    (start, end) in qa, (0, 0) where the window has no answer. None: not known, nothing is learnt of it.
    """
    words: np.ndarray | None = None
    """In tagging, [S] int32: the word that begins at a token, -1 where none does."""
    window: Window | None = None
    """In qa."""

    @property
    def length(self) -> int:
        """S of the longest row."""
        return max(len(row.input_ids) for row in self.rows)
