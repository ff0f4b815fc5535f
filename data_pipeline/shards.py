"""One shard: ranges of source text → a Parquet file of training documents and one of held-out documents.

Before that, where duplicates are dropped: ranges of source text → digests of its documents and lines.
"""

import contextlib
import functools
import hashlib
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple

import numpy as np

from data_pipeline.config import PrepareConfig
from data_pipeline.corpus import read_documents
from data_pipeline.digests import DigestWriter
from data_pipeline.documents import Document
from data_pipeline.duplicates import Repeated, Sieve
from data_pipeline.sentences import sentence_splitter
from data_pipeline.sources import Range
from data_pipeline.store import SPLITS, TOKENIZER_FOLDER, Documents, ShardWriter, join, shard_name, token_dtype
from data_pipeline.tokenizer import Tokenizer, load
from data_pipeline.unfinished import writing
from data_pipeline.whole_files import write_json

# Characters encoded at once: enough to repay a call, few enough to stay in the processor's cache and in memory.
_CHUNK_CHARACTERS = 2_000_000
# A row group is closed at this many tokens: what a reader holds at once, and the unit of shuffling by blocks.
_ROW_GROUP_TOKENS = 524_288

COUNTS = ("documents", "sentences", "tokens", "characters", "bytes", "unknown_tokens")


class ShardJob(NamedTuple):
    """All that one shard depends on. `tokenizer` is the fingerprint of the one in the folder; `record` is the file that
    says the shard is whole; `repeated` tells what to drop of it."""

    number: int
    of: int
    ranges: tuple[Range, ...]
    config: PrepareConfig
    folder: Path
    tokenizer: str
    record: Path
    repeated: Repeated | None = None


Work = Callable[[ShardJob, Callable[[int], None]], dict[str, Any]]
"""What is done for one shard: a function of a module, told where to report the bytes it reads; returns a record."""


def digest_shard(job: ShardJob, report: Callable[[int], None]) -> dict[str, Any]:
    """Writes the digests of the shard's documents and lines, and their record, which it returns."""
    with writing(job.folder):
        digests = DigestWriter(job.record.parent, job.number)
        for document in _read(job, report):
            digests.add(document.text.encode("utf-8"))
        record = {"digests": digests.close()}
        write_json(job.record, record)
    return record


def prepare_shard(job: ShardJob, report: Callable[[int], None]) -> dict[str, Any]:
    """Writes the shard's files and its record, which it returns. `report` is told of source bytes as they are read."""
    tokenizer = _tokenizer(job.folder / TOKENIZER_FOLDER, job.tokenizer)
    dtype = token_dtype(tokenizer.vocab_size)
    with writing(job.folder), contextlib.ExitStack() as writers_to_abandon:
        writers = {}
        for split in SPLITS:
            writers[split] = ShardWriter(job.folder / shard_name(split, job.number, job.of), dtype)
            writers_to_abandon.callback(writers[split].abandon)
        digests = DigestWriter(job.record.parent, job.number) if job.config.drop_duplicates == "none" else None
        record = _fill(job, tokenizer, writers, _texts(job, digests, report))
        if digests is not None:
            record["digests"] = digests.close()
        record["shards"] = {split: writer.close() for split, writer in writers.items()}
        write_json(job.record, record)
    return record


@functools.lru_cache(maxsize=1)
def _tokenizer(folder: Path, fingerprint: str) -> Tokenizer:
    """Loaded once in a process, and again where a folder has come to hold another one."""
    return load(folder)


class _Text(NamedTuple):
    """What is kept of a document. `bytes` of UTF-8; the rest as in Document."""

    text: str
    bytes: int
    held_out: bool
    replaced: int
    cut: int


