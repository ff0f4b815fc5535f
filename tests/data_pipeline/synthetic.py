"""Documents, rows and small prepared corpora made of random ids, without text."""

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from data_pipeline import stream
from data_pipeline.assembly import Layout, Window
from data_pipeline.config import DataConfig
from data_pipeline.store import (
    TOKENIZER_FOLDER, Corpus, Documents, ShardWriter, open_corpus, shard_name, token_dtype, write_manifest
)
from data_pipeline.tokenizer import SPECIAL_PIECES, Tokenizer
from data_pipeline.windows import Run, plan_window, windows_of_epoch

IDS = {"pad_id": 0, "unknown_id": 1, "cls_id": 2, "sep_id": 3, "mask_id": 4}

TEXTS = {  # tokens in a sentence, sentences in a document
    "encyclopedia": (lambda rng: 1 + rng.negative_binomial(3, 0.12), lambda rng: 1 + rng.geometric(0.06)),
    "a paragraph a line": (lambda rng: 40 + rng.negative_binomial(3, 0.03), lambda rng: 1 + rng.poisson(6)),
    "lines longer than a row": (lambda rng: 130 + rng.negative_binomial(3, 0.03), lambda rng: 1 + rng.poisson(6)),
    "one sentence a document": (lambda rng: 1 + rng.negative_binomial(3, 0.12), lambda rng: 1),
}
"""Shapes of text: what `nsp` makes of the four differs most."""


def flat(documents: Iterable[Iterable[int]]) -> Documents:
    """Documents given by the lengths of their sentences. A token is its own number."""
    lengths = [list(sentences) for sentences in documents]
    sentence_offsets = np.cumsum([0] + [length for sentences in lengths for length in sentences])
    document_offsets = np.cumsum([0] + [len(sentences) for sentences in lengths])
    return Documents(np.arange(sentence_offsets[-1], dtype=np.uint32), sentence_offsets, document_offsets)


def nested(documents: Documents) -> list[list[list[int]]]:
    """The same as lists: document, sentence, token."""
    tokens, offsets, borders = (array.tolist() for array in documents)
    return [
        [tokens[offsets[n] : offsets[n + 1]] for n in range(first, last)] for first, last in zip(borders, borders[1:])
    ]


@functools.cache
def text_like(name: str, documents: int, seed: int) -> Documents:
    """Documents whose sentence lengths look like one of TEXTS. A token is its own number."""
    rng = np.random.default_rng(seed)
    tokens, sentences = TEXTS[name]
    return flat([tokens(rng) for _ in range(sentences(rng))] for _ in range(documents))


def with_tokens(documents: Documents, rng: np.random.Generator, vocab_size: int) -> Documents:
    """The same sentences of random tokens, none of them special."""
    tokens = rng.integers(len(IDS), vocab_size, len(documents.tokens))
    return documents._replace(tokens=tokens.astype(token_dtype(vocab_size)))


def random_documents(count: int, rng: np.random.Generator, vocab_size: int, sentences: int = 8) -> Documents:
    per_document = rng.integers(1, 2 * sentences, count)
    lengths = rng.integers(1, 20, per_document.sum())
    tokens = rng.integers(len(IDS), vocab_size, lengths.sum()).astype(token_dtype(vocab_size))
    return Documents(tokens, np.cumsum([0, *lengths]), np.cumsum([0, *per_document]))


def make_corpus(
    path: Path, train: list[list[int]], validation: list[list[int]] = [[6]], vocab_size: int = 60_000, seed: int = 0
) -> Corpus:
    """A corpus whose shards have the given numbers of documents in their row groups."""
    rng = np.random.default_rng(seed)
    drawn = {
        split: [[random_documents(count, rng, vocab_size) for count in counts] for counts in groups]
        for split, groups in (("train", train), ("validation", validation))
    }
    return write_corpus(path, drawn["train"], drawn["validation"], vocab_size)


def write_corpus(
    path: Path, train: Sequence[Sequence[Documents]], validation: Sequence[Sequence[Documents]] = (),
    vocab_size: int = 60_000, pieces: list[str] | None = None,
) -> Corpus:  # fmt: skip
    """A corpus whose shards have the given documents in their row groups; with the WordPiece tokenizer of `pieces`."""
    path.mkdir()
    shards: dict[str, list[dict]] = {}
    for split, groups in (("train", train), ("validation", validation)):
        shards[split] = []
        for index, parts in enumerate(groups):
            writer = ShardWriter(path / shard_name(split, index, len(groups)), token_dtype(vocab_size))
            for documents in parts:
                writer.append(documents)
            shards[split].append(writer.close())
    if pieces is not None:
        Tokenizer("wordpiece", True, pieces, None, "test").save(path / TOKENIZER_FOLDER)
    write_manifest(path, {"shards": shards, "tokenizer": {"fingerprint": "none", "vocab_size": vocab_size, **IDS}})
    return open_corpus(path)


def word_pieces(size: int) -> list[str]:
    """A WordPiece vocabulary in which two of five pieces go on with a word."""
    return [*SPECIAL_PIECES, *(f"##w{n}" if n % 5 > 2 else f"w{n}" for n in range(len(SPECIAL_PIECES), size))]


def rows_of(rows: list[list[list[int]]], length: int) -> tuple[dict[str, np.ndarray], Layout]:
    """Rows of [CLS] A [SEP] B [SEP], or of [CLS] A [SEP] for a text of one token: one for each text of a row."""
    ids, numbers = np.zeros((2, len(rows), length), np.int32)
    places = []
    for row, texts in enumerate(rows):
        start = 0
        for number, text in enumerate(texts, start=1):
            tokens = sequence_of(text)
            ids[row, start : start + len(tokens)], numbers[row, start : start + len(tokens)] = tokens, number
            places.append((row, start, len(tokens), max(len(text) // 2, 1)))
            start += len(tokens)
    layout = Layout(*np.array(places, np.int64).reshape(-1, 4).T)
    return {"input_ids": ids, "sequence_ids": numbers}, layout


def sequence_of(text: list[int]) -> list[int]:
    """The first half of a text as segment A, the rest as B."""
    half = max(len(text) // 2, 1)
    second = [*text[half:], IDS["sep_id"]] if len(text) > 1 else []
    return [IDS["cls_id"], *text[:half], IDS["sep_id"], *second]


def planned(corpus: Corpus, config: DataConfig, seed: int, epoch: int, window: int, split: str = "train") -> Window:
    """One window of the stream."""
    blocks = windows_of_epoch(corpus, config, split, seed, epoch)[window]
    return plan_window(corpus, config, blocks, (seed, epoch, window))


def built(corpus: Corpus, config: DataConfig, runs: list[Run], count: int) -> dict[str, np.ndarray]:
    """`count` rows as the stream's workers build them, without tf.data: those of `runs`, and empty ones behind them."""
    batch, _ = stream._views(stream._aligned(stream._batch_bytes(config, count)), config, count)
    stream._fill([batch], runs, stream.vocabulary_of(corpus, config), config)
    return batch
