"""A directory about to appear, held against the model that it was written from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flaxbert.interop.architectures import Checkpoint
from flaxbert.tools.load import Model, everything, load

Batch = dict[str, Any]

_ROWS, _LENGTH = 4, 32


def check_written(
    checkpoint: Checkpoint, dtype: Any, batch: Batch | None, told: list[float]
) -> Callable[[Path], None]:
    """A check for `huggingface.export`: what is read back says of `batch` what the checkpoint says, to the last bit
    where the written precision is taken into account.

    Without a batch, random tokens are used. Appends to `told` how far the written precision has moved any output.
    Raises RuntimeError where the directory is another model.
    """
    ours = jax.device_put(checkpoint.params)
    rounded = jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), ours)
    rows = random_batch(checkpoint) if batch is None else batch

    def check(folder: Path) -> None:
        written = load(folder)
        found = everything(written, rows)
        expected = everything(_model(checkpoint, rounded, written), rows)
        for name, values in expected.items():
            if not np.array_equal(found[name], values):
                raise RuntimeError(f"{folder}: the model read back gives another {name} than the one written")
        exact = everything(_model(checkpoint, ours, written), rows)
        told.append(max(float(np.abs(found[name] - exact[name]).max()) for name in exact))

    return check


def _model(checkpoint: Checkpoint, params: Any, written: Model) -> Model:
    return written._replace(config=checkpoint.config, params=params)


def random_batch(checkpoint: Checkpoint) -> Batch:
    """Rows of random tokens in two segments, [4, 32] or shorter, the last row padded; always the same."""
    config, generator = checkpoint.config, np.random.default_rng(0)
    shape = (_ROWS, min(_LENGTH, config.max_length))
    mask = np.ones(shape, np.int32)
    mask[-1, shape[1] // 2:] = 0
    places = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    second = ((places >= shape[1] // 4) & (config.segment_types > 1)).astype(np.int32)
    ids = generator.integers(0, config.vocab_size or 1, shape, np.int32)
    return {
        "input_ids": ids * mask, "segment_ids": second * mask, "sequence_ids": mask, "position_ids": places,
        "masked_positions": places,
    }  # fmt: skip
