"""Masking: which tokens of a batch are predicted, and what stands in their place. Whole batches at once."""

from typing import NamedTuple

import numpy as np

from data_pipeline import randomness
from data_pipeline.config import DataConfig


class Vocabulary(NamedTuple):
    """The ids that masking needs to know."""

    size: int
    cls_id: int
    sep_id: int
    mask_id: int


def mask_tokens(
    batch: dict[str, np.ndarray], row_keys: np.ndarray, vocabulary: Vocabulary, config: DataConfig
) -> dict[str, np.ndarray]:
    """Masks a batch of rows that hold one sequence each; `row_keys` uint64 [B] decide all that is random.

    Returns the batch with `input_ids` masked and `masked_positions`, `masked_ids` int32 and `masked_weights`
    float32 [B, P]; positions ascend, unused slots have position 0 and weight 0.
    Reference: `create_masked_lm_predictions` in create_pretraining_data.py.
    """
    input_ids, width = batch["input_ids"], config.predictions_per_row
    candidates = (batch["sequence_ids"] > 0) & (input_ids != vocabulary.cls_id) & (input_ids != vocabulary.sep_id)
    positions, weights = _choose(candidates, _number_to_predict(batch["sequence_ids"], config), width, row_keys)

    labels = np.take_along_axis(input_ids, positions, axis=1) * weights
    masked = input_ids.copy()
    replacement = _replace(labels, positions, vocabulary, row_keys)
    # An unused slot points at position 0, which is never a candidate: it gets back what stands there.
    np.put_along_axis(masked, positions, np.where(weights, replacement, input_ids[:, :1]), axis=1)
    return batch | {
        "input_ids": masked,
        "masked_positions": positions.astype(np.int32),
        "masked_ids": labels.astype(np.int32),
        "masked_weights": weights.astype(np.float32),
    }


def _number_to_predict(sequence_ids: np.ndarray, config: DataConfig) -> np.ndarray:
    """Predictions of each row, int64 [B]. The share counts the special tokens in; halves round to even."""
    length = (sequence_ids > 0).sum(axis=1)
    share = np.maximum(1, np.rint(config.mask_rate * length)).astype(np.int64)
    return np.minimum(share, config.predictions_per_row) * (length > 0)


def _choose(
    candidates: np.ndarray, wanted: np.ndarray, width: int, row_keys: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Draws `wanted` [B] of each row's candidates [B, S] without replacement: positions int64, taken bool [B, P].

    A candidate's random key and its column share one integer, so the smallest P keys carry their places along. 32 bits
    sort several times as fast as 64, and leave 23 random ones at length 512: a tie in ten million.
    """
    rows, length = candidates.shape
    low = np.uint32(2 ** int(length - 1).bit_length() - 1)
    columns = np.arange(length, dtype=np.uint32)
    keys = (randomness.bits(row_keys[:, None], columns) >> np.uint64(32)).astype(np.uint32) & ~low | columns
    keys[~candidates] = 0xFFFFFFFF
    if width < length:
        keys = np.partition(keys, width - 1, axis=1)[:, :width]
    keys.sort(axis=1)
    taken = np.arange(keys.shape[1]) < np.minimum(wanted, candidates.sum(axis=1))[:, None]
    positions = np.where(taken, keys & low, length).astype(np.int64)
    positions.sort(axis=1)
    return np.where(taken, positions, 0), taken


def _replace(labels: np.ndarray, positions: np.ndarray, vocabulary: Vocabulary, row_keys: np.ndarray) -> np.ndarray:
    """What stands in a chosen token's place: 80 % [MASK], 10 % itself, 10 % any id of the vocabulary. [B, P]."""
    replacement_keys = randomness.bits(row_keys, np.array([1 << 32]))
    kind = randomness.uniform(replacement_keys[:, None], 2 * positions)
    drawn = randomness.integers(replacement_keys[:, None], 2 * positions + 1, vocabulary.size)
    return np.select([kind < 0.8, kind < 0.9], [np.full_like(labels, vocabulary.mask_id), labels], drawn)
