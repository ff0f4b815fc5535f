"""Checkpoints by Orbax: state, stream position and settings as one atomic item, written in the background."""

import contextlib
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_manager import CheckpointManager as Manager
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from flaxbert.training.step import TrainState


@contextlib.contextmanager
def open_checkpoints(workdir: str, keep: int) -> Iterator[Manager]:
    """The checkpoints of a run: the newest `keep` and the one with the lowest held-out loss stay.

    On leaving, waits for the save that is under way; an error of it is raised there or by the next save.
    """
    lowest = BestN(get_metric_fn=_held_out_loss, reverse=True, n=1)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy([LatestN(keep), lowest]),
        best_fn=_held_out_loss,  # without it metrics are not written, and the best is forgotten with the process
        best_mode="min",
        cleanup_tmp_directories=True,
        enable_async_checkpointing=True,
    )
    folder = pathlib.Path(workdir).absolute() / "checkpoints"
    with Manager(folder, options=options) as manager:
        yield manager


def save(
    manager: Manager, state: TrainState, step: int, position: dict[str, int], config: dict[str, Any],
    held_out: dict[str, float] | None,
) -> None:  # fmt: skip
    """Starts to save; returns once the state has been copied, so the next step may consume it."""
    manager.save(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardSave(state._asdict()),
            position=ocp.args.JsonSave(position),
            config=ocp.args.JsonSave(config),
        ),
        metrics=held_out or {},
        force=True,
    )


def _held_out_loss(metrics: dict[str, float]) -> float:
    """Where nothing was evaluated, or the loss is no number, the worst there is."""
    loss = metrics.get("loss", math.inf)
    return math.inf if math.isnan(loss) else loss


def restore(manager: Manager, abstract: TrainState) -> tuple[TrainState, dict[str, int]] | None:
    """The newest state, laid out as `abstract` says, and the stream's position; None where nothing was saved."""
    step = manager.latest_step()
    if step is None:
        return None
    arguments = ocp.args.Composite(
        state=ocp.args.StandardRestore(abstract._asdict()), position=ocp.args.JsonRestore()
    )
    with _damage_named(pathlib.Path(manager.directory) / str(step)):
        restored = manager.restore(step, args=arguments)
    return TrainState(**restored["state"]), restored["position"]


def saved_steps(workdir: str) -> list[int]:
    """The steps of the run's checkpoints, ascending; those still being written are not among them."""
    folder = pathlib.Path(workdir).absolute() / "checkpoints"
    return sorted(ocp.utils.checkpoint_steps(folder)) if folder.is_dir() else []


def restore_params(workdir: str, step: int | None = None) -> tuple[Any, int]:
    """The parameters alone, on the first local device, and their step. Raises ValueError where there are none."""
    folder = pathlib.Path(workdir).absolute() / "checkpoints"
    found = saved_steps(workdir)
    if not found:
        raise ValueError(f"{workdir} has no checkpoint yet")
    if step is not None and step not in found:
        raise ValueError(f"{workdir} has no checkpoint of step {step}; it has {', '.join(map(str, found))}")
    step = found[-1] if step is None else step
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with _damage_named(folder / str(step)), ocp.Checkpointer(_handlers()) as reader:
        shapes = reader.metadata(folder / str(step)).item_metadata["state"].tree["params"]
        wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), shapes)
        arguments = ocp.args.PyTreeRestore(
            item={"params": wanted},
            restore_args=ocp.checkpoint_utils.construct_restore_args({"params": wanted}),
            partial_restore=True,
        )
        restored = reader.restore(folder / str(step), args=ocp.args.Composite(state=arguments))
        return restored["state"]["params"], step


@contextlib.contextmanager
def _damage_named(path: pathlib.Path) -> Iterator[None]:
    """What Orbax raises of a checkpoint that is not whole, as one sentence."""
    try:
        yield
    except (KeyError, ValueError, TypeError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(f"checkpoint {path} is damaged ({reason}): move it away to use the one before it") from error


def _handlers() -> ocp.CompositeCheckpointHandler:
    """A reader for each item of a checkpoint: Orbax warns of those that it is not told of."""
    json = {name: ocp.JsonCheckpointHandler() for name in ("position", "config", "metrics")}
    return ocp.CompositeCheckpointHandler(state=ocp.PyTreeCheckpointHandler(), **json)
