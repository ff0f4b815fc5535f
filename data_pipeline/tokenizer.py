"""SentencePiece and WordPiece behind one interface: text → ids, a fingerprint, a folder that Hugging Face reads.

`.encode` never adds [CLS] or [SEP], and a literal "[MASK]" in a text stays text.
"""

import functools
import json
import os
from pathlib import Path
from typing import Any, Callable

import numpy as np

from data_pipeline import sentencepiece_model, tokenizer_folder
from data_pipeline.normalization import normalize
from data_pipeline.store import token_dtype
from data_pipeline.tokenizer_differences import Difference, differences
from data_pipeline.whole_files import canonical_digest
from data_pipeline.word_table import Ragged, WordTable, flatten

__all__ = ["SPECIAL_PIECES", "Difference", "Tokenizer", "from_sentencepiece", "load"]

SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# Float32 sums over longer words would round, and break ties otherwise than `tokenizers` does in float64.
_EXACT_CHARACTERS = 500


class Tokenizer:
    """A vocabulary with its rule. `kind` is `unigram`, `bpe` or `wordpiece`."""

    def __init__(self, kind: str, lowercase: bool, pieces: list[str], model: bytes | None, origin: str):
        """`model` is the serialized SentencePiece model, None for WordPiece. `origin` names the source in errors."""
        self.kind, self.lowercase, self.pieces, self.model = kind, lowercase, pieces, model
        self.vocab_size = len(pieces)
        ids = {piece: index for index, piece in enumerate(pieces)}
        missing = [piece for piece in SPECIAL_PIECES if piece not in ids]
        if missing:
            needed = " ".join(SPECIAL_PIECES)
            raise ValueError(f"tokenizer {origin} lacks {', '.join(missing)}: all of {needed} are needed")
        if ids["[PAD]"] != 0:
            raise ValueError(f"tokenizer {origin} has [PAD] = {ids['[PAD]']}: expected [PAD] = 0")
        self.pad_id, self.unknown_id, self.cls_id, self.sep_id, self.mask_id = (ids[name] for name in SPECIAL_PIECES)
        parsed = sentencepiece_model.parse(model, origin) if model is not None else None
        self.fingerprint = canonical_digest([kind, lowercase, pieces, parsed and sentencepiece_model.digest(parsed)])
        self._dtype = token_dtype(self.vocab_size)
        self._words, self._encode_batch = _engine(self, parsed)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text."""
        ids, lengths = self.encode_ragged(texts)
        return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])] if texts else []

    def encode_ragged(self, texts: list[str]) -> Ragged:
        """The ids of many texts as flat arrays: the fast form, at its best with about a megabyte at a time."""
        if not texts:
            return Ragged(np.empty(0, self._dtype), np.empty(0, np.int64))
        if self._words is None:
            return self._encode_batch(texts)
        return self._words.encode(texts)

    def to_rust(self) -> Any:
        """The `tokenizers.Tokenizer` that `save` writes: it wraps texts in special tokens and recognises them."""
        model = sentencepiece_model.parse(self.model, "saved") if self.model is not None else None
        return tokenizer_folder.rust_tokenizer(self.kind, self.lowercase, self.pieces, model, special=True)

    def differences(self, exported: Any) -> list[Difference]:
        """How many of the strings drawn for it get other ids from `exported`, a `tokenizers.Tokenizer`."""
        if self.model is None:
            words = [piece for piece in self.pieces if piece not in SPECIAL_PIECES]
            texts = [piece[2:] if piece.startswith("##") else f" {piece}" for piece in words]
        else:
            texts = sentencepiece_model.texts(sentencepiece_model.parse(self.model, "measured"))
        return differences(self.encode, exported, texts)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the folder that `load` and Hugging Face's AutoTokenizer read."""
        tokenizer_folder.save(self, Path(folder))


