"""Masking: which tokens of a batch are predicted, and what stands in their place. Whole batches at once."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from data_pipeline import randomness
from data_pipeline.assembly import Layout
from data_pipeline.candidates import Candidates
from data_pipeline.config import DataConfig
from data_pipeline.word_masking import choose_spans, choose_words

_REPLACEMENT = np.array([1 << 32])  # the counter of a row's key for replacements, beyond those of its positions


class Vocabulary(NamedTuple):
    """What masking needs to know of the tokenizer."""

    size: int
    cls_id: int
    sep_id: int
    mask_id: int
    word_starts: np.ndarray
    """[V] bool: the pieces that open a word."""


def mask(
    batch: dict[str, np.ndarray], layout: Layout, row_keys: np.ndarray, vocabulary: Vocabulary, config: DataConfig
) -> dict[str, np.ndarray]:
    """Masks the sequences of a batch; `row_keys` uint64 [B] decide all that is random.

    Returns the batch with `input_ids` masked and `masked_positions`, `masked_ids` and `masked_weights` [B, P], of
    whatever type holds the numbers; positions ascend, unused slots have position 0 and weight 0.
    Reference: `create_masked_lm_predictions` in create_pretraining_data.py.
    """
    input_ids = batch["input_ids"]
    eligible = batch["sequence_ids"].astype(bool) & (input_ids != vocabulary.cls_id) & (input_ids != vocabulary.sep_id)
    quota = predictions_of_length(config)[layout.length]
    candidates = Candidates(eligible, layout, quota, row_keys, config.packing)
    chosen = MASKINGS[config.masking](candidates, input_ids, vocabulary.word_starts)
    positions, deciding, weights = _in_slots(*chosen, layout, input_ids.shape, config.predictions_per_row)

    cells = positions + np.arange(len(positions))[:, None] * input_ids.shape[1]
    labels = input_ids.take(cells) * weights
    masked = input_ids.copy()
    replacement = _replace(labels, positions, deciding, row_keys, vocabulary, config)
    # An unused slot points at position 0, which is never a candidate: it gets back what stands there.
    masked.ravel()[cells] = np.where(weights, replacement, input_ids[:, :1])
    return batch | {
        "input_ids": masked, "masked_positions": positions, "masked_ids": labels, "masked_weights": weights,
    }  # fmt: skip


@functools.lru_cache
def predictions_of_length(config: DataConfig) -> np.ndarray:
    """How many tokens of a sequence of each length to predict, int64 [S + 1]. The length counts the special tokens
    in; halves round to even.
    """
    length = np.arange(config.sequence_length + 1)
    share = np.maximum(1, np.rint(config.mask_rate * length)).astype(np.int64)
    return np.minimum(share, config.predictions_per_row) * (length > 0)


def choose_tokens(
    candidates: Candidates, input_ids: np.ndarray, word_starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each token alone, all with equal chance: as the reference does by default."""
    chosen, counts = candidates.shuffled(candidates.eligible, candidates.quota)
    return chosen, chosen, counts


def _in_slots(
    cells: np.ndarray, deciding: np.ndarray, of_sequence: np.ndarray, layout: Layout, shape: tuple[int, ...], width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chosen cells, of_sequence [n] of each sequence, as columns that ascend: (positions int64, deciding columns
    int64, taken bool) [B, P].
    """
    rows, length = shape
    counts = np.bincount(layout.row, of_sequence, rows).astype(np.int64)
    first = np.repeat(np.arange(0, rows * length, length), counts)
    taken = np.arange(width) < counts[:, None]

    def in_slots(ascending: np.ndarray) -> np.ndarray:
        columns = np.zeros((rows, width), np.int64)
        columns[taken] = ascending - first
        return columns

    chosen = np.zeros(rows * length, bool)
    chosen[cells] = True
    ascending = np.flatnonzero(chosen)  # a pass over all cells takes less time than sorting those that are chosen
    positions = in_slots(ascending)
    if deciding is cells:
        return positions, positions, taken
    decider = np.empty(rows * length, np.int64)
    decider[cells] = deciding
    return positions, in_slots(decider[ascending]), taken


def _replace(
    labels: np.ndarray, positions: np.ndarray, deciding: np.ndarray, row_keys: np.ndarray, vocabulary: Vocabulary,
    config: DataConfig,
) -> np.ndarray:  # fmt: skip
    """What stands in a chosen token's place: [MASK], itself, or any id of the vocabulary. [B, P]."""
    keys = randomness.bits(row_keys, _REPLACEMENT)[:, None]
    kind = randomness.uniform(keys, 2 * deciding)
    drawn = randomness.integers(keys, 2 * positions + 1, vocabulary.size)
    mask_share, keep_share, _ = config.mask_replacement
    return np.where(kind < mask_share, vocabulary.mask_id, np.where(kind < mask_share + keep_share, labels, drawn))


# What `data.masking` names: each returns the cells to predict, sequence by sequence, for each the cell whose draw
# decides what stands in its place, and how many there are of each sequence.
MASKINGS: dict[str, Callable[[Candidates, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]] = {
    "token": choose_tokens,
    "whole-word": choose_words,
    "span": choose_spans,
}
