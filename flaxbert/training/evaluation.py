"""Means over the held-out documents, while a run trains."""

from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from flaxbert.config import Experiment
from flaxbert.training.metrics import Record
from flaxbert.training.objective import summarize, zero_sums
from flaxbert.training.step import Functions, TrainState


def evaluate(
    experiment: Experiment, functions: Functions, batches: Iterator[dict[str, np.ndarray]], state: TrainState,
    step: int, stop: Callable[[], bool] = lambda: False,
) -> Record | None:  # fmt: skip
    """The held-out record of a state: means over at most `train.eval_batches` of `batches`, this host's rows of each.

    None where `stop`, asked before each batch, said so on any process.
    """
    sums = zero_sums()
    for number, batch in enumerate(batches):
        if number == experiment.train.eval_batches:
            break
        if any_process(stop()):
            return None
        sums = functions.evaluate(state.params, sums, functions.put(batch))
    return {"step": step, "split": "validation"} | summarize(jax.device_get(sums))


def any_process(flag: bool) -> bool:
    """Whether `flag` is true on any process; all must ask."""
    return flag if jax.process_count() == 1 else bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))
