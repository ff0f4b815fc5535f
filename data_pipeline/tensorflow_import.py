"""TensorFlow, told to leave accelerators alone and to say little: it feeds, and computes nothing."""

import contextlib
import os
from typing import Any


def import_tensorflow() -> Any:
    """The module. It is imported here, and only where it is used, because it takes seconds."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # else it tells at length what it will not be used for
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # its devices are in use already, by somebody who chose so
        tf.config.set_visible_devices([], "GPU")
    return tf
