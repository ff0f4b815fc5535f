"""Small prepared corpora made of random ids, without text and tokenizer."""

from pathlib import Path

import numpy as np

from data_pipeline.store import Corpus, Documents, ShardWriter, open_corpus, shard_name, token_dtype, write_manifest

IDS = {"pad_id": 0, "unknown_id": 1, "cls_id": 2, "sep_id": 3, "mask_id": 4}


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
    path.mkdir()
    shards: dict[str, list[dict]] = {}
    for split, groups in (("train", train), ("validation", validation)):
        shards[split] = []
        for index, counts in enumerate(groups):
            writer = ShardWriter(path / shard_name(split, index, len(groups)), token_dtype(vocab_size))
            for count in counts:
                writer.append(random_documents(count, rng, vocab_size))
            shards[split].append(writer.close())
    write_manifest(path, {"shards": shards, "tokenizer": {"fingerprint": "none", "vocab_size": vocab_size, **IDS}})
    return open_corpus(path)
