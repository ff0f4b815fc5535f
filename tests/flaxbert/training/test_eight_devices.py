"""On eight devices, every division of model, batch and memory gives the steps of one device, in less memory each."""

import dataclasses
import itertools
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from data_pipeline.config import DataConfig
from flaxbert.config import Experiment, MeshConfig, ModelConfig, OptimizerConfig, TrainConfig
from flaxbert.model import encoder
from flaxbert.sharding import make_mesh
from flaxbert.training.step import build_functions

MESHES = {
    "data 8": MeshConfig(), "fsdp 8": MeshConfig(fsdp=8), "tensor 2 x fsdp 4": MeshConfig(fsdp=4, tensor=2),
    "data 2 x fsdp 2 x tensor 2": MeshConfig(fsdp=2, tensor=2),
}  # fmt: skip
SETTINGS = list(itertools.product((1, 4), ("none", "products", "layers")))
CASES = {
    f"{name}, {microbatches}, {rematerialization}": (mesh, microbatches, rematerialization)
    for name, mesh in MESHES.items() for microbatches, rematerialization in SETTINGS
}  # fmt: skip
QUICK = "data 2 x fsdp 2 x tensor 2, 4, products"  # all axes at once: the one that every run of the tests computes
STEPS = 3
# Float32 sums taken in another order, through three updates.
RTOL = 2e-5
EXPERIMENT = Experiment(
    model=ModelConfig(vocab_size=200, hidden_size=64, num_layers=2, num_heads=4, feed_forward_size=128, max_length=16),
    data=DataConfig(sequence_length=16), optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=1),
    train=TrainConfig(steps=10, batch_size=32),
)  # fmt: skip


def trained(mesh, microbatches=1, rematerialization="none"):
    """(loss and gradient norm of each step, the largest bytes of parameters and of moments on a device)."""
    from conftest import synthetic_batch  # of this folder

    changes = dict(microbatches=microbatches, rematerialization=rematerialization)
    experiment = dataclasses.replace(EXPERIMENT, train=dataclasses.replace(EXPERIMENT.train, **changes))
    with jax.set_mesh(mesh):
        functions = build_functions(experiment, mesh)
        state, found = functions.init(), []
        for step in range(STEPS):
            state, outcome = functions.train(state, functions.put(synthetic_batch(step, rows=32, vocab_size=200)))
            found.append((float(outcome.loss), float(outcome.gradient_norm)))
    return found, bytes_per_device(state.params), bytes_per_device(state.optimizer_state)


def bytes_per_device(tree):
    held = dict.fromkeys(jax.devices(), 0)
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.nbytes
    return max(held.values())


def main(cases):
    encoder.UNROLLED_LAYERS["cpu"] = 1  # compiles in half the time
    one = jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3, devices=jax.devices()[:1])
    found = {"one device": trained(one)}
    for name in cases:
        mesh, microbatches, rematerialization = CASES[name]
        found[name] = trained(make_mesh(mesh), microbatches, rematerialization)
    print(json.dumps(found))


@pytest.fixture(scope="module")
def found():
    return computed(*CASES)


def computed(*cases):
    """What `trained` gives of one device and of these cases on eight, in a process that has eight."""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    program = subprocess.run(
        [sys.executable, __file__, *cases], env=environment, capture_output=True, text=True, timeout=1100, check=False,
        cwd=pathlib.Path(__file__).parent,
    )  # fmt: skip
    assert program.returncode == 0, program.stderr
    return json.loads(program.stdout.splitlines()[-1])


def test_eight_devices_with_all_axes_microbatches_and_recomputation_are_one_in_a_quarter_of_the_memory():
    found = computed(QUICK)
    np.testing.assert_allclose(found[QUICK][0], found["one device"][0], rtol=RTOL)
    for whole, part in zip(found["one device"][1:], found[QUICK][1:], strict=True):
        assert whole / 4 <= part <= whole / 4 + 0.1 * whole


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("mesh", MESHES)
def test_losses_and_gradient_norms_are_those_of_one_device(found, mesh):
    for microbatches, rematerialization in SETTINGS:
        name = f"{mesh}, {microbatches}, {rematerialization}"
        np.testing.assert_allclose(found[name][0], found["one device"][0], rtol=RTOL, err_msg=name)


@pytest.mark.slow
def test_the_bytes_of_a_device_fall_as_the_table_says(found):
    """All that is large is divided along fsdp and tensor: what stays whole are biases, scales and the position table's
    like, less than a tenth here.
    """
    _, params, moments = found["one device"]
    for mesh, share in (("data 8", 1), ("fsdp 8", 8), ("tensor 2 x fsdp 4", 8), ("data 2 x fsdp 2 x tensor 2", 4)):
        for whole, part in zip((params, moments), found[f"{mesh}, 1, none"][1:], strict=True):
            assert whole / share <= part <= whole / share + (0.1 * whole if share > 1 else 0), mesh


if __name__ == "__main__":
    main(sys.argv[1:])
