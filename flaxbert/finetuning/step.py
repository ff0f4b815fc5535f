"""One step of fine-tuning and one of prediction, compiled once for each shape of a batch whatever grid is searched."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxbert.config import MeshConfig, ModelConfig, OptimizerConfig
from flaxbert.finetuning.objective import POOLED, TAGGER, logits_of, loss_sum
from flaxbert.finetuning.tasks import Kind
from flaxbert.model.finetuning import BertWithBiLstm, BertWithHead
from flaxbert.sharding import batch_sharding, make_mesh
from flaxbert.training.optimizer import make_optimizer

Batch = dict[str, Any]


class Tuned(NamedTuple):
    """All that a step changes, float32. The same on every device."""

    step: jax.Array
    params: Any
    optimizer_state: Any


class TuningFunctions(NamedTuple):
    """The compiled functions of a task."""

    begin: Callable[[Any], Tuned]
    """The state before the first step, from a parameter tree."""
    train: Callable[[Tuned, Batch, Any, jax.Array], tuple[Tuned, jax.Array]]
    """(state, batch, learning rate, key) → (state, loss); the state given is consumed."""
    predict: Callable[[Any, Batch], jax.Array]
    """(parameters, batch) → what `BertWithHead` gives, as `predictions.place_logits` reads it."""


@functools.cache  # built twice, they would be compiled twice
def build_functions(
    kind: Kind, config: ModelConfig, outputs: int, batch_size: int, optimizer: OptimizerConfig,
    compute_dtype: str = "float32", frozen: bool = False, bilstm_layers: tuple[int, ...] = (),
) -> TuningFunctions:  # fmt: skip
    """Compiles for as many of the local devices as divide the batch; each has a copy of the model.

    The learning rate comes with each step; of `optimizer`, the name, the moments, decay and clipping count. `frozen`:
    the output layer alone is trained, with dropout at its input and none before it. `bilstm_layers`: the model is a
    `BertWithBiLstm` over these layers, and frozen.
    """
    mesh, dtype = make_mesh(MeshConfig(), _devices(batch_size)), jnp.dtype(compute_dtype)
    frozen = frozen or bool(bilstm_layers)
    if bilstm_layers:
        model: Any = functools.partial(BertWithBiLstm, config, outputs, bilstm_layers, dtype=dtype)
    else:
        model = functools.partial(BertWithHead, config, outputs, kind in POOLED, dtype=dtype, frozen=frozen)

    def train(state: Tuned, batch: Batch, rate: Any, key: jax.Array) -> tuple[Tuned, jax.Array]:
        trained, fixed = divided(state.params, frozen)
        dropout = {"dropout": jax.random.fold_in(key, state.step)}

        def loss(part: Any) -> jax.Array:
            found: Any = model(deterministic=False).apply({"params": fixed | part}, batch, rngs=dropout)
            total, weight = loss_sum(kind, logits_of(kind, found, batch), batch)
            return total / jnp.maximum(weight, 1.0)

        value, gradients = jax.value_and_grad(loss)(trained)
        rule = make_optimizer(optimizer, lambda count: rate)
        updates, optimizer_state = rule.update(gradients, state.optimizer_state, trained)
        trained = jax.tree.map(jnp.add, trained, updates)
        return Tuned(state.step + 1, fixed | trained, optimizer_state), value

    def predict(params: Any, batch: Batch) -> jax.Array:
        found: Any = model().apply({"params": params}, batch)
        return found

    def begin(params: Any) -> Tuned:
        rule = make_optimizer(optimizer, lambda count: jnp.zeros(()))
        return Tuned(jnp.zeros((), jnp.int32), params, rule.init(divided(params, frozen)[0]))

    return _compiled(mesh, begin, train, predict)


def divided(params: Any, frozen: bool) -> tuple[Any, Any]:
    """(what is trained, what stays as it is) of a parameter tree."""
    trained = {name: part for name, part in params.items() if name in ("head", TAGGER) or not frozen}
    return trained, {name: part for name, part in params.items() if name not in trained}


def _devices(batch_size: int) -> list[Any]:
    devices = jax.local_devices()
    return devices[:math.gcd(len(devices), batch_size)]


def _compiled(mesh: Mesh, begin: Any, train: Any, predict: Any) -> TuningFunctions:
    rows, copied = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())

    def in_mesh(function: Any) -> Any:
        def run(*arguments: Any) -> Any:
            with jax.set_mesh(mesh):
                return function(*arguments)

        return run

    def placed(batch: Batch) -> Batch:
        return {name: jax.device_put(values, rows) for name, values in batch.items() if name != "feature_indices"}

    begun = jax.jit(begin, in_shardings=copied, out_shardings=copied)
    trained = jax.jit(train, in_shardings=(copied, rows, copied, copied), out_shardings=copied, donate_argnums=0)
    predicted = jax.jit(predict, in_shardings=(copied, rows), out_shardings=copied)
    return TuningFunctions(
        in_mesh(lambda params: begun(jax.tree.map(np.asarray, params))),
        in_mesh(lambda state, batch, rate, key: trained(state, placed(batch), np.float32(rate), key)),
        in_mesh(lambda params, batch: predicted(params, placed(batch))),
    )
