"""What can be said of a prepared corpus before a step is trained."""

from typing import NamedTuple

import numpy as np

from data_pipeline import stream
from data_pipeline.config import DataConfig
from data_pipeline.store import Corpus, read_block

DEGENERATE_LABEL_SHARE = 0.85  # above it, always guessing one label is nearly right and NSP teaches nothing


class WindowFacts(NamedTuple):
    """Facts of the first window of a stream, which stand for the rest of it."""

    random_labels: float
    """Share of sequences whose B is random: the label 1 of next-sentence prediction."""
    fill: float
    """Share of positions that hold a token and not padding."""
    rows_per_epoch: float
    """Rows in one pass over the corpus, extrapolated by tokens."""


def unigram_entropy(corpus: Corpus, split: str) -> float:
    """Entropy of the split's token frequencies in nats: what a model reaches that ignores all context."""
    counts = np.zeros(corpus.vocab_size, np.int64)
    for block in corpus.blocks[split]:
        counts += np.bincount(read_block(corpus, block).tokens, minlength=corpus.vocab_size)
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(shares * np.log(shares)).sum())


def window_facts(corpus: Corpus, config: DataConfig, seed: int) -> WindowFacts:
    """Plans the first training window and describes it."""
    blocks = corpus.blocks["train"]
    first = stream.windows_of_epoch(corpus, config, "train", seed, 0)[0]
    window = stream.plan_window(corpus, config, "train", seed, 0, 0)
    share = sum(block.tokens for block in first) / sum(block.tokens for block in blocks)
    sequences = window.sequences
    tokens = sequences.a_length.sum() + sequences.b_length.sum() + 3 * len(sequences.a_length)
    return WindowFacts(
        random_labels=float(sequences.next_sentence_labels.mean()),
        fill=float(tokens / (window.rows * config.sequence_length)),
        rows_per_epoch=window.rows / share,
    )
