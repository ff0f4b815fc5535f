"""Batches of random tokens."""

import numpy as np
import pytest


def make_batch(config, lengths, row_length=None, seed=0, predictions=4):
    """One row for each tuple of lengths: sequences of that many tokens one after another, then padding that holds
    random ids and position 0. Masked positions lie anywhere among the row's tokens.
    """
    generator = np.random.default_rng(seed)
    rows, width = len(lengths), row_length or max(sum(row) for row in lengths)
    most = max(len(row) for row in lengths)
    batch = {name: np.zeros((rows, width), np.int32) for name in ("segment_ids", "sequence_ids", "position_ids")}
    batch["input_ids"] = generator.integers(0, config.vocab_size, (rows, width), np.int32)
    batch["cls_positions"] = np.zeros((rows, most), np.int32)
    batch["masked_positions"] = np.zeros((rows, predictions), np.int32)
    for row, sizes in enumerate(lengths):
        start = 0
        for number, size in enumerate(sizes):
            place = slice(start, start + size)
            batch["sequence_ids"][row, place] = number + 1
            batch["position_ids"][row, place] = np.arange(size)
            batch["segment_ids"][row, place] = np.arange(size) >= generator.integers(1, size)
            batch["cls_positions"][row, number] = start
            start += size
        batch["masked_positions"][row] = generator.integers(0, max(start, 1), predictions)
    return batch


@pytest.fixture(scope="session")
def random_batch(small_config):
    """make_batch for the small model."""
    return lambda *arguments, **named: make_batch(small_config, *arguments, **named)
