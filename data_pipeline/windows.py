"""The plan of the stream: epochs → windows → rows → global batches, from any position on.

An epoch draws an order of the corpus's blocks and cuts it into windows; a window is paired, packed, shuffled and masked
under keys made of (seed, epoch, window); the rows of all windows, one after the other and epoch after epoch, are cut
into global batches. A position names the first row that is not yet used, so a run resumes by planning one window and
reading nothing before it.
"""

import concurrent.futures
import math
from collections.abc import Iterator
from typing import NamedTuple

from data_pipeline import assembly, masking, packing, randomness
from data_pipeline.config import DataConfig
from data_pipeline.pairing import PAIRINGS
from data_pipeline.sequences import with_separators
from data_pipeline.store import Block, Corpus, join, read_block

_ORDER, _PAIRING, _ROWS, _MASKING = range(4)


class Position(NamedTuple):
    """The first row not yet used."""

    epoch: int = 0
    window: int = 0
    row: int = 0


class Run(NamedTuple):
    """Rows [first, last) of a window."""

    window: assembly.Window
    first: int
    last: int


def windows_of_epoch(corpus: Corpus, config: DataConfig, split: str, seed: int, epoch: int) -> list[list[Block]]:
    """The blocks of each window in the order of the epoch. Every block is in exactly one window.

    All are about equally large and hold at most `window_tokens` tokens and a block: a small rest at the end of an epoch
    would be used up before the next window is planned. A window closes once it holds its share of the tokens and two
    documents (a pair needs two); what is left with fewer joins the window before it.
    """
    blocks = corpus.blocks[split]
    total = sum(block.tokens for block in blocks)
    share = total / max(1, math.ceil(total / config.window_tokens))
    windows: list[list[Block]] = [[]]
    tokens = documents = 0
    for index in randomness.permutation(randomness.key(seed, epoch, 0, _ORDER), len(blocks)).tolist():
        if tokens >= share * len(windows) and documents > 1:
            windows.append([])
            documents = 0
        windows[-1].append(blocks[index])
        tokens, documents = tokens + blocks[index].tokens, documents + blocks[index].documents
    if len(windows) > 1 and documents < 2:
        windows[-2].extend(windows.pop())
    return windows


def check_pairing(corpus: Corpus, config: DataConfig, split: str) -> None:
    """Raises ValueError where the corpus has too few documents for the pairing that is asked for."""
    count = sum(block.documents for block in corpus.blocks[split])
    needed = PAIRINGS[config.pairing].documents
    if count < needed:
        wanted = "next-sentence pairs need two" if needed == 2 else "at least one is needed"
        raise ValueError(
            f"{corpus.path} holds {count} {split} document(s), and {wanted}: put an empty line between documents and "
            "prepare again, hold out another share with --validation-fraction, or choose --data.pairing none"
        )


def plan_window(corpus: Corpus, config: DataConfig, blocks: list[Block], path: tuple[int, int, int]) -> assembly.Window:
    """Reads, pairs, packs and shuffles the blocks of one window under the keys of `path`: (seed, epoch, window)."""
    pairing = PAIRINGS[config.pairing]
    documents = join([read_block(corpus, block) for block in blocks])
    if pairing.separated:
        documents = with_separators(documents, corpus.sep_id)
    sequences = pairing.draw(documents, config, randomness.key(*path, _PAIRING))
    packed = packing.pack(
        sequences.lengths, masking.predictions_of_length(config), config.sequence_length, config.predictions_per_row,
        config.packing, randomness.key(*path, _ROWS),
    )  # fmt: skip
    special = corpus.cls_id, corpus.sep_id
    mask_key = randomness.key(*path, _MASKING)
    return assembly.window_of(documents.tokens, special, sequences, packed, mask_key, config.sequence_length)


def global_batches(
    corpus: Corpus, config: DataConfig, size: int, seed: int, position: Position, split: str, epochs: int | None
) -> Iterator[tuple[list[Run], Position]]:
    """Cuts the rows of all windows into global batches of `size`; a batch may span windows and epochs.

    Endless where `epochs` is None, else the last batch may be short. Raises ValueError for a position that is none of
    this corpus, and for a corpus from which no sequence can be drawn.
    """
    check_pairing(corpus, config, split)
    runs: list[Run] = []
    missing, any_row = size, False
    for (epoch, window), plan in _plans(corpus, config, split, seed, position, epochs):
        row = position.row if (epoch, window) == (position.epoch, position.window) else 0
        if not 0 <= row <= plan.rows:
            raise ValueError(f"position {tuple(position)} is not one of this corpus: its window has {plan.rows} rows")
        if epoch == position.epoch + 2 and not any_row:
            break
        any_row = any_row or plan.rows > 0
        while row < plan.rows:
            last = min(row + missing, plan.rows)
            runs.append(Run(plan, row, last))
            missing -= last - row
            row = last
            if not missing:
                yield runs, Position(epoch, window, row)
                runs, missing = [], size
    whole_epoch = epochs is None or (position.epoch < epochs and position[1:] == (0, 0))
    if whole_epoch and not any_row:
        raise ValueError(f"{corpus.path}: its {split} documents are too short: no sequence can be drawn from them")
    if runs:
        yield runs, Position(epochs or 0, 0, 0)


def _plans(
    corpus: Corpus, config: DataConfig, split: str, seed: int, position: Position, epochs: int | None
) -> Iterator[tuple[tuple[int, int], assembly.Window]]:
    """All windows from `position` on; the next one is planned in the background while one is in use."""
    if epochs is not None and position.epoch >= epochs:
        return
    windows = windows_of_epoch(corpus, config, split, seed, position.epoch) if position.epoch >= 0 else []
    if not 0 <= position.window < len(windows):
        raise ValueError(f"position {tuple(position)} is not one of this corpus: its epoch has {len(windows)} windows")
    epoch, window = position.epoch, position.window
    with concurrent.futures.ThreadPoolExecutor(1) as background:
        pending = background.submit(plan_window, corpus, config, windows[window], (seed, epoch, window))
        while True:
            plan, here = pending.result(), (epoch, window)
            window += 1
            if window == len(windows):
                epoch, window = epoch + 1, 0
                if epoch == epochs:
                    yield here, plan
                    return
                windows = windows_of_epoch(corpus, config, split, seed, epoch)
            pending = background.submit(plan_window, corpus, config, windows[window], (seed, epoch, window))
            yield here, plan


def rows_of_host(runs: list[Run], first: int, last: int) -> list[Run]:
    """Rows [first, last) of a global batch made of `runs`."""
    own, before = [], 0
    for plan, start, end in runs:
        low, high = max(first - before, 0), min(last - before, end - start)
        if low < high:
            own.append(Run(plan, start + low, start + high))
        before += end - start
    return own
