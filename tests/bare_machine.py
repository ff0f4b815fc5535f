"""A machine with an accelerator, a file of batches, and few libraries."""

import os
import pathlib

import numpy as np

from benchmarks.train_step import batch_file

ROOT = pathlib.Path(__file__).parents[1]
VOCAB_SIZE, LENGTH, ROWS, PREDICTIONS = 90, 16, 24, 3


def write_batch_file(path):
    """ROWS rows of random tokens, every other one with padding, and one prediction slot in four unused; and the same
    rows with a second sequence from the middle on, its next-sentence label unused in every third row.
    """
    generator = np.random.default_rng(0)
    ends = np.where(np.arange(ROWS) % 2, LENGTH, generator.integers(8, LENGTH, ROWS))[:, None]
    places = np.arange(LENGTH)[None].repeat(ROWS, 0)
    used = places < ends
    batch = {
        "input_ids": generator.integers(5, VOCAB_SIZE, (ROWS, LENGTH)) * used,
        "segment_ids": (places >= ends // 2) & used,
        "sequence_ids": used,
        "position_ids": places * used,
        "masked_positions": np.sort(generator.permuted(places[:, 1:8], axis=1)[:, :PREDICTIONS], axis=1),
        "masked_ids": generator.integers(5, VOCAB_SIZE, (ROWS, PREDICTIONS)),
        "masked_weights": generator.random((ROWS, PREDICTIONS)) < 0.75,
        "cls_positions": np.zeros((ROWS, 1)),
        "next_sentence_labels": generator.integers(0, 2, (ROWS, 1)),
        "next_sentence_weights": np.ones((ROWS, 1)),
    }
    middle = LENGTH // 2
    used = places < np.maximum(ends, middle + PREDICTIONS + 1)
    packed = batch | {
        "input_ids": generator.integers(5, VOCAB_SIZE, (ROWS, LENGTH)) * used,
        "sequence_ids": (1 + (places >= middle)) * used,
        "position_ids": places % middle * used,
        "segment_ids": (places % middle >= middle // 2) & used,
        "masked_positions": np.tile([2, middle + 1, middle + PREDICTIONS], (ROWS, 1)),
        "cls_positions": np.tile([0, middle], (ROWS, 1)),
        "next_sentence_labels": generator.integers(0, 2, (ROWS, 2)),
        "next_sentence_weights": np.stack([np.ones(ROWS), np.arange(ROWS) % 3 > 0], axis=1),
    }
    shapes = {
        name: {key: x.astype(np.float32 if key in batch_file.FLOATS else np.int32) for key, x in rows.items()}
        for name, rows in {str(LENGTH): batch, f"{LENGTH}x2": packed}.items()
    }
    batch_file.write(path, shapes, {"vocab_size": VOCAB_SIZE, "shapes": {name: {} for name in shapes}})


# Such a machine has jax, flax, optax, torch and transformers, and none of these.
LACKING = (
    "tensorflow", "tensorflow_datasets", "tyro", "tensorboardX", "sentencepiece", "sentencex", "pyarrow", "xxhash",
)  # fmt: skip
_FINDER = f"""
import importlib.machinery
import sys

class Without(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {LACKING} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Without
"""


def bare_environment(folder):
    """The environment in which every Python process finds one device, and LACKING not installed."""
    (folder / "sitecustomize.py").write_text(_FINDER, encoding="utf-8")
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), "XLA_FLAGS": ""}
