"""Text → ids by way of distinct words: each is encoded once, and texts are put together from a table of them."""

import itertools
from typing import Callable, NamedTuple

import numpy as np

# The cache of words is emptied beyond these: about 250 MB at most.
_CACHED_WORDS = 1_000_000
_CACHED_TOKENS = 8_000_000
_END_OF_TEXT = " \n"


class Ragged(NamedTuple):
    """The ids of N texts, one after another."""

    ids: np.ndarray  # [T] uint16 or uint32
    lengths: np.ndarray  # [N] int64


class WordTable:
    """A table of words and their ids: each distinct word is encoded once.

    Sound because every rule of ours splits at spaces: a text's ids are those of its words, one after another. The
    words are the raw ones, so that normalisation too runs once per distinct word.
    """

    def __init__(self, encode_batch: Callable[[list[str]], Ragged], dtype: type[np.unsignedinteger]):
        self._encode_batch, self._dtype = encode_batch, dtype
        self._reset()

    def _reset(self) -> None:
        self._index = _Index({_END_OF_TEXT: 0})
        self._ids, self._starts, self._lengths = np.empty(0, self._dtype), np.zeros(1, np.int64), np.zeros(1, np.int64)

    def encode(self, texts: list[str]) -> Ragged:
        """The ids of the texts. A new word reaches `encode_batch` with the space before it."""
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
        ids, lengths = self._encode_batch(self._index.new)
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


def flatten(encoded: list[list[int]], dtype: type[np.unsignedinteger]) -> Ragged:
    """Lists of ids, one for each text, as flat arrays."""
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    ids = np.fromiter(itertools.chain.from_iterable(encoded), dtype, int(lengths.sum()))
    return Ragged(ids, lengths)
