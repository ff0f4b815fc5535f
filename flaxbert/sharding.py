"""Where every array lies: parameter path → named axes → mesh axes. Two tables and the functions that read them."""

import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flaxbert.config import MeshConfig

# Named axes of each parameter, first match wins. A parameter that matches nothing is an error, so renaming a
# module without this table fails at start-up instead of replicating the weight. The moments of the optimizer end in
# the path of their parameter and follow it.
PARAM_AXES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"embeddings/word/embedding$", ("vocab", "embed")),
    (r"embeddings/(position|segment)/embedding$", (None, "embed")),
    (r"layers/attention/(query|key|value)/kernel$", ("layers", "embed", "heads", "head_size")),
    (r"layers/attention/(query|key|value)/bias$", ("layers", "heads", "head_size")),
    (r"layers/attention/output/kernel$", ("layers", "heads", "head_size", "embed")),
    (r"layers/mlp/up/kernel$", ("layers", "embed", "mlp")),
    (r"layers/mlp/up/bias$", ("layers", "mlp")),
    (r"layers/mlp/down/kernel$", ("layers", "mlp", "embed")),
    (r"layers/(attention/output|mlp/down)/bias$", ("layers", None)),
    (r"layers/(attention|mlp)_norm/(scale|bias)$", ("layers", None)),
    (r"(pooler|mlm/transform)/kernel$", ("embed", None)),
    (r"mlm/bias$", ("vocab",)),
    (r"nsp/kernel$", ("embed", None)),
    (r"(embeddings/norm|mlm/norm)/(scale|bias)$|(pooler|mlm/transform|nsp)/bias$", (None,)),
    (r"^guard/(losses|gradient_norms)$", (None,)),
)

# Named axis → mesh axes. Names of parameters and of activations share the table.
MESH_AXES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "length": None,
    "layers": None,
    "embed": "fsdp",
    "activation_embed": None,
    "vocab": "tensor",
    "heads": "tensor",
    "head_size": None,
    "mlp": "tensor",
}


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of all devices, or of those given, with the axes data, fsdp and tensor."""
    devices = jax.devices() if devices is None else list(devices)
    rest = config.fsdp * config.tensor
    data = config.data if config.data is not None else len(devices) // rest
    if data * rest != len(devices):
        stated = "" if config.data is None else f"mesh.data={config.data} x "
        raise ValueError(
            f"{stated}mesh.fsdp={config.fsdp} x mesh.tensor={config.tensor} does not fit "
            f"the {len(devices)} device(s) found"
        )
    shape, names = (data, config.fsdp, config.tensor), ("data", "fsdp", "tensor")
    try:
        # Auto axes: Linen's constraints and the embedding gather raise under make_mesh's default, Explicit.
        return jax.make_mesh(shape, names, (AxisType.Auto,) * 3, devices=devices)
    except NotImplementedError:  # a TPU's links form a grid, and each axis has to lie along whole sides of it
        raise ValueError(
            f"mesh.data={data} x mesh.fsdp={config.fsdp} x mesh.tensor={config.tensor} cannot be laid along the links "
            f"of these {len(devices)} {devices[0].device_kind} devices: take products of the sides of their grid"
        ) from None


def partition_spec(*axes: str | None) -> PartitionSpec:
    """Mesh axes of an array with these named axes."""
    return PartitionSpec(*(None if axis is None else MESH_AXES[axis] for axis in axes))


def platform() -> str:
    """What is traced now is compiled for: `cpu`, `gpu` or `tpu`; that of the mesh, else of the first device.

    To lower for another one, set a mesh of its devices or, without them, `jax.sharding.use_abstract_mesh`.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else str(device.platform)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Fixes the layout of an activation with these named axes; the identity where no mesh is set."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(*axes))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch divided over the data and fsdp axes."""
    return NamedSharding(mesh, partition_spec("batch"))


def host_share(mesh: Mesh) -> tuple[int, int]:
    """(index, count): which of `count` equal shares of a global batch's rows this process has to bring.

    Processes whose devices hold the same rows, as those of one copy of the model do, bring the same share. Raises
    ValueError where processes hold rows that overlap in part.
    """
    shares: dict[int, set[int]] = {}
    places: Any = batch_sharding(mesh).devices_indices_map((mesh.shape["data"] * mesh.shape["fsdp"],))
    for device, (rows,) in places.items():
        shares.setdefault(device.process_index, set()).add(rows.start or 0)
    distinct = sorted({tuple(sorted(share)) for share in shares.values()})
    if sum(map(len, distinct)) != len(set().union(*distinct)) or len({len(share) for share in distinct}) > 1:
        axes = " x ".join(f"mesh.{name}={size}" for name, size in mesh.shape.items())
        raise ValueError(
            f"{axes} gives the {len(shares)} processes rows that overlap in part: choose axes that divide a process's "
            "devices, or that whole processes divide"
        )
    return distinct.index(tuple(sorted(shares[jax.process_index()]))), len(distinct)


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """A NamedSharding for each array of a (possibly abstract) train state, by its path. Scalars are replicated."""

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        if leaf.ndim == 0:
            return NamedSharding(mesh, PartitionSpec())
        name = path_name(path)
        axes = next((axes for pattern, axes in PARAM_AXES if re.search(pattern, name)), None)
        if axes is None:
            raise ValueError(f"{name} {leaf.shape} matches no row of PARAM_AXES")
        if len(axes) != leaf.ndim:
            raise ValueError(f"{name} has shape {leaf.shape}, but PARAM_AXES gives it the axes {axes}")
        _check_divisible(name, leaf.shape, axes, mesh)
        return NamedSharding(mesh, partition_spec(*axes))

    return jax.tree_util.tree_map_with_path(place, state)


def path_name(path: tuple[Any, ...]) -> str:
    """`params/layers/mlp/up/kernel` for the path of a leaf."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _check_divisible(name: str, shape: tuple[int, ...], axes: tuple[str | None, ...], mesh: Mesh) -> None:
    for size, axis in zip(shape, axes, strict=True):
        mesh_axis = MESH_AXES[axis] if axis else None
        if isinstance(mesh_axis, str) and size % mesh.shape[mesh_axis]:
            raise ValueError(
                f"{name}: its {axis} axis of {size} cannot be divided by mesh.{mesh_axis}={mesh.shape[mesh_axis]}"
            )
