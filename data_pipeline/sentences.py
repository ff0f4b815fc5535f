"""A document → its sentences. Why `sentencex`: docs/sentence_splitting.md."""

import re
from typing import Callable

# `sentencex` takes an ideographic full stop before a digit for a decimal point.
_STOPS = "。！？"
_STOP_BEFORE_DIGIT = re.compile(f"(?<=[{_STOPS}])(?=[0-9０-９])")
# `sentencex` takes quadratic time on a line full of quotation marks: longer lines are cut at a space beforehand.
_LONGEST_PIECE = 20_000
_PIECE = re.compile(rf".{{1,{_LONGEST_PIECE}}}(?:(?<= )|$)|.{{1,{_LONGEST_PIECE}}}", re.DOTALL)


def sentence_splitter(mode: str, language: str) -> Callable[[str], list[str]]:
    """A function from a document to its sentences, in order; none is blank, none spans a line's end.

    `mode` is `split`, sentences inside each line, or `lines`, every line one sentence. White space around a sentence
    may stay: tokenizers pass over it. Raises ValueError for another mode or a language that is no code.
    """
    if mode == "lines":
        return _lines
    if mode != "split":
        raise ValueError(f"sentences {mode!r} is not one of 'split', 'lines'")
    if not (language.isascii() and language.replace("-", "").isalpha() and 2 <= len(language) <= 12):
        raise ValueError(f"language {language!r} is not a code such as 'en', 'de' or 'zh'")

    from sentencex import segment

    def split(document: str) -> list[str]:
        sentences = [sentence for line in _pieces(document) for sentence in segment(language, line)]
        if any(stop in document for stop in _STOPS):
            sentences = [part for sentence in sentences for part in _STOP_BEFORE_DIGIT.split(sentence)]
        return [sentence for sentence in sentences if not sentence.isspace()]

    return split


def _pieces(document: str) -> list[str]:
    lines = [line for line in document.split("\n") if line]
    if max(map(len, lines), default=0) <= _LONGEST_PIECE:
        return lines
    return [piece for line in lines for piece in _PIECE.findall(line)]


def _lines(document: str) -> list[str]:
    return [line for line in document.split("\n") if line and not line.isspace()]