def _engine(tokenizer: Tokenizer, model: Any) -> tuple[WordTable | None, Callable[[list[str]], Ragged]]:
    """The function that encodes whole texts and, where words can be encoded alone, their table."""
    if model is None:
        by_rust = _rust_engine(tokenizer, model)
        return WordTable(by_rust, tokenizer._dtype), by_rust
    if sentencepiece_model.is_ours(model):
        by_own_rule = _own_engine(tokenizer, model)
        return WordTable(by_own_rule, tokenizer._dtype), by_own_rule
    processor = sentencepiece_model.processor(model)

    def by_foreign_rule(texts: list[str]) -> Ragged:
        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        return flatten(processor.encode(clean, out_type=int, num_threads=1), tokenizer._dtype)

    return None, by_foreign_rule


def _rust_engine(tokenizer: Tokenizer, model: Any) -> Callable[[list[str]], Ragged]:
    @functools.cache
    def rust() -> Any:
        kind, lowercase, pieces = tokenizer.kind, tokenizer.lowercase, tokenizer.pieces
        return tokenizer_folder.rust_tokenizer(kind, lowercase, pieces, model, special=False)

    def encode(texts: list[str]) -> Ragged:
        encodings = rust().encode_batch_fast(texts, add_special_tokens=False)
        return flatten([encoding.ids for encoding in encodings], tokenizer._dtype)

    return encode


