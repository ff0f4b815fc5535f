"""The two tables: every parameter has a row, its moments follow it, and a constraint really constrains."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxbert.config import PRESETS, Experiment, MeshConfig, OptimizerConfig
from flaxbert.sharding import (
    MESH_AXES, PARAM_AXES, batch_sharding, constrain, host_share, make_mesh, partition_spec, state_shardings
)
from flaxbert.training.step import init_state

MESH = MeshConfig(fsdp=2, tensor=2)


def abstract_state(name, optimizer="adam"):
    model = dataclasses.replace(PRESETS[name], vocab_size=30_522)
    experiment = Experiment(model=model, optimizer=OptimizerConfig(name=optimizer))
    return jax.eval_shape(lambda: init_state(experiment, jax.random.key(0)))


def leaves(tree):
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in
            jax.tree_util.tree_leaves_with_path(tree)}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_every_array_of_every_preset_has_a_place(name):
    state = abstract_state(name)
    placed = leaves(state_shardings(state, make_mesh(MESH)))
    assert placed.keys() == leaves(state).keys()
    for path, leaf in leaves(state).items():
        placed[path].shard_shape(leaf.shape)  # raises where the axes do not divide the shape


def test_what_is_large_is_divided():
    state = abstract_state("base")
    placed = leaves(state_shardings(state.params, make_mesh(MESH)))
    assert placed["encoder/embeddings/word/embedding"].spec == PartitionSpec("tensor", "fsdp")
    assert placed["encoder/layers/attention/query/kernel"].spec == PartitionSpec(None, "fsdp", "tensor", None)
    assert placed["encoder/layers/mlp/down/kernel"].spec == PartitionSpec(None, "tensor", "fsdp")
    whole = {path for path, sharding in placed.items() if sharding.is_fully_replicated}
    sizes = {path: leaf.size for path, leaf in leaves(state.params).items()}
    assert max(sizes[path] for path in whole) < 50_000, "only biases and scales lie whole on every device"


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "lamb"])
def test_the_moments_follow_their_parameters(optimizer):
    state = abstract_state("tiny", optimizer)
    placed = state_shardings(state, make_mesh(MESH))
    params, (_, adam) = leaves(placed.params), placed.optimizer_state
    assert leaves(adam.m) == params
    assert leaves(adam.v) == params


def test_every_row_of_the_table_is_used():
    state = abstract_state("tiny")
    for removed in PARAM_AXES:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("flaxbert.sharding.PARAM_AXES", tuple(row for row in PARAM_AXES if row != removed))
            with pytest.raises(ValueError, match="matches no row"):
                state_shardings(state, make_mesh(MESH))


def test_every_named_axis_is_in_the_second_table():
    named = {axis for _, axes in PARAM_AXES for axis in axes if axis is not None}
    assert named <= MESH_AXES.keys()
    with pytest.raises(KeyError):
        partition_spec("no_such_axis")


def test_a_parameter_that_nobody_expects_is_refused():
    with pytest.raises(ValueError, match=r"encoder/adapter/kernel \(3, 4\) matches no row"):
        state_shardings({"encoder": {"adapter": {"kernel": jnp.zeros((3, 4))}}}, make_mesh(MESH))


def test_a_parameter_of_another_rank_is_refused():
    with pytest.raises(ValueError, match=r"mlm/bias has shape \(3, 4\), but PARAM_AXES gives it the axes \('vocab',\)"):
        state_shardings({"mlm": {"bias": jnp.zeros((3, 4))}}, make_mesh(MESH))


def test_an_axis_that_the_mesh_does_not_divide_is_refused():
    kernel = {"layers": {"attention": {"query": {"kernel": jnp.zeros((2, 6, 3, 2))}}}}
    with pytest.raises(ValueError, match="heads axis of 3 cannot be divided by mesh.tensor=2"):
        state_shardings(kernel, make_mesh(MESH))


@pytest.mark.parametrize("config", [MeshConfig(data=3), MeshConfig(data=8), MeshConfig(fsdp=3), MeshConfig(tensor=8)])
def test_a_mesh_that_does_not_fit_the_devices_is_refused(config):
    with pytest.raises(ValueError, match=r"^mesh.(data|fsdp)=\d+ x mesh.* does not fit the 4 device\(s\) found"):
        make_mesh(config)


@pytest.mark.parametrize("config, shape", [
    (MeshConfig(), (4, 1, 1)), (MeshConfig(tensor=2), (2, 1, 2)), (MeshConfig(fsdp=4), (1, 4, 1)),
    (MeshConfig(data=1, fsdp=2, tensor=2), (1, 2, 2)),
])  # fmt: skip
def test_data_takes_what_the_other_axes_leave(config, shape):
    assert tuple(make_mesh(config).shape.values()) == shape


def test_a_mesh_can_be_made_of_some_of_the_devices():
    devices = jax.devices()[1:3]
    assert set(make_mesh(MeshConfig(fsdp=2), devices).devices.flat) == set(devices)
    with pytest.raises(ValueError, match=r"does not fit the 2 device\(s\) found"):
        make_mesh(MeshConfig(data=4), devices)


def test_a_constraint_constrains():
    """Under `with mesh:` constraints are silently ignored and under Explicit axes they raise: look at the result."""
    mesh = make_mesh(MeshConfig(data=2, tensor=2))
    x = jax.device_put(jnp.zeros((4, 8, 6)), NamedSharding(mesh, PartitionSpec()))
    with jax.set_mesh(mesh):
        free = jax.jit(lambda x: x + 1)(x)
        held = jax.jit(lambda x: constrain(x + 1, "batch", "length", "mlp"))(x)
    assert free.sharding.shard_shape(x.shape) == (4, 8, 6)
    assert held.sharding.shard_shape(x.shape) == (2, 8, 3)


def test_without_a_mesh_a_constraint_is_the_identity():
    x = jnp.arange(6.0).reshape(1, 2, 3)
    assert constrain(x, "batch", "length", "mlp") is x
    assert (jax.jit(lambda x: constrain(x, "batch", "length", "mlp"))(x) == x).all()


def test_the_rows_of_a_batch_go_along_data_and_fsdp():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2))
    assert batch_sharding(mesh).shard_shape((8, 5)) == (2, 5)
    assert batch_sharding(make_mesh(MeshConfig(data=2, tensor=2))).shard_shape((8, 5)) == (4, 5)


@dataclasses.dataclass(frozen=True)
class Device:
    """All that a mesh is asked for its devices here: real ones belong to one process in a test."""

    id: int
    process_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"


def shares(monkeypatch, shape, processes):
    """What each process of four devices gets from `host_share`, on a mesh data x fsdp x tensor in the order of ids."""
    devices = np.array([Device(number, number // 4) for number in range(4 * processes)])
    mesh, found = Mesh(devices.reshape(shape), ("data", "fsdp", "tensor")), []
    for process in range(processes):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        found.append(host_share(mesh))
    return found


@pytest.mark.parametrize("shape, processes, expected", [
    ((8, 1, 1), 2, [(0, 2), (1, 2)]),
    ((1, 8, 1), 2, [(0, 2), (1, 2)]),
    ((1, 4, 2), 2, [(0, 2), (1, 2)]),
    ((2, 1, 4), 2, [(0, 2), (1, 2)]),
    ((1, 1, 8), 2, [(0, 1), (0, 1)]),  # one copy of the model over both: each brings every row
    ((2, 1, 8), 4, [(0, 2), (0, 2), (1, 2), (1, 2)]),
    ((1, 2, 8), 4, [(0, 2), (0, 2), (1, 2), (1, 2)]),
    ((6, 1, 2), 3, [(0, 3), (1, 3), (2, 3)]),
])  # fmt: skip
def test_processes_whose_devices_hold_the_same_rows_bring_the_same_share(monkeypatch, shape, processes, expected):
    assert shares(monkeypatch, shape, processes) == expected


def test_rows_that_overlap_in_part_are_refused(monkeypatch):
    """Six devices to a copy of the model: the second process of three holds rows of the first one and of the third."""
    with pytest.raises(ValueError, match="mesh.tensor=6 gives the 3 processes rows that overlap in part"):
        shares(monkeypatch, (2, 1, 6), 3)
