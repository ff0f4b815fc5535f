"""SentencePiece and WordPiece behind one small interface: text → ids, a fingerprint, and a folder that Hugging Face reads.

`.encode` never adds [CLS] or [SEP], and a literal "[MASK]" in a text stays text.
"""

import itertools
import json
import os
from pathlib import Path
from typing import Any, Callable, NamedTuple

import numpy as np

from data_pipeline import sentencepiece_model, tokenizer_folder
from data_pipeline.normalization import normalize
from data_pipeline.store import canonical_digest, token_dtype

SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# The cache of words is emptied beyond these: about 150 MB at most.
_CACHED_WORDS = 400_000
_CACHED_TOKENS = 4_000_000
# Float32 sums over longer words would round, and break ties otherwise than `tokenizers` does in float64.
_EXACT_CHARACTERS = 500
_END_OF_TEXT = " \n"


class Ragged(NamedTuple):
    """The ids of N texts, one after another."""

    ids: np.ndarray  # [T] uint16 or uint32
    lengths: np.ndarray  # [N] int64


class Tokenizer:
    """A vocabulary with its rule. `kind` is `unigram`, `bpe` or `wordpiece`."""

    def __init__(self, kind: str, lowercase: bool, pieces: list[str], model: bytes | None, origin: str):
        """`model` is the serialized SentencePiece model, None for WordPiece. `origin` names the source in errors."""
        self.kind, self.lowercase, self.pieces, self.model = kind, lowercase, pieces, model
        self.vocab_size = len(pieces)
        ids = {piece: index for index, piece in enumerate(pieces)}
        missing = [piece for piece in SPECIAL_PIECES if piece not in ids]
        if missing:
            raise ValueError(f"tokenizer {origin} lacks {', '.join(missing)}: all of {' '.join(SPECIAL_PIECES)} are needed")
        if ids["[PAD]"] != 0:
            raise ValueError(f"tokenizer {origin} has [PAD] = {ids['[PAD]']}: expected [PAD] = 0")
        self.pad_id, self.unknown_id, self.cls_id, self.sep_id, self.mask_id = (ids[name] for name in SPECIAL_PIECES)
        parsed = sentencepiece_model.parse(model, origin) if model is not None else None
        self.fingerprint = canonical_digest([kind, lowercase, pieces, parsed and sentencepiece_model.digest(parsed)])
        self.rust = tokenizer_folder.rust_tokenizer(kind, lowercase, pieces, parsed)
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
            return _flatten(self._encode_batch(texts), self._dtype)
        return self._words.encode(texts)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the folder that `load` and Hugging Face's AutoTokenizer read."""
        tokenizer_folder.save(self, Path(folder))


class _Words:
    """A table of words and their ids: each distinct word is encoded once.

    Sound because every rule of ours splits at spaces: a text's ids are those of its words, one after another. The
    words are the raw ones, so that normalisation too runs once per distinct word.
    """

    def __init__(self, encode_batch: Callable[[list[str]], list[list[int]]], dtype: type[np.unsignedinteger]):
        self._encode_batch, self._dtype = encode_batch, dtype
        self._reset()

    def _reset(self) -> None:
        self._index = _Index({_END_OF_TEXT: 0})
        self._ids, self._starts, self._lengths = np.empty(0, self._dtype), np.zeros(1, np.int64), np.zeros(1, np.int64)

    def encode(self, texts: list[str]) -> Ragged:
        if len(self._index) > _CACHED_WORDS or len(self._ids) > _CACHED_TOKENS:
            self._reset()
        joined = " \n ".join(texts)
        if joined.count("\n") != len(texts) - 1:
            joined = " \n ".join([text.replace("\n", " ") for text in texts])
        positions, distinct = _distinct_words(joined.encode("utf-8", "replace"))
        indices = np.fromiter(map(self._index.__getitem__, distinct), np.int64, len(distinct))[positions]
        self._encode_new_words()

        lengths = self._lengths[indices]
        ends = np.cumsum(lengths)
        text_ends = np.append(ends[indices == 0], ends[-1])
        # Token t of the result stands at t + (its word's start in the table - that word's start in the result).
        shifts = np.repeat(self._starts[indices] - (ends - lengths), lengths)
        ids = self._ids[np.arange(len(shifts)) + shifts]
        return Ragged(ids, np.diff(text_ends, prepend=0))

    def _encode_new_words(self) -> None:
        if not self._index.new:
            return
        ids, lengths = _flatten(self._encode_batch(self._index.new), self._dtype)
        starts = np.cumsum(lengths) - lengths + len(self._ids)
        self._ids = np.concatenate([self._ids, ids])
        self._starts = np.concatenate([self._starts, starts])
        self._lengths = np.concatenate([self._lengths, lengths])
        self._index.new.clear()


