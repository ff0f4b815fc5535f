"""The state of a run and the two pure functions that use it: one step of training, one of evaluation."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxbert.config import Experiment
from flaxbert.model.pretraining import BertForPreTraining, initialize
from flaxbert.sharding import batch_sharding, constrain, host_share, state_shardings
from flaxbert.training.attention_choice import check_attention
from flaxbert.training.guard import Guard, Verdict, judge, new_guard
from flaxbert.training.objective import SUMS, Sums, Weights, loss_and_sums, weights_of, zero_sums
from flaxbert.training.optimizer import make_optimizer
from flaxbert.training.schedule import Schedule, run_schedule

Batch = dict[str, jax.Array]


class TrainState(NamedTuple):
    """All that a step changes. Float32 but for the step and the guard's counts."""

    step: jax.Array
    params: Any
    optimizer_state: Any
    guard: Guard
    sums: Sums
    """Metrics since they were last written. They are part of the state, so a resumed run writes the same lines."""


class StepOutcome(NamedTuple):
    """What a step tells the loop; scalars, the same on every process."""

    loss: jax.Array
    gradient_norm: jax.Array
    learning_rate: jax.Array
    finite: jax.Array
    """False: loss or gradient was not, and the update was skipped."""
    spike: jax.Array
    """True: the update was skipped as a spike."""
    not_finite: jax.Array
    """Steps in a row, up to this one, that were not finite."""
    stop: jax.Array
    """Whether a process was asked to stop when it brought its rows."""


class Functions(NamedTuple):
    """The compiled functions of a run; every one takes and gives arrays laid out for its mesh."""

    init: Callable[[], TrainState]
    train: jax.stages.Wrapped
    """(state, batch) → (state, StepOutcome): one update; the state given is consumed."""
    evaluate: Callable[[Any, Sums, Batch], Sums]
    """Adds the sums of one batch."""
    zero_sums: Callable[[], Sums]
    """What `TrainState.sums` begins with after a line of metrics."""
    abstract_state: TrainState
    """Shapes, types and shardings."""
    put: Callable[..., Batch]
    """(this host's rows of a batch, stop=False) → the global batch on the devices: with `rows` [B], the numbers of its
    rows, and `stop` [B], whether a process wants to stop.
    """


def step_sums() -> Sums:
    """The sums of a training step: those of the objective, the gradient norm, and numbers of steps."""
    own = ("gradient_norm", "steps", "not_finite", "spikes")
    return zero_sums() | {name: jnp.zeros((), jnp.float32) for name in own}


def init_state(experiment: Experiment, key: jax.Array) -> TrainState:
    """The state before the first step."""
    params = initialize(experiment.model, key)
    optimizer = make_optimizer(experiment.optimizer, run_schedule(experiment))
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), new_guard(), step_sums())


def train_step(
    experiment: Experiment, schedule: Schedule, state: TrainState, batch: Batch, key: jax.Array
) -> tuple[TrainState, StepOutcome]:
    """One update on a global batch. Dropout is a function of `key`, the step and the row."""
    optimizer = make_optimizer(experiment.optimizer, schedule)
    step_key = jax.random.fold_in(key, state.step)
    loss, sums, gradients = loss_and_gradients(experiment, state.params, batch, step_key)
    norm = optax.tree.norm(gradients)
    verdict, guard = judge(state.guard, loss, norm, experiment.train.skip_spikes)

    updates, optimizer_state = optimizer.update(
        gradients, state.optimizer_state, state.params, accepted=verdict.accepted
    )
    params = optax.apply_updates(state.params, updates)
    sums = jax.tree.map(jnp.add, state.sums, _counted(sums, norm, verdict))
    outcome = StepOutcome(
        loss, norm, jnp.asarray(schedule(state.step), jnp.float32), verdict.finite, verdict.spike, guard.not_finite,
        jnp.max(batch["stop"]) > 0,
    )  # fmt: skip
    return TrainState(state.step + 1, params, optimizer_state, guard, sums), outcome


def loss_and_gradients(
    experiment: Experiment, params: Any, batch: Batch, key: jax.Array
) -> tuple[jax.Array, Sums, Any]:
    """(loss, sums, gradients) of a global batch, its microbatches one after the other.

    What microbatches hold differs, so their means cannot be averaged: each sum is divided by the weights of the whole
    batch, and the quotients are added.
    """
    config, weights = experiment.train, weights_of(batch)
    model = BertForPreTraining(
        experiment.model, deterministic=False, dtype=jnp.dtype(config.compute_dtype),
        rematerialization=config.rematerialization, packed=experiment.data.packing > 1,
        backend="xla" if config.attention == "auto" else config.attention,  # whoever builds the step has not chosen
    )  # fmt: skip

    def of_part(part: Batch) -> tuple[jax.Array, Sums, Any]:
        (loss, sums), gradients = jax.value_and_grad(_loss_of, argnums=1, has_aux=True)(
            model, params, part, weights, key
        )
        return loss, sums, gradients

    if config.microbatches == 1:
        return of_part(batch)

    def add(total: Any, part: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, of_part(part)), None

    zeros = (jnp.zeros((), jnp.float32), zero_sums(), jax.tree.map(jnp.zeros_like, params))
    return jax.lax.scan(add, zeros, _microbatches(batch, config.microbatches))[0]


def _loss_of(
    model: BertForPreTraining, params: Any, batch: Batch, weights: Weights, key: jax.Array
) -> tuple[jax.Array, Sums]:
    mlm_logits, nsp_logits = _applied(model, params, batch, rngs={"dropout": key})
    return loss_and_sums(batch, mlm_logits, nsp_logits, weights)


