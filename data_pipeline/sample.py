"""The text a tokenizer is trained on: a bounded sample, spread evenly over the whole corpus and the same every time."""

from pathlib import Path
from typing import Any, Iterator

from data_pipeline.config import PrepareConfig
from data_pipeline.corpus import read_documents
from data_pipeline.sentences import sentence_splitter
from data_pipeline.shards import is_held_out
from data_pipeline.sources import Range
from data_pipeline.tokenizer_training import CHARACTER_COVERAGE, train

SAMPLE_BYTES = 20_000_000
"""Most text a tokenizer is trained on. Training takes some 30 times the memory."""

_SLICE_BYTES = 250_000
_USUAL_COMPRESSION = 3


def train_on_sample(config: PrepareConfig, shards: list[tuple[Range, ...]], folder: Path) -> dict[str, Any]:
    """Trains the tokenizer that config asks for, saves it, and returns what it was trained on."""
    split_sentences = sentence_splitter(config.sentences, config.language)
    documents = list(sample_documents(shards, config, SAMPLE_BYTES))
    sentences = [sentence for document in documents for sentence in split_sentences(document)]
    if not sentences:
        raise ValueError("the corpus is empty: none of its files holds text to train a tokenizer on")
    tokenizer = train(config.tokenizer, sentences, config.vocab_size, config.lowercase)
    tokenizer.save(folder)
    return {
        "documents": len(documents),
        "sentences": len(sentences),
        "characters": sum(map(len, documents)),
        "limit_bytes": SAMPLE_BYTES,
        "character_coverage": CHARACTER_COVERAGE,
    }


def sample_documents(shards: list[tuple[Range, ...]], config: PrepareConfig, limit: int) -> Iterator[str]:
    """Training documents of about `limit` bytes together, the last of a slice cut short; held-out ones are left out."""
    parts = [part for shard in shards for part in shard]
    rate = min(1.0, limit / max(1, sum(map(_text_bytes, parts))))
    # A few compressed files are read through, for they cannot be entered in the middle; of many, the heads will do.
    through = rate == 1 or len(parts) < limit / _SLICE_BYTES
    left = limit
    for piece in (piece for part in parts for piece in _slices(part, rate)):
        spread = bool(piece.source.compression) and through
        # A slice's own share, so that a rich first slice does not take what later ones need.
        seen = taken = 0
        share = int(_text_bytes(piece) * rate) if rate < 1 else limit
        for document in read_documents(piece, config.text_field, config.encoding_errors):
            text = document.text.encode("utf-8")
            seen += len(text)
            if is_held_out(text, config.validation_fraction):
                continue
            room = min(left, share - taken) if not spread else left if taken <= rate * seen else 0
            if room > 0:
                chosen = text[:room].decode("utf-8", "ignore")
                taken, left = taken + min(room, len(text)), left - min(room, len(text))
                yield chosen
            if left <= 0 or (not spread and taken >= share):
                break


def _text_bytes(part: Range) -> int:
    return part.size * (_USUAL_COMPRESSION if part.source.compression else 1)


def _slices(part: Range, rate: float) -> list[Range]:
    """Ranges that together are the part; from the start of each its share is read."""
    if part.source.compression or rate == 1:
        return [part]
    length = part.end - part.start
    count = min(length, max(1, round(part.size * rate / _SLICE_BYTES)))
    borders = [part.start + length * index // count for index in range(count + 1)]
    return [
        part._replace(start=start, end=end, size=part.size * (end - start) // length)
        for start, end in zip(borders, borders[1:])
    ]
