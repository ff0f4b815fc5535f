"""The state of a run and the two pure functions that use it: one step of training, one of evaluation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxbert.config import Experiment
from flaxbert.model.pretraining import BertForPreTraining, initialize
from flaxbert.sharding import batch_sharding, state_shardings
from flaxbert.training.objective import Sums, loss_and_sums, zero_sums
from flaxbert.training.optimizer import make_optimizer


class TrainState(NamedTuple):
    """All that a step changes. Float32 but for the step."""

    step: jax.Array
    params: Any
    optimizer_state: Any
    sums: Sums
    """Metrics since they were last written. They are part of the state, so a resumed run writes the same lines."""


class Functions(NamedTuple):
    """The compiled functions of a run; every one takes and gives arrays laid out for its mesh."""

    init: Callable[[], TrainState]
    train: jax.stages.Wrapped
    """(state, batch) → (state, loss): one update; the state given is consumed."""
    evaluate: Callable[[Any, Sums, dict[str, jax.Array]], Sums]
    """Adds the sums of one batch."""
    zero_sums: Callable[[], Sums]
    """What `TrainState.sums` begins with after a line of metrics."""
    abstract_state: TrainState
    """Shapes, types and shardings."""
    put: Callable[[dict[str, Any]], dict[str, jax.Array]]
    """This host's rows of a batch → the global batch on the devices."""


def step_sums() -> Sums:
    """The sums of a training step: those of the objective, the gradient norm and the number of steps."""
    return zero_sums() | {"gradient_norm": jnp.zeros((), jnp.float32), "steps": jnp.zeros((), jnp.float32)}


def init_state(experiment: Experiment, key: jax.Array) -> TrainState:
    """The state before the first step."""
    params = initialize(experiment.model, key)
    optimizer = make_optimizer(experiment.optimizer, experiment.train.steps)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), step_sums())


def train_step(
    experiment: Experiment, state: TrainState, batch: dict[str, jax.Array], key: jax.Array
) -> tuple[TrainState, jax.Array]:
    """One update on a global batch. Dropout is a function of `key` and the step."""
    model = BertForPreTraining(experiment.model, deterministic=False, dtype=jnp.dtype(experiment.train.compute_dtype))
    optimizer = make_optimizer(experiment.optimizer, experiment.train.steps)

    def loss_of(params: Any) -> tuple[jax.Array, Sums]:
        rngs = {"dropout": jax.random.fold_in(key, state.step)}
        return loss_and_sums(batch, *model.apply({"params": params}, batch, rngs=rngs))

    (loss, sums), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, state.params)
    sums = sums | {"gradient_norm": optax.tree.norm(gradients), "steps": jnp.ones((), jnp.float32)}
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, optimizer_state, jax.tree.map(jnp.add, state.sums, sums)), loss


def eval_step(experiment: Experiment, params: Any, sums: Sums, batch: dict[str, jax.Array]) -> Sums:
    """`sums` and those of one held-out batch, without dropout."""
    model = BertForPreTraining(experiment.model, dtype=jnp.dtype(experiment.train.compute_dtype))
    _, new = loss_and_sums(batch, *model.apply({"params": params}, batch))
    return jax.tree.map(jnp.add, sums, new)


def build_functions(experiment: Experiment, mesh: Mesh) -> Functions:
    """Compiles the run's functions for a mesh. Call and use inside `jax.set_mesh(mesh)`."""
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    if experiment.train.batch_size % rows:
        raise ValueError(
            f"train.batch_size {experiment.train.batch_size} is not a multiple of mesh.data x mesh.fsdp = {rows}"
        )
    init_key, dropout_key = jax.random.split(jax.random.key(experiment.train.seed))
    abstract = jax.eval_shape(lambda: init_state(experiment, init_key))
    placed = state_shardings(abstract, mesh)
    rows_sharding, replicated = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())

    def train(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, jax.Array]:
        return train_step(experiment, state, batch, dropout_key)

    def evaluate(params: Any, sums: Sums, batch: dict[str, jax.Array]) -> Sums:
        return eval_step(experiment, params, sums, batch)

    def put(batch: dict[str, Any]) -> dict[str, jax.Array]:
        return {name: jax.make_array_from_process_local_data(rows_sharding, x) for name, x in batch.items()}

    return Functions(
        init=jax.jit(lambda: init_state(experiment, init_key), out_shardings=placed),
        train=jax.jit(
            train, in_shardings=(placed, rows_sharding), out_shardings=(placed, replicated), donate_argnums=0
        ),
        evaluate=jax.jit(evaluate, in_shardings=(placed.params, replicated, rows_sharding), out_shardings=replicated),
        zero_sums=jax.jit(step_sums, out_shardings=placed.sums),
        abstract_state=jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract, placed
        ),
        put=put,
    )
