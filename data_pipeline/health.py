"""What a prepared corpus is like, measured before a step is trained: repeats, lengths, vocabulary, and the sequences
that each way of pairing draws from it. What of it is a trouble, `data_pipeline.verdicts` says.

Of a corpus of more than `sample_tokens` tokens, blocks spread evenly over it stand for the rest.
"""

import os
import unicodedata
from typing import Any, NamedTuple

import numpy as np

from data_pipeline import windows
from data_pipeline.config import DataConfig
from data_pipeline.pairing import PAIRINGS
from data_pipeline.repeats import (
    Example, Repeats, count_repeats, count_seen, find_examples, read_text, token_share, totals
)
from data_pipeline.statistics import entropy, unigram_entropy
from data_pipeline.store import TOKENIZER_FOLDER, Corpus, open_corpus
from data_pipeline.tokenizer import SPECIAL_PIECES, Tokenizer, load
from data_pipeline.word_starts import may_be_a_word

PACKING = 8
"""`data.packing` of the packed rows: beyond it hardly any row has room left."""
RARE = 10
"""An entry seen less often is hardly learnt: at a mask rate of 0.15 it is predicted about once an epoch."""

_PLAN_TOKENS = 16_000_000  # planned for each pairing and length: about half a second
_RANKS = 200
_BINS = 32


class Distribution(NamedTuple):
    """Of whole numbers from 1 on. Bin i of the histogram holds counts[i] numbers in [edges[i], edges[i + 1])."""

    mean: float
    median: float
    percentile_95: float
    longest: int
    edges: list[int]
    counts: list[int]


class Vocabulary(NamedTuple):
    """How the tokens of the training text use the vocabulary; its entries do not count the five special tokens."""

    entries: int
    never_used: int
    rarely_used: int
    """Used, but less than RARE times."""
    unknown_share: float
    """Of the tokens, as the next."""
    single_letter_share: float
    """Letters of alphabets with capitals: elsewhere, as in Chinese, one letter may well be a word. No digits."""
    entropy: float
    """Nats: the loss of a model that knows the frequencies of tokens and no context."""
    held_out_entropy: float | None
    ranks: list[int]
    """From 1, the commonest entry: those that a plot needs."""
    rank_counts: list[int]


class Stream(NamedTuple):
    """What one pairing makes of the corpus at one length, without packing and with `--data.packing 8`."""

    sequence_length: int
    pairing: str
    documents_needed: int
    """Nothing else is known where the corpus has fewer."""
    random_labels: float | None = None
    """Share of label 1 among the sequences that have one."""
    rows: int = 0
    """An epoch, as the next."""
    steps: int = 0
    fill: float = 0.0
    """Share of positions that hold a token and not padding."""
    packed_rows: int = 0
    packed_steps: int = 0
    packed_fill: float = 0.0
    edges: list[int] = []
    counts: list[int] = []
    """Of the sequences' lengths, as in Distribution."""


class Health(NamedTuple):
    """All that `examine` measures. Counts of a split are of all of it; the rest is of the sample."""

    corpus: str
    fingerprint: str
    tokenizer: dict[str, Any]
    """`kind`, `vocab_size`, `lowercase`, whether any entry has `capitals`, and whether it was `trained` on this
    corpus."""
    sentences_setting: str
    """`--sentences` of prepare."""
    drop_duplicates: str
    """`--drop-duplicates` of prepare."""
    train: dict[str, int]
    validation: dict[str, int]
    sample_tokens: int
    sample_share: float
    source_repeats: dict[str, dict[str, int]] | None
    """What prepare counted in the text itself, where it did: of `documents` and `lines`, how many `repeated`."""
    repeated_documents: Repeats
    repeated_sentences: Repeats
    held_out_seen: Repeats
    """Held-out sentences that stand in the training text too."""
    examples: list[Example]
    sentence_tokens: Distribution
    document_sentences: Distribution
    document_tokens: Distribution
    one_sentence_documents: float
    """Share of the documents."""
    long_sentences: float
    """Share of the tokens that stand in sentences too long for a pair of the shortest length."""
    vocabulary: Vocabulary
    batch_size: int
    streams: list[Stream]