class _Index(dict[str, int]):
    """Word → its place in the table; a word not yet there gets the next one and is noted in `new`."""

    def __init__(self, words: dict[str, int]):
        super().__init__(words)
        self.new: list[str] = []

    def __missing__(self, word: str) -> int:
        index = self[word] = len(self)
        self.new.append(word)
        return index


def _distinct_words(text: bytes) -> tuple[np.ndarray, list[str]]:
    """(for each of the words of a text its place among the distinct ones [W], the distinct words).

    Arrow's hash table in place of Python's: a Python object for every word would cost more than encoding it.
    """
    import pyarrow as pa

    # Each word is taken with the space before it, so that words are neighbours in memory and none is copied.
    data = b" " + text
    starts = np.flatnonzero(np.frombuffer(data, np.uint8) == ord(" "))
    offsets = np.append(starts, len(data)).astype(np.int32)
    words = pa.StringArray.from_buffers(len(starts), pa.py_buffer(offsets), pa.py_buffer(data)).dictionary_encode()
    return words.indices.to_numpy(), words.dictionary.to_pylist()


def _flatten(encoded: list[list[int]], dtype: type[np.unsignedinteger]) -> Ragged:
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    ids = np.fromiter(itertools.chain.from_iterable(encoded), dtype, int(lengths.sum()))
    return Ragged(ids, lengths)


def _engine(tokenizer: Tokenizer, model: Any) -> tuple[_Words | None, Callable[[list[str]], list[list[int]]]]:
    """The function that encodes whole texts and, where words can be encoded alone, their cache."""
    rust = tokenizer.rust

    def by_rust(texts: list[str]) -> list[list[int]]:
        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        return [encoding.ids for encoding in rust.encode_batch_fast(clean, add_special_tokens=False)]

    if model is None:
        return _Words(by_rust, tokenizer._dtype), by_rust
    processor = sentencepiece_model.processor(model)

    def by_sentencepiece(texts: list[str]) -> list[list[int]]:
        return processor.encode(texts, out_type=int, num_threads=1)

    def by_own_rule(texts: list[str]) -> list[list[int]]:
        plain = [normalize(text, tokenizer.lowercase) for text in texts]
        encoded = by_sentencepiece(plain)
        long = [index for index, text in enumerate(plain) if len(text) > _EXACT_CHARACTERS]
        for index, ids in zip(long, by_rust([texts[index] for index in long])):
            encoded[index] = ids
        return encoded

    if sentencepiece_model.is_ours(model):
        return _Words(by_own_rule, tokenizer._dtype), by_own_rule
    return None, lambda texts: by_sentencepiece([text.encode("utf-8", "replace").decode("utf-8") for text in texts])


def load(path: str | os.PathLike[str], lowercase: bool = True) -> Tokenizer:
    """Loads a tokenizer folder written by `save`, a SentencePiece model, or a `vocab.txt`.

    `lowercase` counts for a `vocab.txt` alone: the others say themselves. Raises ValueError for anything else.
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
        raise ValueError(f"tokenizer {origin} was trained on text normalised elsewhere: load the folder it was saved in")
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


def _load_vocabulary(path: Path, lowercase: bool, check_case: bool = True) -> Tokenizer:
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
    tokenizer = Tokenizer("wordpiece", lowercase, pieces, None, str(path))
    capitals = [piece for piece in pieces if piece != piece.lower() and piece.strip("[]<>") == piece]
    if check_case and lowercase and len(capitals) > len(pieces) // 100:
        raise ValueError(
            f"vocabulary {path} is cased: it has {capitals[0]!r}, which lower-cased text never holds; "
            "expected lowercase = False"
        )
    return tokenizer
