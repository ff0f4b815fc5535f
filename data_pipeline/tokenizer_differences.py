"""How often an exported tokenizer gives other ids than the one that made the corpus: measured on strings drawn for it.

Ours never do. A foreign SentencePiece model may: `tokenizers` follows its map of characters with differences.
"""

import random
from typing import Any, Callable, NamedTuple

_STRINGS = 2000
_LONGEST = 40
# ASCII; combining marks; all alphabets; East Asia; what is left, most of it private or unassigned. No surrogates.
_RANGES = (
    range(0x20, 0x7F), range(0x300, 0x370), range(0xA0, 0x3000), range(0x3000, 0xD800), range(0xE000, 0x110000)
)  # fmt: skip


class Difference(NamedTuple):
    """Of `compared` strings, made of `what`, `differing` get other ids."""

    what: str
    compared: int
    differing: int


def differences(encode: Callable[[list[str]], list[list[int]]], exported: Any, pieces: list[str]) -> list[Difference]:
    """Compares `encode` with `exported`, a `tokenizers.Tokenizer`: the same strings for the same pieces, always.

    `pieces` are the vocabulary as text: a piece that opens a word has the space before it.
    """
    samples = {"its own pieces in random order": _joined(pieces), "random characters of Unicode": _characters()}
    return [Difference(name, len(texts), _differing(encode, exported, texts)) for name, texts in samples.items()]


def _differing(encode: Callable[[list[str]], list[list[int]]], exported: Any, texts: list[str]) -> int:
    found = exported.encode_batch(texts, add_special_tokens=False)
    return sum(ids != encoding.ids for ids, encoding in zip(encode(texts), found, strict=True))


def _characters() -> list[str]:
    draw = random.Random(0)
    return [
        "".join(chr(draw.choice(draw.choice(_RANGES))) for _ in range(draw.randint(1, _LONGEST)))
        for _ in range(_STRINGS)
    ]


def _joined(pieces: list[str]) -> list[str]:
    draw = random.Random(0)
    return ["".join(draw.choices(pieces, k=draw.randint(1, _LONGEST))) for _ in range(_STRINGS)]
