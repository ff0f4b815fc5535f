"""What can be said of a prepared corpus before a step is trained."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from data_pipeline import windows
from data_pipeline.config import DataConfig
from data_pipeline.store import Corpus, read_block

DEGENERATE_LABEL_SHARE = 0.85  # above it, always guessing one label is nearly right and NSP teaches nothing


class WindowFacts(NamedTuple):
    """Facts of the first window of a stream, which stand for the rest of it."""

    random_labels: float | None
    """Share of label 1 among the sequences that have one: B is random or, in sentence order, swapped."""
    fill: float
    """Share of positions that hold a token and not padding."""
    rows_per_epoch: float
    """Rows in one pass over the corpus, extrapolated by tokens."""


def unigram_entropy(corpus: Corpus, split: str) -> float:
    """Entropy of the split's token frequencies in nats: what a model reaches that ignores all context."""
    counts = np.zeros(corpus.vocab_size, np.int64)
    for block in corpus.blocks[split]:
        counts += np.bincount(read_block(corpus, block).tokens, minlength=corpus.vocab_size)
    return entropy(counts)


def entropy(counts: np.ndarray) -> float:
    """Of the frequencies that `counts` [V] stand for, in nats; never negative, not even zero."""
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return max(0.0, -float((shares * np.log(shares)).sum()))


def window_facts(corpus: Corpus, config: DataConfig, seed: int) -> WindowFacts:
    """Plans the first training window and describes it."""
    windows.check_pairing(corpus, config, "train")
    first = windows.windows_of_epoch(corpus, config, "train", seed, 0)[0]
    window = windows.plan_window(corpus, config, first, (seed, 0, 0))
    share = sum(block.tokens for block in first) / sum(block.tokens for block in corpus.blocks["train"])
    labelled = window.sequences.next_sentence_labels[window.sequences.b_length > 0]
    return WindowFacts(
        random_labels=float(labelled.mean()) if len(labelled) else None,
        fill=float(window.sequences.lengths.sum() / max(1, window.rows * config.sequence_length)),
        rows_per_epoch=window.rows / share,
    )


def count(corpus: Corpus, split: str) -> dict[str, int]:
    """`documents`, `sentences` and `tokens` of a split."""
    blocks = corpus.blocks[split]
    return {name: sum(getattr(block, name) for block in blocks) for name in ("documents", "sentences", "tokens")}


def outlook(corpus: Corpus, config: DataConfig, batch_size: int, seed: int, evaluated: bool) -> Iterator[str]:
    """What a run will see, in sentences, with a warning where next-sentence prediction cannot teach.

    Raises ValueError where it would see nothing: too few documents, or less than a batch.
    """
    if evaluated:
        try:
            windows.check_pairing(corpus, config, "validation")
        except ValueError as error:
            raise ValueError(f"{error}; --train.eval-every 0 trains without evaluation") from None
    facts = window_facts(corpus, config, seed)
    steps = facts.rows_per_epoch / batch_size
    if steps < 1:
        raise ValueError(
            f"{corpus.path} gives {facts.rows_per_epoch:,.0f} rows an epoch, fewer than one batch of {batch_size}: "
            "prepare more text, or choose a smaller --train.batch-size"
        )
    tokens = count(corpus, "train")["tokens"]
    yield (
        f"corpus: {tokens:,} tokens, {facts.rows_per_epoch:,.0f} rows an epoch ({steps:,.0f} steps), "
        f"rows {facts.fill:.0%} full"
    )
    if facts.random_labels is not None:
        label = "swapped" if config.pairing == "sop" else "random"
        yield f"sentence pairs: {facts.random_labels:.0%} of the labels are '{label}'"
        if max(facts.random_labels, 1 - facts.random_labels) > DEGENERATE_LABEL_SHARE:
            yield (
                "warning: nearly all next-sentence labels are the same, so that head learns to say so and no more; its "
                "usual cause is text with one sentence a document or a line; --data.pairing nsp-balanced draws half "
                "and half from any text"
            )
    if evaluated:
        yield (
            f"unigram entropy of the held-out text: {unigram_entropy(corpus, 'validation'):.3f} nats "
            "(a loss that stays there has learnt frequencies alone)"
        )
