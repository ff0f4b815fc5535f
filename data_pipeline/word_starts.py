"""Which pieces of a vocabulary open a word: what whole-word and span masking go by."""

import unicodedata

import numpy as np

_SPACE_MARK, _CONTINUATION = "\u2581", "##"

# Scripts written without spaces, by the first words of their characters' Unicode names.
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "YI")


def word_starts(kind: str, pieces: list[str]) -> np.ndarray:
    """[V] bool: whether each piece opens a word. `kind` is `wordpiece`, or that of a SentencePiece model.

    WordPiece: every piece but those with `##` (BERT's tokenizer parts punctuation and CJK characters off as words).
    SentencePiece marks the space before a word; what has no mark goes on with the word, unless it begins with
    punctuation or a symbol (ALBERT's rule), or in a script without spaces, where each piece counts as a word.
    """
    if kind == "wordpiece":
        return np.array([not piece.startswith(_CONTINUATION) for piece in pieces])
    return np.array([piece.startswith(_SPACE_MARK) or _stands_alone(piece) for piece in pieces])


def may_be_a_word(letter: str) -> bool:
    """Whether one character of its script may well be a word: an ideograph, a syllable, a letter of unspaced text."""
    return unicodedata.name(letter, "").startswith((*_UNSPACED, "HANGUL"))


def _stands_alone(piece: str) -> bool:
    first = piece[:1]
    if not first or piece == "[UNK]":
        return False
    return unicodedata.category(first)[0] in "PS" or unicodedata.name(first, "").startswith(_UNSPACED)