def _fill(
    job: ShardJob, tokenizer: Tokenizer, writers: dict[str, ShardWriter], texts: Iterator[_Text]
) -> dict[str, Any]:
    split_sentences = sentence_splitter(job.config.sentences, job.config.language)
    record: dict[str, Any] = {"replaced": 0, "cut_documents": 0, "blank_documents": 0}
    record["counts"] = {split: dict.fromkeys(COUNTS, 0) for split in SPLITS}
    waiting: dict[str, list[Documents]] = {split: [] for split in SPLITS}
    for chunk in _chunks(texts):
        sentences = [split_sentences(document.text) for document in chunk]
        encoded = tokenizer.encode_ragged([sentence for document in sentences for sentence in document])
        per_document = np.fromiter(map(len, sentences), np.int64, len(sentences))
        held_out = np.fromiter((document.held_out for document in chunk), bool, len(chunk))
        kept = _without_empty(*encoded, per_document)
        record["replaced"] += sum(document.replaced for document in chunk)
        record["cut_documents"] += sum(document.cut for document in chunk)
        record["blank_documents"] += int((~kept.documents).sum())
        for split, chosen in (("train", kept.documents & ~held_out), ("validation", kept.documents & held_out)):
            documents = _select(kept, chosen)
            _count(record["counts"][split], documents, chunk, chosen, tokenizer.unknown_id)
            waiting[split].append(documents)
            if sum(len(each.tokens) for each in waiting[split]) >= _ROW_GROUP_TOKENS:
                writers[split].append(join(waiting[split]))
                waiting[split] = []
    for split, parts in waiting.items():
        if parts:
            writers[split].append(join(parts))
    return record


def _texts(job: ShardJob, digests: DigestWriter | None, report: Callable[[int], None]) -> Iterator[_Text]:
    """The documents but for what came before. Held out by their text as it was read, whatever is dropped of it."""
    sieve = Sieve(job.repeated) if job.repeated is not None else None
    for document in _read(job, report):
        raw = document.text.encode("utf-8")
        held_out = is_held_out(raw, job.config.validation_fraction)
        if digests is not None:
            digests.add(raw)
        text = document.text
        if sieve is not None and (kept := sieve.kept(raw)) != raw:
            text, raw = kept.decode("utf-8"), kept
        if text and not text.isspace():
            yield _Text(text, len(raw), held_out, document.replaced, document.cut)


def _read(job: ShardJob, report: Callable[[int], None]) -> Iterator[Document]:
    for part in job.ranges:
        position = 0
        for document in read_documents(part, job.config.text_field, job.config.encoding_errors):
            reached = min(max(position, document.position), part.size)
            report(reached - position)
            position = reached
            yield document
        report(part.size - position)


def _chunks(documents: Iterator[_Text]) -> Iterator[list[_Text]]:
    chunk: list[_Text] = []
    characters = 0
    for document in documents:
        chunk.append(document)
        characters += len(document.text)
        if characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def is_held_out(text: bytes, fraction: float) -> bool:
    """By the text alone, so that a document stays held out when the corpus grows or is cut otherwise."""
    digest = hashlib.blake2b(text, digest_size=8, person=b"held-out").digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


class _Kept(NamedTuple):
    """A chunk's ids without its empty sentences. `documents` [M]: which of them have any token."""

    ids: np.ndarray  # [T]
    lengths: np.ndarray  # [N] tokens of each sentence
    per_document: np.ndarray  # [M] sentences of each document
    documents: np.ndarray  # [M] bool


def _without_empty(ids: np.ndarray, lengths: np.ndarray, per_document: np.ndarray) -> _Kept:
    owner = np.repeat(np.arange(len(per_document)), per_document)[lengths > 0]
    kept_per_document = np.bincount(owner, minlength=len(per_document))
    return _Kept(ids, lengths[lengths > 0], kept_per_document, kept_per_document > 0)


def _select(kept: _Kept, chosen: np.ndarray) -> Documents:
    """The chosen [M] documents, as arrays of their own."""
    sentences = np.repeat(chosen, kept.per_document)
    tokens = kept.ids[np.repeat(sentences, kept.lengths)]
    return Documents(tokens, _offsets(kept.lengths[sentences]), _offsets(kept.per_document[chosen]))


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def _count(
    counts: dict[str, int], documents: Documents, chunk: list[_Text], chosen: np.ndarray, unknown_id: int
) -> None:
    counts["documents"] += len(documents.document_offsets) - 1
    counts["sentences"] += len(documents.sentence_offsets) - 1
    counts["tokens"] += len(documents.tokens)
    counts["unknown_tokens"] += int(np.count_nonzero(documents.tokens == unknown_id))
    counts["characters"] += sum(len(chunk[index].text) for index in np.flatnonzero(chosen))
    counts["bytes"] += sum(chunk[index].bytes for index in np.flatnonzero(chosen))
