"""TPU slices that are not there, by a name such as `v5e:4x4`: their devices for the compiler; and devices' memory."""

import importlib.util
import os
from typing import Any, NamedTuple

import jax

from data_pipeline.memory import machine_memory

GIB = 2**30


class Generation(NamedTuple):
    """A kind of TPU as its compiler knows it."""

    device_kind: str
    memory: float
    """GiB that the compiler gives a program, as its refusals say (libtpu 0.0.42)."""
    chip_config: str
    """`megacore` makes one device of v4's two cores, as a v4 does; the others are one device by default."""
    slices: tuple[str, ...]
    """Shapes that Google Cloud sells (cloud.google.com/tpu/docs); of three-dimensional ones the smaller."""


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
    "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16",
)  # fmt: skip

# Nominal memory: 32, 16, 95 and 32 GB (cloud.google.com/tpu/docs/v4, v5e, v5p and v6e).
GENERATIONS = {
    "v4": Generation("TPU v4", 30.75, "megacore", _CUBES),
    "v5e": Generation("TPU v5 lite", 15.75, "default", _FLAT),
    "v5p": Generation("TPU v5", 95.74, "default", _CUBES),
    "v6e": Generation("TPU v6 lite", 31.25, "default", _FLAT),
}


def open_topology(name: str) -> list[Any]:
    """The devices of a slice, to compile for and never to run on.

    Raises ValueError for a name that is none, and where the TPU compiler is not installed.
    """
    kind, _, shape = name.partition(":")
    if kind not in GENERATIONS or shape not in GENERATIONS[kind].slices:
        known = "; ".join(f"{kind}: {', '.join(found.slices)}" for kind, found in GENERATIONS.items())
        raise ValueError(f"--topology {name!r} is not known, expected KIND:SHAPE such as v5e:4x4; there are {known}")
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"--topology {name} needs the TPU compiler, libtpu: install the extra `tpu` (pip install 'flaxbert[tpu]')"
        )
    from jax.experimental import topologies

    _name_a_machine()
    try:
        return list(topologies.get_topology_desc(name, "tpu", **_arrangement(kind, shape)).devices)
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(f"--topology {name}: libtpu refuses it: {error}") from error


def _arrangement(kind: str, shape: str) -> dict[str, Any]:
    """How the chips of a slice are wired and shared among hosts (AI-Hypercomputer/maxtext, accelerator_to_spec_map.py).

    A two-dimensional slice closes to a ring along an axis of 16; a three-dimensional one along all axes once it is
    made of whole cubes of 4 x 4 x 4.
    """
    sizes = [int(size) for size in shape.split("x")]
    flat = len(sizes) == 2
    wrap = [size == 16 for size in sizes] + [False] if flat else [all(size % 4 == 0 for size in sizes)] * 3
    return {
        "chip_config_name": GENERATIONS[kind].chip_config,
        "chips_per_host_bounds": (1, 1, 1) if shape == "1x1" else (2, 2, 1),
        "wrap": tuple(wrap),
    }


def _name_a_machine() -> None:
    """Keeps libtpu from asking the network what TPU this machine is, from complaining that it is none, and from
    refusing a second process: a lock guards chips, and compiling takes none.
    """
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")


class DeviceMemory(NamedTuple):
    """What a step may take on one device."""

    bytes: int
    source: str


def device_memory(device: Any, devices: int) -> DeviceMemory | None:
    """The memory of one of so many devices; None where nobody says.

    A GPU says what JAX's allocator may take, by default three quarters of the card (XLA_PYTHON_CLIENT_MEM_FRACTION).
    Devices of the CPU share the machine's.
    """
    for name, generation in GENERATIONS.items():
        if device.platform == "tpu" and device.device_kind == generation.device_kind:
            return DeviceMemory(int(generation.memory * GIB), f"{name}, what the compiler gives a program")
    if device.platform == "cpu":
        found = DeviceMemory(*machine_memory())
        shared = found.source if devices == 1 else f"{found.source}, for each of {devices} devices"
        return DeviceMemory(found.bytes // devices, shared)
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return None if limit is None else DeviceMemory(limit, "what JAX may take of it")


def compiler_version() -> dict[str, str]:
    """Versions that a plan depends on."""
    import importlib.metadata

    versions = {"jax": jax.__version__}
    if importlib.util.find_spec("libtpu") is not None:
        versions["libtpu"] = importlib.metadata.version("libtpu")
    return versions
