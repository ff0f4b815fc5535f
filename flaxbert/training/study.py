"""What is left of a run that cannot go on: the state and the batch with which its numbers stopped being numbers."""

import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp

from flaxbert.training.files import STUDY
from flaxbert.training.flight import Step
from flaxbert.training.guard import MOST_NOT_FINITE
from flaxbert.training.orbax_manager import SAVE_ERRORS, reason_of
from flaxbert.training.step import TrainState


def keep_for_study(workdir: str, state: TrainState, step: Step) -> ValueError:
    """Writes `state` (Orbax, `state/`) and this host's rows of the step's batch (`batch-0.npz`) into a folder of the
    run, and returns the error that says so, or why they could not be written. The run's checkpoints stay as they are.

    Parameters and moments are those that the step began with, for the guard has accepted nothing since; the counts of
    steps in the state include the few that had been begun after it.
    """
    folder = pathlib.Path(workdir).absolute() / STUDY / f"step-{step.number}"
    try:
        with ocp.StandardCheckpointer() as writer:
            writer.save(folder / "state", state._asdict(), force=True)
        np.savez(folder / f"batch-{jax.process_index()}.npz", **step.batch)  # type: ignore[arg-type]
        kept = f"state and batch lie in {folder}"
    except SAVE_ERRORS as error:
        kept = f"state and batch could not be written into {folder} ({reason_of(error)})"
    return ValueError(
        f"step {step.number}: loss or gradient was not finite {MOST_NOT_FINITE} times in a row, and no update was "
        f"made: {kept}; the same command tries again from the last checkpoint and, unless the machine was at fault, "
        "ends here again: try a lower --optimizer.learning-rate or a longer warm-up in a new --workdir"
    )
