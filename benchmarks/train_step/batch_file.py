"""Batches of the stream in one small file, which a machine without the data pipeline's libraries can read."""

import json
import os
from typing import Any

import numpy as np

Batch = dict[str, np.ndarray]

FLOATS = ("masked_weights", "next_sentence_weights")  # 0 or 1; every other array of a batch is int32
_METADATA = "metadata"


def shape_name(length: int, packing: int) -> str:
    """`128`; `128x8` where up to eight sequences share a row."""
    return f"{length}" if packing == 1 else f"{length}x{packing}"


def write(path: str | os.PathLike[str], batches: dict[str, Batch], metadata: dict[str, Any]) -> None:
    """Writes a batch for each name, each array in the smallest unsigned type that holds it. None of it is negative."""
    arrays = {
        f"{name}/{key}": array.astype(np.min_scalar_type(int(array.max())))
        for name, batch in batches.items()
        for key, array in batch.items()
    }
    with open(path, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays, **{_METADATA: np.array(json.dumps(metadata))})


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Vocabulary size, settings and the counts of each shape."""
    with np.load(path) as file:
        if _METADATA not in file.files:
            raise ValueError(f"{path} is no file of python -m benchmarks.make_batches")
        metadata: dict[str, Any] = json.loads(str(file[_METADATA]))
        return metadata


def read(path: str | os.PathLike[str], name: str) -> Batch:
    """The rows of one shape, as the stream gave them. Raises ValueError where the file has none of it."""
    known = read_metadata(path)["shapes"]
    if name not in known:
        raise ValueError(f"{path} has no rows of shape {name}: it has {', '.join(known)}")
    with np.load(path) as file:
        keys = [key.partition("/")[2] for key in file.files if key.startswith(f"{name}/")]
        return {key: file[f"{name}/{key}"].astype(np.float32 if key in FLOATS else np.int32) for key in keys}
