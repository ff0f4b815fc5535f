"""What is saved comes back bit for bit, laid out as asked; the newest and the best stay."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from flaxbert.config import MeshConfig
from flaxbert.sharding import make_mesh
from flaxbert.training.checkpoint import open_checkpoints, restore_params, saved_steps
from flaxbert.training.guard import new_guard
from flaxbert.training.optimizer import AdamState
from flaxbert.training.step import TrainState, step_sums


@pytest.fixture
def mesh():
    return make_mesh(MeshConfig(data=2, fsdp=2))


def place(state, mesh, axis="fsdp"):
    """Every matrix divided along one axis of the mesh, the rest on all devices."""
    return jax.tree.map(
        lambda leaf: jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*([axis] if leaf.ndim > 1 else [])))), state
    )


def abstract(state):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)


def make_state(seed=0, width=64):
    generator = np.random.default_rng(seed)

    def draw():
        shapes = {"kernel": (width, 16), "bias": (16,)}
        return {"layer": {name: jnp.asarray(generator.normal(size=s), jnp.float32) for name, s in shapes.items()}}

    adam = AdamState(jnp.int32(7), draw(), draw())
    sums = step_sums() | {"tokens": jnp.float32(123.0)}
    return TrainState(jnp.int32(7), draw(), (optax.EmptyState(), adam), new_guard(), sums)


def save_steps(folder, steps, keep=3, losses=None, state=None):
    with open_checkpoints(str(folder), keep) as checkpoints:
        for step in steps:
            held_out = {"loss": losses[step]} if losses and step in losses else None
            checkpoints.commit(state or make_state(step), step, {"row": step}, {"some": "setting"}, held_out)
    return saved_steps(str(folder))


def assert_bit_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_a_state_comes_back_bit_for_bit_though_the_next_steps_consume_it(tmp_path, mesh):
    """The save runs in the background while the arrays that it was given are overwritten in place."""
    state = place(make_state(width=1 << 16), mesh)
    expected = jax.device_get(jax.tree.map(jnp.copy, state))
    layout = abstract(state)
    step = jax.jit(lambda s: jax.tree.map(lambda x: x * 3 + 1, s), donate_argnums=0)
    with open_checkpoints(str(tmp_path), 3) as checkpoints:
        checkpoints.save(state, 7, {"epoch": 1, "window": 2, "row": 3}, {}, None)
        for _ in range(10):
            state = step(state)
        jax.block_until_ready(state)
    with open_checkpoints(str(tmp_path), 3) as checkpoints:
        found, position = checkpoints.restore(layout)
    assert_bit_equal(jax.device_get(found), expected)
    assert position == {"epoch": 1, "window": 2, "row": 3}
    assert [leaf.sharding for leaf in jax.tree.leaves(found)] == [leaf.sharding for leaf in jax.tree.leaves(layout)]


@pytest.mark.parametrize("config, axis", [
    (MeshConfig(fsdp=4), "fsdp"), (MeshConfig(data=4), None), (MeshConfig(data=2, tensor=2), "tensor"),
], ids=str)  # fmt: skip
def test_a_state_comes_back_on_another_mesh(tmp_path, mesh, config, axis):
    state = make_state()
    save_steps(tmp_path, [7], state=place(state, mesh))
    layout = abstract(place(state, make_mesh(config), axis))
    with open_checkpoints(str(tmp_path), 3) as checkpoints:
        found, _ = checkpoints.restore(layout)
    assert_bit_equal(jax.device_get(found), jax.device_get(state))
    assert [leaf.sharding for leaf in jax.tree.leaves(found)] == [leaf.sharding for leaf in jax.tree.leaves(layout)]


def test_nothing_saved_is_nothing_restored(tmp_path, mesh):
    with open_checkpoints(str(tmp_path), 3) as checkpoints:
        assert checkpoints.restore(abstract(place(make_state(), mesh))) is None


def test_the_newest_is_restored(tmp_path, mesh):
    save_steps(tmp_path, [1, 2, 3])
    with open_checkpoints(str(tmp_path), 3) as checkpoints:
        found, position = checkpoints.restore(abstract(place(make_state(), mesh)))
    assert position == {"row": 3}
    assert_bit_equal(jax.device_get(found.params), jax.device_get(make_state(3).params))


@pytest.mark.parametrize("losses, kept", [
    (None, [5, 6]),
    ({1: 3.0, 2: 1.0, 3: 2.0, 4: 2.5, 5: 2.2, 6: 2.1}, [2, 5, 6]),
    ({2: 2.0, 4: 1.0}, [4, 5, 6]),
    ({6: 1.0, 1: 2.0}, [5, 6]),
])  # fmt: skip
def test_the_newest_and_the_best_are_kept(tmp_path, losses, kept):
    assert save_steps(tmp_path, range(1, 7), keep=2, losses=losses) == kept
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == kept


def test_a_loss_of_a_later_phase_is_better_than_any_before_it(tmp_path):
    """They are of other lengths: 2.0 at 128 says nothing of 3.0 at 512."""
    measured = {1: (2.0, 0), 2: (3.0, 1), 3: (2.5, 1), 4: (2.7, 1), 5: (None, 1)}
    with open_checkpoints(str(tmp_path), 1) as checkpoints:
        for step, (loss, phase) in measured.items():
            held_out = None if loss is None else {"loss": loss, "phase": phase}
            checkpoints.commit(make_state(step), step, {"row": step}, {}, held_out)
        assert checkpoints.best() == 3
    assert saved_steps(str(tmp_path)) == [3, 5]


def test_the_best_is_kept_across_restarts(tmp_path):
    save_steps(tmp_path, [1, 2, 3], keep=1, losses={1: 1.0, 2: 2.0, 3: 3.0})
    assert save_steps(tmp_path, [4, 5], keep=1, losses={4: 4.0}) == [1, 5]


def test_parameters_alone_are_read_without_knowing_the_model(tmp_path, mesh, caplog):
    save_steps(tmp_path, [3], state=place(make_state(3), mesh), losses={3: 1.0})
    save_steps(tmp_path, [5], state=place(make_state(5), mesh))
    with caplog.at_level(logging.WARNING):
        newest, step = restore_params(str(tmp_path))
    assert step == 5
    assert_bit_equal(jax.device_get(newest), jax.device_get(make_state(5).params))
    older, step = restore_params(str(tmp_path), 3)
    assert step == 3
    assert_bit_equal(jax.device_get(older), jax.device_get(make_state(3).params))
    assert {len(leaf.devices()) for leaf in jax.tree.leaves(older)} == {1}
    assert not caplog.records


def test_a_step_that_is_not_there_is_named_with_those_that_are(tmp_path):
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        restore_params(str(tmp_path))
    save_steps(tmp_path, [3, 5])
    with pytest.raises(ValueError, match="has no checkpoint of step 4; it has 3, 5"):
        restore_params(str(tmp_path), 4)


def test_what_a_killed_save_leaves_is_neither_restored_nor_kept(tmp_path, mesh):
    """Orbax writes under another name and renames at the end."""
    save_steps(tmp_path, [3])
    left = tmp_path / "checkpoints" / "5.orbax-checkpoint-tmp"
    (left / "state").mkdir(parents=True)
    assert restore_params(str(tmp_path))[1] == 3
    with open_checkpoints(str(tmp_path), 3) as checkpoints:
        assert checkpoints.restore(abstract(place(make_state(), mesh)))[1] == {"row": 3}
    assert not left.exists()
