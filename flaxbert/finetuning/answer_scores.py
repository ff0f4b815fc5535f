"""Exact match and F1 of answers, as the official evaluations of SQuAD 1.1 and 2.0 define them."""

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> str:
    """Lower case, without ASCII punctuation, English articles and further white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def score_answer(answer: str, references: Sequence[str], has_no_answer: bool) -> tuple[float, float]:
    """(exact match, F1) of an answer, 0 to 1, each the best over the references.

    SQuAD 2.0 (`has_no_answer`): references of which normalisation leaves nothing do not count; where none is left, no
    answer is right. SQuAD 1.1: an answer without words has no word in common with any reference.
    """
    found, expected = normalized(answer), [normalized(reference) for reference in references]
    if has_no_answer:
        expected = [reference for reference in expected if reference] or [""]
    if not expected:
        return 0.0, 0.0
    exact = float(found in expected)
    return exact, max(_f1(found.split(), reference.split(), has_no_answer) for reference in expected)


def _f1(found: list[str], expected: list[str], has_no_answer: bool) -> float:
    if has_no_answer and not (found and expected):
        return float(found == expected)
    common = (Counter(found) & Counter(expected)).total()
    return 2 * common / (len(found) + len(expected)) if common else 0.0
