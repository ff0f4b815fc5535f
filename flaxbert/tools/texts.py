"""Texts → a model's batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np

_SHORTEST = 16  # lengths are padded to 16, 32, 64, …, so that few of them are compiled

Text = str | tuple[str, str]


def tokenize(
    tokenizer: Any, texts: Sequence[Text], max_length: int | None, longest: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Texts or pairs as a model's batch [B, S] and its mask [B, S], False is padding: special tokens added, cut to
    `max_length`, or else to the `longest` that the model reads. `tokenizer` is a `tokenizers.Tokenizer`.
    """
    limit = longest if max_length is None else max_length
    if isinstance(texts, str) or not texts:
        raise ValueError(f"texts is {texts!r}, expected a list of at least one text or pair of texts")
    check_unicode(texts)
    pairs = any(not isinstance(text, str) for text in texts)
    special = tokenizer.num_special_tokens_to_add(pairs)
    if not special < limit <= longest:
        raise ValueError(f"max_length {limit} is not in [{special + 1}, {longest}], the model's range")
    tokenizer.enable_truncation(limit)
    try:
        encodings = tokenizer.encode_batch(list(texts))
    finally:
        tokenizer.no_truncation()
    most = max(len(encoding.ids) for encoding in encodings)
    length = min(limit, max(_SHORTEST, 1 << (most - 1).bit_length()))
    return _batch(encodings, length)


def check_unicode(texts: Sequence[Text]) -> None:
    """A command line that is not UTF-8 reaches Python as lone surrogates, which no tokenizer takes."""
    for text in texts:
        for part in (text,) if isinstance(text, str) else text:
            strange = next((index for index, character in enumerate(part) if "\ud800" <= character <= "\udfff"), None)
            if strange is not None:
                shown = short(part).encode("ascii", "backslashreplace").decode()
                raise ValueError(f"text '{shown}' is not valid Unicode at character {strange + 1}")


def _batch(encodings: Sequence[Any], length: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    ids, segments, mask = (np.zeros((len(encodings), length), np.int32) for _ in range(3))
    for row, encoding in enumerate(encodings):
        size = len(encoding.ids)
        ids[row, :size], segments[row, :size], mask[row, :size] = encoding.ids, encoding.type_ids, 1
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), ids.shape)
    batch = {"input_ids": ids, "segment_ids": segments, "sequence_ids": mask, "position_ids": positions}
    return batch, mask.astype(bool)


def short(text: str) -> str:
    """A text as an error shows it."""
    return text if len(text) <= 60 else text[:59] + "…"
