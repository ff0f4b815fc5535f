"""TensorFlow, told to leave accelerators alone and to say little: it feeds and reads, and computes nothing."""

import contextlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np


def import_tensorflow() -> Any:
    """The module. It is imported here, and only where it is used, because it takes seconds."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # else it tells at length what it will not be used for
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # its devices are in use already, by somebody who chose so
        tf.config.set_visible_devices([], "GPU")
    return tf


def open_variables(prefix: str) -> tuple[dict[str, tuple[int, ...]], Callable[[str], np.ndarray]]:
    """(the shape of each variable of a checkpoint, a function that reads one by its name).

    Both raise ValueError where the checkpoint is damaged, and the first where TensorFlow is missing.
    """
    try:
        tf = import_tensorflow()
    except ImportError:
        raise ValueError("reading a TensorFlow checkpoint needs TensorFlow: install tensorflow-cpu") from None
    try:
        reader = tf.train.load_checkpoint(prefix)
        shapes = {name: tuple(shape) for name, shape in reader.get_variable_to_shape_map().items()}
    except (tf.errors.OpError, ValueError) as error:
        raise ValueError(f"{prefix} is no TensorFlow checkpoint, or damaged: {error}") from None

    def read(name: str) -> np.ndarray:
        try:
            value: np.ndarray = reader.get_tensor(name)
            return value
        except (tf.errors.OpError, IndexError, ValueError, RuntimeError) as error:
            raise ValueError(f"{prefix} is damaged: variable {name} cannot be read: {error}") from None

    return shapes, read
