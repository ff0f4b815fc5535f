"""The train step of an experiment, compiled for a mesh and never run: its memory, its products, what it sends."""

import dataclasses
import math
import re
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from flaxbert.config import Experiment, MeshConfig
from flaxbert.sharding import make_mesh
from flaxbert.tools.collectives import Collectives, read_collectives
from flaxbert.tools.hlo import largest_operand, parse
from flaxbert.training.step import abstract_batch, build_functions


class CompiledStep(NamedTuple):
    """What a compiled step takes on each device, and does."""

    memory: dict[str, int]
    """Bytes by kind; their sum is what the device must hold at once."""
    flops: float | None
    """The compiler's count for one device, each loop's body counted once; None where it gives none."""
    collectives: Collectives
    bytes_accessed: float | None = None
    """What the program of one device reads and writes, as the compiler counts it: the body of a loop once, and a kernel
    by its arrays.
    """

    @property
    def bytes(self) -> int:
        return sum(self.memory.values())


class DoesNotFitError(Exception):
    """The compiler refuses: the step needs more memory than the device has."""

    def __init__(self, needed: int | None) -> None:
        super().__init__(f"needs {needed} bytes")
        self.needed = needed
        """Bytes on a device, where the compiler says so."""


def compile_step(experiment: Experiment, mesh: Mesh) -> CompiledStep:
    """Compiles the step for the devices of a mesh, which need not exist.

    Raises DoesNotFitError where the compiler says that they have too little memory, and ValueError where the
    experiment does not fit the mesh.
    """
    functions = build_functions(experiment, mesh)  # outside of the mesh, whose devices may be unable to make a key
    with jax.set_mesh(mesh):
        lowered = functions.train.lower(functions.abstract_state, abstract_batch(experiment))
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or "vmem" in str(error).lower():  # a kernel's, no batch's
                raise
            raise DoesNotFitError(_needed(str(error))) from None
    return CompiledStep(
        memory=_memory(compiled, functions.abstract_state, experiment, mesh),
        flops=_cost(compiled.cost_analysis()),
        collectives=read_collectives(parse(compiled.as_text() or "")),
        bytes_accessed=_cost(compiled.cost_analysis(), "bytes accessed"),
    )


def _memory(compiled: Any, state: Any, experiment: Experiment, mesh: Mesh) -> dict[str, int]:
    """Bytes on one device. The new state is written over the old one: what the compiler aliases is there once."""
    found, platform = compiled.memory_analysis(), mesh.devices.flat[0].platform
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    weights, moments = _shard_bytes(state.params), _shard_bytes(state.optimizer_state)
    batch = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in abstract_batch(experiment).values()) // rows
    results = max(0, found.output_size_in_bytes - found.alias_size_in_bytes)
    temporary = found.temp_size_in_bytes
    if platform == "tpu":  # its sum counts what lies in one place one after the other more than once; its peak does not
        temporary = found.peak_memory_in_bytes - found.argument_size_in_bytes - results
    kinds = {
        "weights": weights,
        "moments": moments,
        "batch": batch,
        "metrics, and padding of layouts": max(0, found.argument_size_in_bytes - weights - moments - batch),
        "results beside the state": results,
        "activations and temporaries": max(0, temporary),
        "program": found.generated_code_size_in_bytes,
    }
    if platform == "cpu":
        # Eigen lays the left operand of a product out anew, in memory that XLA knows nothing of: with a large batch
        # the gradient of the logits. Measured: benchmarks/plan_memory.py.
        kinds["workspace of matrix products"] = largest_operand(parse(compiled.as_text() or ""))
    return kinds


def state_bytes(experiment: Experiment, mesh: Mesh) -> int:
    """Weights and moments on one device: what no batch changes."""
    state = build_functions(experiment, mesh).abstract_state
    return _shard_bytes((state.params, state.optimizer_state))


def _shard_bytes(tree: Any) -> int:
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def _needed(message: str) -> int | None:
    """`... temporaries (121.17G) exceeds available HBM (15.75G).` or `Used 30.02G of 15.75G hbm.`"""
    match = re.search(r"\(([\d.]+)([KMGT])\) exceeds|Used ([\d.]+)([KMGT]) of", message)
    if match is None:
        return None
    number, unit = match[1] or match[3], match[2] or match[4]
    return int(float(number) * 2 ** {"K": 10, "M": 20, "G": 30, "T": 40}[unit])


def counted_flops(experiment: Experiment) -> float | None:
    """XLA's count of the whole step as it is written, before it is optimised or divided among devices.

    XLA counts the body of a loop once. Layers are alike, and one or two of them make no loop: the second one's cost
    is that of every further one.
    """
    one, two = (_lowered_flops(experiment, layers) for layers in (1, 2))
    return None if one is None or two is None else one + (experiment.model.num_layers - 1) * (two - one)


def _lowered_flops(experiment: Experiment, layers: int) -> float | None:
    alone = dataclasses.replace(
        experiment, model=dataclasses.replace(experiment.model, num_layers=layers), mesh=MeshConfig(),
        # The same batch in one piece: a loop over pieces would hide all but one of them from XLA's count.
        # Attention as it is written: XLA sees nothing of a kernel's products.
        train=dataclasses.replace(experiment.train, microbatches=1, attention="xla"),
    )  # fmt: skip
    mesh = make_mesh(alone.mesh, jax.devices()[:1])
    functions = build_functions(alone, mesh)
    with jax.set_mesh(mesh):
        lowered = functions.train.lower(functions.abstract_state, abstract_batch(alone))
    return _cost(lowered.cost_analysis())


def _cost(analysis: Any, name: str = "flops") -> float | None:
    """A count of a cost analysis, which some backends give as a list of one, and some do not give."""
    first = analysis[0] if isinstance(analysis, list) and analysis else analysis
    return (first or {}).get(name)
