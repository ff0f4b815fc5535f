"""What `data_pipeline.health` reads of a prepared corpus, and which of its sentences and documents came before.

Memory does not grow with the text but by 12 bytes a sentence, a digest and a length, and a few times that while they
are compared.
"""

from typing import NamedTuple

import numpy as np

from data_pipeline import randomness
from data_pipeline.store import Block, Corpus, Documents, read_block
from data_pipeline.tokenizer import Tokenizer

_EXAMPLES = 3


class Repeats(NamedTuple):
    """How many of `total` came before, and the share of all their tokens that these hold."""

    total: int
    repeated: int
    token_share: float


class Example(NamedTuple):
    """A sentence that is there `times` times."""

    text: str
    times: int
    tokens: int


class Text(NamedTuple):
    """What is kept of the N sentences and M documents of some blocks."""

    blocks: list[Block]
    counts: np.ndarray  # [V] int64
    digests: np.ndarray  # [N] uint64
    lengths: np.ndarray  # [N] uint32
    document_digests: np.ndarray  # [M] uint64
    document_lengths: np.ndarray  # [M] int64, in tokens
    document_sentences: np.ndarray  # [M] int64


def totals(blocks: tuple[Block, ...]) -> dict[str, int]:
    """What the blocks hold in all."""
    return {name: sum(getattr(block, name) for block in blocks) for name in ("documents", "sentences", "tokens")}


def read_text(corpus: Corpus, split: str, sample_tokens: int) -> Text:
    """Reads the split block by block, or as many blocks spread evenly over it as hold about `sample_tokens` tokens."""
    everything = corpus.blocks[split]
    share = min(1.0, sample_tokens / max(1, totals(everything)["tokens"]))
    number = max(1, round(len(everything) * share)) if everything else 0
    blocks = [everything[nth * len(everything) // number] for nth in range(number)]
    counts: np.ndarray = np.zeros(corpus.vocab_size, np.int64)
    kept: list[tuple[np.ndarray, ...]] = [
        tuple(np.zeros(0, kind) for kind in (np.uint64, np.uint32, np.uint64, np.int64, np.int64))
    ]
    for block in blocks:
        documents = read_block(corpus, block)
        counts += np.bincount(documents.tokens, minlength=corpus.vocab_size)
        kept.append(_of_block(documents))
    return Text(blocks, counts, *(np.concatenate(parts) for parts in zip(*kept)))


def _of_block(documents: Documents) -> tuple[np.ndarray, ...]:
    """The fields of Text from `digests` on."""
    offsets, borders = documents.sentence_offsets, documents.document_offsets
    digests = _digests(documents.tokens, offsets)
    return (
        digests, np.diff(offsets).astype(np.uint32), _digests(digests, borders), np.diff(offsets[borders]),
        np.diff(borders),
    )  # fmt: skip


def _digests(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """64 bits for each run values[offsets[n]:offsets[n + 1]], uint64 [N]: equal for equal runs. Among 10^9 other
    runs any two agree with a chance of 3 %."""
    position = np.arange(len(values)) - np.repeat(offsets[:-1], np.diff(offsets))
    return np.add.reduceat(randomness.bits(randomness.bits(randomness.key(0), position), values), offsets[:-1])


def count_repeats(digests: np.ndarray, lengths: np.ndarray) -> Repeats:
    """Of N digests and the tokens [N] that they stand for: all but the first of each."""
    order = np.argsort(digests, kind="stable")
    ordered = digests[order]
    repeated = order[1:][ordered[1:] == ordered[:-1]]
    return Repeats(len(digests), len(repeated), token_share(lengths, repeated))


def count_seen(held_out: Text, train: Text) -> Repeats:
    """Held-out sentences that stand in the training text."""
    seen = np.isin(held_out.digests, train.digests)
    return Repeats(len(seen), int(seen.sum()), token_share(held_out.lengths, seen))


def token_share(lengths: np.ndarray, chosen: np.ndarray) -> float:
    """Of the tokens in texts of `lengths` [N], the share that stands in the chosen ones: a mask or indices."""
    return float(lengths[chosen].sum(dtype=np.int64) / max(1, lengths.sum(dtype=np.int64)))


def find_examples(corpus: Corpus, text: Text, tokenizer: Tokenizer) -> list[Example]:
    """The sentences whose repeats hold most tokens."""
    first, counts = np.unique(text.digests, return_index=True, return_counts=True)[1:]
    cost = (counts - 1) * text.lengths[first].astype(np.int64)
    found = []
    borders = np.cumsum([0, *(block.sentences for block in text.blocks)])
    for top in np.argsort(-cost, kind="stable")[:_EXAMPLES]:
        if not cost[top]:
            break
        block = int(np.searchsorted(borders, first[top], side="right")) - 1
        documents = read_block(corpus, text.blocks[block])
        start, end = documents.sentence_offsets[first[top] - borders[block]:][:2]
        pieces = [tokenizer.pieces[token] for token in documents.tokens[start:end]]
        found.append(Example(_written(pieces, tokenizer.kind), int(counts[top]), int(end - start)))
    return found


def _written(pieces: list[str], kind: str) -> str:
    """The pieces as text that a terminal can show."""
    joined = " ".join(pieces).replace(" ##", "") if kind == "wordpiece" else "".join(pieces).replace("\u2581", " ")
    return "".join(character if character.isprintable() else " " for character in joined).strip()