def _own_engine(tokenizer: Tokenizer, model: Any) -> Callable[[list[str]], Ragged]:
    """Encodes words, each with the space before it, by SentencePiece; exceedingly long ones by `tokenizers`."""
    processor, by_rust = sentencepiece_model.processor(model), _rust_engine(tokenizer, model)
    lowercase, dtype = tokenizer.lowercase, tokenizer._dtype
    fold = str.lower if lowercase else str
    opens_word = np.array([piece.startswith("\u2581") for piece in tokenizer.pieces])

    def encode(words: list[str]) -> Ragged:
        # For the common word the whole rule is two methods of str.
        plain = [
            fold(word[1:]) if word.isascii() and word.isprintable() else normalize(word, lowercase) for word in words
        ]
        sizes = np.fromiter(map(len, plain), np.int64, len(plain))
        if sizes.max(initial=0) > _EXACT_CHARACTERS:
            long = sizes > _EXACT_CHARACTERS
            apart = [[words[index] for index in np.flatnonzero(chosen)] for chosen in (~long, long)]
            return _merged(encode(apart[0]), by_rust(apart[1]), long)
        # Many words in one text, up to a length that keeps sums exact: a list for each would cost more than its ids.
        borders = np.flatnonzero(np.diff(np.cumsum(sizes) // _EXACT_CHARACTERS, prepend=-1, append=-1))
        texts = [" ".join(filter(None, plain[start:end])) for start, end in zip(borders, borders[1:])]
        ids, _ = flatten(processor.encode(texts, out_type=int, num_threads=1), dtype)
        # A normalised word is one word, or none, or several ("\xa8" holds a space).
        counts = np.fromiter((word.count(" ") + 1 if word else 0 for word in plain), np.int64, len(plain))
        starts = np.append(np.flatnonzero(opens_word[ids]), len(ids))
        return Ragged(ids, np.diff(starts[np.cumsum(counts)], prepend=0))

    return encode


def _merged(first: Ragged, second: Ragged, of_second: np.ndarray) -> Ragged:
    """The texts of both, in an order where of_second [N] says which come from the second."""
    lengths = np.empty(len(of_second), np.int64)
    lengths[~of_second], lengths[of_second] = first.lengths, second.lengths
    token_of_second = np.repeat(of_second, lengths)
    ids = np.empty(len(token_of_second), first.ids.dtype)
    ids[~token_of_second], ids[token_of_second] = first.ids, second.ids
    return Ragged(ids, lengths)


def load(path: str | os.PathLike[str], lowercase: bool | None = True) -> Tokenizer:
    """Loads a tokenizer folder written by `save`, a SentencePiece model, or a `vocab.txt`.

    `lowercase` counts for a `vocab.txt` alone: the others say themselves. None: it is lower-cased unless a piece holds
    a capital letter. Raises ValueError for anything else.
    """
    source = Path(path)
    info = source.parent / tokenizer_folder.INFO
    if source.suffix == ".model" and info.is_file():
        source = source.parent
    if source.is_dir():
        return _load_folder(source)
    if not source.is_file():
        raise ValueError(f"tokenizer {source}: no such file or folder; expected a folder, a *.model or a vocab.txt")
    if source.suffix == ".model":
        return from_sentencepiece(source.read_bytes(), str(source))
    if source.suffix == ".txt":
        return _load_vocabulary(source, lowercase)
    raise ValueError(f"tokenizer {source} is of no known kind: expected a folder, a *.model or a vocab.txt")


def from_sentencepiece(model: bytes, origin: str, lowercase: bool | None = None) -> Tokenizer:
    """A tokenizer from a serialized model. `lowercase` is given for our own; a foreign one carries its own rule."""
    parsed = sentencepiece_model.parse(model, origin)
    if (lowercase is not None) != sentencepiece_model.is_ours(parsed):
        raise ValueError(f"tokenizer {origin} was trained on normalised text: load the folder it was saved in")
    pieces = [piece.text for piece in parsed.pieces]
    return Tokenizer(sentencepiece_model.kind(parsed, origin), bool(lowercase), pieces, model, origin)


def _load_folder(folder: Path) -> Tokenizer:
    path = folder / tokenizer_folder.INFO
    if not path.is_file():
        if (folder / "vocab.txt").is_file():
            raise ValueError(f"tokenizer folder {folder} was not written by prepare: give its vocab.txt instead")
        raise ValueError(f"tokenizer folder {folder} is not one: it has no {tokenizer_folder.INFO}")
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        kind, lowercase, fingerprint = info["kind"], info["lowercase"], info["fingerprint"]
        own = info["normalization"] == "own"
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is damaged: expected a JSON object with kind, lowercase and fingerprint") from None
    if kind == "wordpiece":
        tokenizer = _load_vocabulary(folder / tokenizer_folder.VOCABULARY, lowercase, check_case=False)
    else:
        model = folder / tokenizer_folder.MODEL
        if not model.is_file():
            raise ValueError(f"tokenizer folder {folder} is incomplete: {model.name} is missing")
        tokenizer = from_sentencepiece(model.read_bytes(), str(model), lowercase if own else None)
    if tokenizer.fingerprint != fingerprint:
        raise ValueError(f"tokenizer folder {folder} is damaged: its content is not what {path.name} records")
    return tokenizer


def _load_vocabulary(path: Path, lowercase: bool | None, check_case: bool = True) -> Tokenizer:
    if not path.is_file():
        raise ValueError(f"tokenizer folder {path.parent} is incomplete: {path.name} is missing")
    try:
        pieces = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"vocabulary {path} is not UTF-8 at byte {error.start}") from None
    pieces = [piece.rstrip("\r") for piece in pieces]
    lines: dict[str, int] = {}
    for number, piece in enumerate(pieces, start=1):
        if lines.setdefault(piece, number) != number:
            raise ValueError(f"vocabulary {path} has {piece!r} twice: on lines {lines[piece]} and {number}")
    capitals = [piece for piece in pieces if piece != piece.lower() and piece.strip("[]<>") == piece]
    lowercase = not capitals if lowercase is None else lowercase
    tokenizer = Tokenizer("wordpiece", lowercase, pieces, None, str(path))
    if check_case and lowercase and len(capitals) > len(pieces) // 100:
        raise ValueError(
            f"vocabulary {path} is cased: it has {capitals[0]!r}, which lower-cased text never holds; "
            "expected lowercase = False"
        )
    return tokenizer
