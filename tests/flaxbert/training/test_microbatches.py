"""A batch computed in parts, or its activations computed twice: the update is that of the whole, dropout included."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from flaxbert.config import MeshConfig
from flaxbert.model.dropout import dropout, row_seeds
from flaxbert.sharding import make_mesh
from flaxbert.training.objective import zero_sums
from flaxbert.training.step import build_functions

STEPS = 3
# Float32 sums taken in another order, through three updates.
RTOL = 2e-5


def trained(experiment, mesh, batch_of, spoil=lambda batch: batch):
    """The losses and gradient norms of some steps, and the state after them."""
    with jax.set_mesh(mesh):
        functions = build_functions(experiment, mesh)
        state, found = functions.init(), []
        for step in range(STEPS):
            state, outcome = functions.train(state, functions.put(spoil(batch_of(step))))
            found.append((float(outcome.loss), float(outcome.gradient_norm)))
        return np.array(found), state


def one_device():
    return jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def whole(experiment, batch_of):
    return trained(experiment, one_device(), batch_of)


def with_settings(experiment, mesh=None, **train):
    return dataclasses.replace(
        experiment, mesh=mesh or experiment.mesh, train=dataclasses.replace(experiment.train, **train)
    )


@pytest.mark.parametrize("microbatches, rematerialization", [
    (2, "none"), (8, "none"), (1, "products"), (1, "layers"), (4, "layers"),
])  # fmt: skip
def test_parts_and_recomputation_change_nothing(experiment, batch_of, whole, microbatches, rematerialization):
    """With dropout on: a row's masks are the same in whatever part it is computed, and when they are drawn again. The
    microbatches hold different numbers of masked tokens, so a mean of their means would be another loss.
    """
    settings = with_settings(experiment, microbatches=microbatches, rematerialization=rematerialization)
    found, state = trained(settings, one_device(), batch_of)
    np.testing.assert_allclose(found, whole[0], rtol=RTOL)
    for name, value in whole[1].sums.items():
        np.testing.assert_allclose(state.sums[name], value, rtol=RTOL, err_msg=name)


def test_an_evaluation_in_parts_is_that_of_the_whole_in_less_memory(experiment, batch_of):
    """A step that fits thanks to its parts must not end at the first evaluation."""
    found, memory = [], []
    for microbatches in (1, 8):
        with jax.set_mesh(one_device()):
            functions = build_functions(with_settings(experiment, microbatches=microbatches), one_device())
            state, batch = functions.init(), functions.put(batch_of(0))
            found.append(functions.evaluate(state.params, zero_sums(), batch))
            compiled = functions.evaluate.lower(state.params, zero_sums(), batch).compile()
            memory.append(compiled.memory_analysis().temp_size_in_bytes)
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, rtol=RTOL, err_msg=name)
    assert memory[1] < memory[0] / 2


@pytest.mark.parametrize("mesh", [MeshConfig(data=4), MeshConfig(fsdp=4), MeshConfig(data=2, tensor=2)], ids=str)
def test_parts_change_nothing_on_a_mesh_either(experiment, batch_of, whole, mesh):
    settings = with_settings(experiment, mesh, microbatches=2, rematerialization="products")
    found, state = trained(settings, make_mesh(mesh), batch_of)
    np.testing.assert_allclose(found, whole[0], rtol=RTOL)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5),
        jax.device_get(state.params), jax.device_get(whole[1].params),
    )  # fmt: skip


def test_each_device_keeps_its_rows(experiment, batch_of):
    """Rows that moved between devices for a microbatch would show as collectives of integers."""
    mesh = make_mesh(MeshConfig(data=4))
    with jax.set_mesh(mesh):
        functions = build_functions(with_settings(experiment, MeshConfig(data=4), microbatches=2), mesh)
        text = functions.train.lower(functions.abstract_state, functions.put(batch_of(0))).compile().as_text()
    moved = [line for line in text.splitlines() if "all-to-all" in line or "all-gather" in line or "permute" in line]
    assert not moved


def test_parts_need_less_memory(experiment):
    deep = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, num_layers=6))

    def temporary(**settings):
        changed = with_settings(deep, batch_size=512, **settings)
        mesh = one_device()
        with jax.set_mesh(mesh):
            functions = build_functions(changed, mesh)
            batch = {name: jax.ShapeDtypeStruct((512, *x.shape[1:]), x.dtype) for name, x in BATCH.items()}
            return functions.train.lower(functions.abstract_state, batch).compile().memory_analysis().temp_size_in_bytes

    BATCH = jax.eval_shape(lambda: {
        "input_ids": np.zeros((1, 16), np.int32), "segment_ids": np.zeros((1, 16), np.int32),
        "sequence_ids": np.zeros((1, 16), np.int32), "position_ids": np.zeros((1, 16), np.int32),
        "masked_positions": np.zeros((1, 3), np.int32), "masked_ids": np.zeros((1, 3), np.int32),
        "masked_weights": np.zeros((1, 3), np.float32), "cls_positions": np.zeros((1, 1), np.int32),
        "next_sentence_labels": np.zeros((1, 1), np.int32), "next_sentence_weights": np.zeros((1, 1), np.float32),
        "rows": np.zeros(1, np.int32), "stop": np.zeros(1, np.int32),
    })  # fmt: skip
    all_at_once = temporary()
    assert temporary(microbatches=4) < 0.5 * all_at_once
    assert temporary(rematerialization="layers") < temporary(rematerialization="products") < all_at_once


def test_rows_keep_their_masks_wherever_they_lie():
    """A part of a batch, in any order, has the masks that its rows have in the whole."""
    key, x = jax.random.key(3), np.ones((8, 5, 7), np.float32)
    whole = dropout(x, 0.5, row_seeds(key, np.arange(8)))
    rows = np.array([6, 1, 3])
    np.testing.assert_array_equal(dropout(x[:3], 0.5, row_seeds(key, rows)), whole[rows])


def poisoned(weight):
    """A batch one of whose weights is not finite: so are its loss and its gradients."""
    def poison(batch):
        weights = np.where(batch["masked_weights"] > 0, weight, 0)
        return {**batch, "masked_weights": weights.astype(np.float32)}

    return poison


def test_an_update_that_is_not_finite_is_skipped_and_counted(experiment, batch_of):
    found, state = trained(experiment, one_device(), batch_of, poisoned(np.nan))
    assert np.isnan(found).all()
    mesh = one_device()
    with jax.set_mesh(mesh):
        before = build_functions(experiment, mesh).init()
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), jax.device_get(before.params))
    adam, fresh = state.optimizer_state[1], before.optimizer_state[1]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(adam[1:]), jax.device_get(fresh[1:]))
    assert int(state.step) == int(adam.count) == STEPS == int(state.guard.not_finite), "the curve goes on"
    assert (state.sums["not_finite"], state.sums["steps"], state.sums["mlm_loss"]) == (STEPS, STEPS, 0)
    assert state.sums["tokens"] == sum((batch_of(step)["sequence_ids"] > 0).sum() for step in range(STEPS))


def test_one_bad_step_leaves_the_others_as_they_were(experiment, batch_of):
    """Two runs whose second batch differs, and is not finite in both: the same run."""
    def second_is_bad(seed):
        return lambda step: poisoned(np.inf)(batch_of(seed)) if step == 1 else batch_of(step)

    (one, state), (_, other) = (trained(experiment, one_device(), second_is_bad(seed)) for seed in (1, 77))
    assert np.isfinite(one[[0, 2]]).all() and not np.isfinite(one[1]).any()
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), jax.device_get(other.params))
