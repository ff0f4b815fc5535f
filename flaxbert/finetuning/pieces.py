"""Texts → pieces of a `tokenizers.Tokenizer`, with the characters that each stands for.

The tokenizer is that of `flaxbert.load` or `data_pipeline.tokenizer.Tokenizer.to_rust`, without padding or truncation.
What stands in a text is text: a literal "[SEP]" does not end it.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

_TEXTS_AT_ONCE = 10_000  # encodings take some 100 bytes a token until they are arrays


class Special(NamedTuple):
    """The ids around a text."""

    cls_id: int
    sep_id: int


def special_ids(tokenizer: Any) -> Special:
    """The ids that the tokenizer wraps texts in. Raises ValueError where they do not stand as in BERT."""
    encoding = tokenizer.encode("", "")
    ids = encoding.ids
    if len(ids) != 3 or ids[1] != ids[2] or list(encoding.type_ids) != [0, 0, 1]:
        raise ValueError(f"the tokenizer wraps a pair of texts as {encoding.tokens}, expected [CLS] A [SEP] B [SEP]")
    return Special(ids[0], ids[1])


def ids_of(tokenizer: Any, texts: Sequence[str]) -> list[np.ndarray]:
    """The ids of each text, int32."""
    with _as_text(tokenizer):
        return [
            np.asarray(encoding.ids, np.int32)
            for part in _parts(texts)
            for encoding in tokenizer.encode_batch_fast(part, add_special_tokens=False)
        ]


def ids_and_offsets(tokenizer: Any, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The ids of each text [S] and the characters [S, 2] that each piece stands for, int32, without the white space
    that SentencePiece counts to the word after it.
    """
    with _as_text(tokenizer):
        return [
            (np.asarray(encoding.ids, np.int32), _without_space(text, encoding.offsets))
            for part in _parts(texts)
            for text, encoding in zip(part, tokenizer.encode_batch(part, add_special_tokens=False))
        ]


def _parts(texts: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        yield list(texts[start:start + _TEXTS_AT_ONCE])


def _without_space(text: str, offsets: list[tuple[int, int]]) -> np.ndarray:
    found = np.asarray(offsets, np.int32).reshape(-1, 2)
    for place, (start, end) in enumerate(offsets):
        if start < end and (text[start].isspace() or text[end - 1].isspace()):
            inside = text[start:end].strip()
            begin = text.find(inside, start)
            found[place] = begin, begin + len(inside)
    return found


@contextlib.contextmanager
def _as_text(tokenizer: Any) -> Iterator[None]:
    before = tokenizer.encode_special_tokens
    tokenizer.encode_special_tokens = True
    try:
        yield
    finally:
        tokenizer.encode_special_tokens = before