def examine(path: str | os.PathLike[str], batch_size: int, lengths: tuple[int, ...], sample_tokens: int) -> Health:
    """Measures a prepared corpus, after comparing the checksum of every shard.

    Raises ValueError for a folder that is none or is damaged, for one without training text, and for bad arguments.
    """
    if batch_size < 1 or sample_tokens < 1 or not lengths:
        raise ValueError(
            f"batch_size {batch_size}, sample_tokens {sample_tokens}, lengths {lengths}: expected positive numbers"
        )
    if min(lengths) < PACKING:
        most = "as many as there are sequences in a packed row"
        raise ValueError(f"lengths {min(lengths)} is too short: expected at least {PACKING}, {most}")
    plans = [_plan(length, pairing) for length in sorted(set(lengths)) for pairing in PAIRINGS]
    corpus = open_corpus(path, verify="content")
    if not corpus.blocks["train"]:
        raise ValueError(f"{path} holds no training document: prepare more text, or hold out less of it")
    tokenizer = load(corpus.path / TOKENIZER_FOLDER)
    if tokenizer.fingerprint != corpus.tokenizer_fingerprint:
        raise ValueError(f"{path} is damaged: its tokenizer folder is not the one that its text was prepared with")
    train, held_out = (read_text(corpus, split, sample_tokens) for split in ("train", "validation"))
    manifest, sampled = corpus.manifest, int(train.counts.sum())
    return Health(
        corpus=str(path),
        fingerprint=corpus.fingerprint,
        tokenizer=_about(tokenizer) | {"trained": manifest["tokenizer"]["trained_on"] is not None},
        sentences_setting=manifest["settings"]["sentences"],
        drop_duplicates=manifest["settings"].get("drop_duplicates", "none"),  # not in corpora of earlier releases
        train=totals(corpus.blocks["train"]),
        validation=totals(corpus.blocks["validation"]),
        sample_tokens=sampled,
        sample_share=sampled / totals(corpus.blocks["train"])["tokens"],
        source_repeats=manifest.get("duplicates"),  # as the setting
        repeated_documents=count_repeats(train.document_digests, train.document_lengths),
        repeated_sentences=count_repeats(train.digests, train.lengths),
        held_out_seen=count_seen(held_out, train),
        examples=find_examples(corpus, train, tokenizer),
        sentence_tokens=_distribution(train.lengths),
        document_sentences=_distribution(train.document_sentences),
        document_tokens=_distribution(train.document_lengths),
        one_sentence_documents=float((train.document_sentences == 1).mean()),
        long_sentences=token_share(train.lengths, train.lengths > min(lengths) - 3),
        vocabulary=_vocabulary(corpus, tokenizer, train.counts),
        batch_size=batch_size,
        streams=[_stream(corpus, plan, batch_size) for plan in plans],
    )


def plain(value: Any) -> Any:
    """Named tuples → dictionaries, all the way down: what JSON can hold."""
    if hasattr(value, "_asdict"):
        return {name: plain(each) for name, each in value._asdict().items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return value


def _about(tokenizer: Tokenizer) -> dict[str, Any]:
    known = {name: getattr(tokenizer, name) for name in ("kind", "vocab_size", "lowercase")}
    words = [piece for piece in tokenizer.pieces if piece not in SPECIAL_PIECES and not piece.startswith("[unused")]
    return known | {"capitals": any(piece != piece.lower() for piece in words)}


def _plan(length: int, pairing: str) -> DataConfig:
    return DataConfig(length, pairing, packing=PACKING, window_tokens=_PLAN_TOKENS)  # type: ignore[arg-type]


def _distribution(values: np.ndarray) -> Distribution:
    longest = int(values.max())
    thirds = np.arange(3 * longest.bit_length() + 1) / 3  # of an octave: whole numbers near them grow evenly
    edges = np.unique(np.round(2**thirds)).astype(np.int64)
    edges = np.append(edges[edges <= longest], longest + 1)
    median, late = np.quantile(values, [0.5, 0.95])
    counts = np.histogram(values, edges)[0]
    return Distribution(float(values.mean()), float(median), float(late), longest, edges.tolist(), counts.tolist())


def _vocabulary(corpus: Corpus, tokenizer: Tokenizer, counts: np.ndarray) -> Vocabulary:
    tokens = int(counts.sum())
    own = np.delete(counts, [tokenizer.pieces.index(piece) for piece in SPECIAL_PIECES])
    ordered = np.sort(counts[counts > 0])[::-1]
    ranks = np.unique(np.geomspace(1, len(ordered), _RANKS).astype(int))
    return Vocabulary(
        entries=len(own),
        never_used=int((own == 0).sum()),
        rarely_used=int(((own > 0) & (own < RARE)).sum()),
        unknown_share=float(counts[corpus.unknown_id] / tokens),
        single_letter_share=float(counts[_single_letters(tokenizer.pieces)].sum() / tokens),
        entropy=entropy(counts),
        held_out_entropy=unigram_entropy(corpus, "validation") if corpus.blocks["validation"] else None,
        ranks=ranks.tolist(),
        rank_counts=ordered[ranks - 1].tolist(),
    )


def _single_letters(pieces: list[str]) -> np.ndarray:
    """[V] bool, with or without the mark that says whether a word begins."""
    bare = [piece.removeprefix("##").removeprefix("\u2581") for piece in pieces]
    letters = (len(text) == 1 and unicodedata.category(text).startswith("L") for text in bare)
    return np.array([letter and not may_be_a_word(text) for letter, text in zip(letters, bare)])


def _stream(corpus: Corpus, config: DataConfig, batch_size: int) -> Stream:
    """Plans the first window of the stream; the rest of the corpus counts as its like."""
    length, needed = config.sequence_length, PAIRINGS[config.pairing].documents
    found = Stream(length, config.pairing, needed)
    if totals(corpus.blocks["train"])["documents"] < needed:
        return found
    first = windows.windows_of_epoch(corpus, config, "train", 0, 0)[0]
    window = windows.plan_window(corpus, config, first, (0, 0, 0))
    whole = totals(corpus.blocks["train"])["tokens"] / sum(block.tokens for block in first)
    lengths, labels = window.sequences.lengths, window.sequences.next_sentence_labels[window.sequences.b_length > 0]
    rows, packed_rows = len(lengths) * whole, window.rows * whole
    edges = np.unique([*np.linspace(1, length, _BINS).astype(int), length, length + 1])
    return found._replace(
        random_labels=float(labels.mean()) if len(labels) else None,
        rows=round(rows),
        steps=int(rows / batch_size),
        fill=float(lengths.sum() / max(1, len(lengths) * length)),
        packed_rows=round(packed_rows),
        packed_steps=int(packed_rows / batch_size),
        packed_fill=float(lengths.sum() / max(1, window.rows * length)),
        edges=edges.tolist(),
        counts=np.histogram(lengths, edges)[0].tolist(),
    )
