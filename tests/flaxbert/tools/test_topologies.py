"""TPU slices by name. What needs the TPU compiler is skipped where libtpu is not installed (the extra `tpu`)."""

import dataclasses
import importlib.util
import math

import jax
import pytest

from flaxbert import cli
from flaxbert.config import Experiment, MeshConfig, ModelConfig
from flaxbert.sharding import make_mesh
from flaxbert.tools.plan import plan
from flaxbert.tools.topologies import GENERATIONS, device_memory, open_topology
from flaxbert.training.metrics import peak_flops

INSTALLED = importlib.util.find_spec("libtpu") is not None
needs_libtpu = pytest.mark.skipif(not INSTALLED, reason="the TPU compiler, libtpu, is not installed")


@pytest.mark.parametrize("name", ["v5e", "v5e:", "v5e:3x5", "v5e:4x4x4", "v5p:4x4", "v9:2x2", "v5litepod-16", ""])
def test_an_unknown_topology_is_answered_with_those_there_are(name):
    with pytest.raises(ValueError) as refusal:
        open_topology(name)
    said = str(refusal.value)
    assert repr(name) in said and all(f"{kind}: " in said for kind in GENERATIONS)
    assert "16x16" in said and "4x4x4" in said


@pytest.mark.skipif(INSTALLED, reason="libtpu is installed")
def test_without_libtpu_one_sentence_says_what_to_install(capsys):
    assert cli.main(["plan", "bert_tiny", "--topology", "v5e:4x4"]) == cli.USER_ERROR
    said = capsys.readouterr().err
    assert "install the extra `tpu`" in said and "libtpu" in said and len(said.splitlines()) == 1


@needs_libtpu
@pytest.mark.parametrize("kind, shape", [(kind, s) for kind, found in GENERATIONS.items() for s in found.slices])
def test_every_slice_that_is_named_can_be_compiled_for(kind, shape):
    devices = open_topology(f"{kind}:{shape}")
    assert len(devices) == math.prod(map(int, shape.split("x"))), "one device a chip"
    assert {device.device_kind for device in devices} == {GENERATIONS[kind].device_kind}
    assert peak_flops(devices[0].device_kind) is not None
    assert device_memory(devices[0], len(devices)).bytes == int(GENERATIONS[kind].memory * 2**30)


@needs_libtpu
def test_a_mesh_that_does_not_fit_the_slice_says_so():
    devices = open_topology("v5e:4x4")
    with pytest.raises(ValueError, match=r"mesh.fsdp=3 x mesh.tensor=1 does not fit the 16 device\(s\) found"):
        make_mesh(MeshConfig(fsdp=3), devices)
    with pytest.raises(ValueError, match="mesh.fsdp=32 x mesh.tensor=1 cannot be laid along the links"):
        make_mesh(MeshConfig(data=2, fsdp=32), open_topology("v5p:4x4x4")[:64])


@needs_libtpu
@pytest.mark.parametrize("kind", GENERATIONS)
def test_the_memory_of_each_generation_is_what_its_compiler_says(kind):
    """A program that needs a tebibyte is refused, and the refusal names what there is."""
    mesh = make_mesh(MeshConfig(data=1), open_topology(f"{kind}:{'2x2' if kind in ('v5e', 'v6e') else '2x2x1'}")[:1])
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    large = jax.ShapeDtypeStruct((2**16, 2**10, 2**10), "float32", sharding=place)
    with pytest.raises(jax.errors.JaxRuntimeError, match=rf"available HBM \({GENERATIONS[kind].memory}G\)"):
        jax.jit(lambda x: (jax.numpy.sort(x + 1, axis=0), x * 2)).lower(large).compile()


@needs_libtpu
@pytest.mark.slow
def test_a_step_is_planned_for_a_slice_and_one_too_large_for_it_is_told_of():
    model = ModelConfig(vocab_size=512, hidden_size=128, num_layers=2, num_heads=2, max_length=128)
    experiment = Experiment(model=model, mesh=MeshConfig(fsdp=2))
    found, = plan(experiment, "v5e:2x2", search=0)
    assert found["attention"] == "fused" and found["settings"]["train"]["attention"] == "auto"
    assert found["fits"] and found["devices"]["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1}
    assert found["collectives"]["kinds"] and found["speed"]["rows_per_second"] > 0
    rows = dataclasses.replace(experiment.train, batch_size=2**20)
    refused, = plan(dataclasses.replace(experiment, train=rows), "v5e:2x2", search=0)
    assert refused["fits"] is False and refused["memory"] is None and refused["memory_needed"] > 16e9