def _applied(model: BertForPreTraining, params: Any, batch: Batch, **options: Any) -> tuple[jax.Array, jax.Array]:
    return model.apply({"params": params}, batch, **options)  # type: ignore[return-value]


def _microbatches(batch: Batch, count: int) -> Batch:
    """Arrays [B, ...] as [count, B / count, ...]. Every count-th row, so that each device keeps the rows it has."""
    return {
        name: constrain(x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), None, "batch") for name, x in batch.items()
    }


def _counted(sums: Sums, norm: jax.Array, verdict: Verdict) -> Sums:
    """The sums of one step. What is not finite counts as a step and with its data, not with its losses."""
    data = ("tokens", "sequences")
    kept = {name: sums[name] if name in data else jnp.where(verdict.finite, sums[name], 0.0) for name in SUMS}
    own = {"steps": True, "not_finite": ~verdict.finite, "spikes": verdict.spike}
    return kept | {"gradient_norm": jnp.where(verdict.finite, norm, 0.0)} | {
        name: jnp.asarray(value, jnp.float32) for name, value in own.items()
    }


def eval_step(experiment: Experiment, params: Any, sums: Sums, batch: Batch) -> Sums:
    """`sums` and those of one held-out batch, without dropout; in as many pieces as a step of training."""
    model = BertForPreTraining(experiment.model, dtype=jnp.dtype(experiment.train.compute_dtype))

    def add(total: Sums, part: Batch) -> tuple[Sums, None]:
        return jax.tree.map(jnp.add, total, loss_and_sums(part, *_applied(model, params, part))[1]), None

    count = experiment.train.microbatches
    return add(sums, batch)[0] if count == 1 else jax.lax.scan(add, sums, _microbatches(batch, count))[0]


def build_functions(experiment: Experiment, mesh: Mesh, schedule: Schedule | None = None) -> Functions:
    """Compiles the run's functions for a mesh. Call and use inside `jax.set_mesh(mesh)`.

    `experiment` is that of one part of a run, `schedule` the learning rate of all of it (None: the experiment's own).
    """
    check_batch(experiment, mesh)
    check_attention(experiment, mesh)
    schedule = schedule or run_schedule(experiment)
    init_key, dropout_key = jax.random.split(jax.random.key(experiment.train.seed, impl="threefry2x32"))
    abstract = jax.eval_shape(lambda: init_state(experiment, init_key))
    placed = state_shardings(abstract, mesh)
    rows, replicated = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())

    def train(state: TrainState, batch: Batch) -> tuple[TrainState, StepOutcome]:
        return train_step(experiment, schedule, state, batch, dropout_key)

    def evaluate(params: Any, sums: Sums, batch: Batch) -> Sums:
        return eval_step(experiment, params, sums, batch)

    return Functions(
        init=jax.jit(lambda: init_state(experiment, init_key), out_shardings=placed),
        train=jax.jit(train, in_shardings=(placed, rows), out_shardings=(placed, replicated), donate_argnums=0),
        evaluate=jax.jit(evaluate, in_shardings=(placed.params, replicated, rows), out_shardings=replicated),
        zero_sums=jax.jit(step_sums, out_shardings=placed.sums),
        abstract_state=jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract, placed
        ),
        put=functools.partial(put_batch, rows, host_share(mesh)[0]),
    )


def step_bytes(compiled: Any, platform: str) -> int | None:
    """What a compiled step takes of a device at once, by the compiler's account; None where it gives none."""
    try:
        found = compiled.memory_analysis()
    except jax.errors.JaxRuntimeError:  # not every backend keeps an account, and training needs none
        found = None
    if found is None:
        return None
    if platform == "tpu":  # its sum counts what lies in one place one after the other more than once; its peak does not
        return int(found.peak_memory_in_bytes + found.generated_code_size_in_bytes)
    sizes = found.argument_size_in_bytes, found.output_size_in_bytes, found.temp_size_in_bytes
    return int(sum(sizes) - found.alias_size_in_bytes + found.generated_code_size_in_bytes)


def check_batch(experiment: Experiment, mesh: Mesh) -> None:
    """Raises ValueError where the mesh and the microbatches do not divide the batch."""
    size, parts = experiment.train.batch_size, experiment.train.microbatches
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    if size % (rows * parts):
        times, of = ("", "") if parts == 1 else (" x train.microbatches", f" x {parts}")
        raise ValueError(
            f"train.batch_size {size} is not a multiple of mesh.data x mesh.fsdp{times} = {rows}{of}"
        )


def abstract_batch(experiment: Experiment) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of the arrays of a global batch on the devices."""
    rows, data = experiment.train.batch_size, experiment.data
    shapes: dict[str, tuple[int, ...]] = {
        **dict.fromkeys(("input_ids", "segment_ids", "sequence_ids", "position_ids"), (rows, data.sequence_length)),
        **dict.fromkeys(("masked_positions", "masked_ids", "masked_weights"), (rows, data.predictions_per_row)),
        **dict.fromkeys(("cls_positions", "next_sentence_labels", "next_sentence_weights"), (rows, data.packing)),
        **dict.fromkeys(("rows", "stop"), (rows,)),
    }
    return {
        name: jax.ShapeDtypeStruct(shape, jnp.float32 if name.endswith("_weights") else jnp.int32)
        for name, shape in shapes.items()
    }


def put_batch(sharding: NamedSharding, index: int, batch: dict[str, np.ndarray], stop: bool = False) -> Batch:
    """Lays share `index` of a global batch's rows on this host's devices."""
    share = len(batch["input_ids"])
    own = {
        "rows": np.arange(index * share, (index + 1) * share, dtype=np.int32),
        "stop": np.full(share, stop, np.int32),
    }
    return {name: jax.make_array_from_process_local_data(sharding, x) for name, x in {**batch, **own}.items()}
