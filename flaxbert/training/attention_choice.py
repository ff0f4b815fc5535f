"""Which backend computes attention in a run: the one that was asked for, or the fastest of those that can."""

import dataclasses
import functools
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from flaxbert.config import Experiment, MeshConfig
from flaxbert.model.attention import PLATFORMS, Request, attention, refusal
from flaxbert.model.dropout import row_seeds
from flaxbert.sharding import make_mesh
from flaxbert.training.files import KEPT_ATTENTION, write_atomically

REPEATS = 5  # of which the median counts
CALLS = 10  # of one repeat: a call's own cost, some 50 us, must not be what is measured

# Of the largest entry: rounding stays far below it, TF32's too; a wrong mask, scale or dropout does not.
MOST_DEVIATION = 0.05

# What `plan` takes for `auto`, as it cannot measure on devices that need not be there.
FORETOLD = {"tpu": "fused"}


def request_of(experiment: Experiment, mesh: Mesh) -> Request:
    """What one device has to compute in a step, one microbatch of it."""
    model, train, shape = experiment.model, experiment.train, mesh.shape
    return Request(
        rows=train.batch_size // (shape["data"] * shape["fsdp"] * train.microbatches),
        length=experiment.data.sequence_length, heads=model.num_heads // shape["tensor"], head_size=model.head_size,
        dtype=jnp.dtype(train.compute_dtype), dropout_rate=model.attention_dropout, packed=experiment.data.packing > 1,
    )  # fmt: skip


def check_attention(experiment: Experiment, mesh: Mesh) -> None:
    """Raises ValueError where `train.attention` names a backend that cannot do what the experiment asks here."""
    backend = experiment.train.attention
    if backend == "auto":
        return
    reason = refusal(backend, request_of(experiment, mesh), platform_of(mesh))
    if reason is not None:
        raise ValueError(f"train.attention {backend} {reason}")


def candidates(experiment: Experiment, mesh: Mesh) -> list[str]:
    """The backends to choose among. `fused` runs on a CPU, for tests, and is never a choice there."""
    platform, request = platform_of(mesh), request_of(experiment, mesh)
    if platform == "cpu":
        return ["xla"]
    return [backend for backend in PLATFORMS if refusal(backend, request, platform) is None]


def platform_of(mesh: Mesh) -> str:
    """`cpu`, `gpu` or `tpu`."""
    return str(mesh.devices.flat[0].platform)


def with_attention(experiment: Experiment, backend: str) -> Experiment:
    """The experiment with another `train.attention`."""
    train = dataclasses.replace(experiment.train, **{"attention": backend})  # type: ignore[arg-type]
    return dataclasses.replace(experiment, train=train)


def foretold(experiment: Experiment, mesh: Mesh) -> Experiment:
    """The experiment as `plan` compiles it: for `auto` the backend that is likely to be the fastest, unmeasured."""
    if experiment.train.attention != "auto":
        return experiment
    likely = FORETOLD.get(platform_of(mesh), "xla")
    return with_attention(experiment, likely if likely in candidates(experiment, mesh) else "xla")


def chosen(experiment: Experiment, mesh: Mesh, say: Callable[[str], None], workdir: str) -> Experiment:
    """The experiment with a backend in place of `auto`: the fastest as the first process measures it, forward and
    backward, for all processes. Says which, and leaves out those that do not compile or run, or are wrong.

    It is kept in the run's folder, for each shape, kind of device and version of JAX: a run that goes on rounds as it
    did before.
    """
    names = candidates(experiment, mesh)
    if experiment.train.attention != "auto" or names == ["xla"]:  # which is what a step does for `auto`
        return experiment
    best = 0
    if jax.process_index() == 0:
        best = names.index(_kept_or_fastest(tuple(names), request_of(experiment, mesh), say, pathlib.Path(workdir)))
    if jax.process_count() > 1:
        best = int(multihost_utils.broadcast_one_to_all(np.int64(best)))
    return with_attention(experiment, names[best])


def _kept_or_fastest(
    names: tuple[str, ...], request: Request, say: Callable[[str], None], workdir: pathlib.Path
) -> str:
    shape = ", ".join(f"{name} {value}" for name, value in request._asdict().items())
    versions = f"jax {jax.__version__}, jaxlib {jaxlib.__version__}"  # another one's kernels have shown nothing yet
    place = f"{jax.local_devices()[0].device_kind}, {versions}: {shape}"
    path = workdir / KEPT_ATTENTION
    kept = _kept(path)
    if kept.get(place) in names:
        say(f"attention by {kept[place]}, as this run had it before: without {path} it would be measured again")
        return str(kept[place])
    best = _fastest(names, request, say)
    try:
        write_atomically(path, json.dumps(kept | {place: best}, indent=1) + "\n")
    except OSError as error:
        say(f"{path} cannot be written ({error.strerror}): the next launch measures attention again")
    return best


def _kept(path: pathlib.Path) -> dict[str, Any]:
    """What the run has chosen before; nothing where that cannot be read: it is then measured again."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _fastest(names: tuple[str, ...], request: Request, say: Callable[[str], None]) -> str:
    seconds, faults = _measured(names, request)
    for name, fault in faults.items():
        say(f"attention by {name} is left out: {fault}")
    best = min(seconds, key=lambda name: seconds[name], default="xla")
    times = ", ".join(f"{name} {1e3 * taken:.3g} ms" for name, taken in seconds.items())
    say(f"attention by {best} ({times} for {request.rows:,} rows of {request.length}, forward and backward)")
    return best


@functools.cache
def _measured(names: tuple[str, ...], request: Request) -> tuple[dict[str, float], dict[str, str]]:
    """(seconds of each backend that runs, why the others do not), once for each shape: the devices stay the same."""
    seconds, faults = {}, {}
    for name in names:
        try:
            if name != "xla" and not (found := deviation(name, request)) <= MOST_DEVIATION:
                faults[name] = f"its results are up to {found:.2g} of the largest one off those of xla"
                continue
            seconds[name] = measure(name, request)
        except Exception as error:  # compilers raise what they like, and there is always another backend
            faults[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return seconds, faults


def deviation(backend: str, request: Request) -> float:
    """How far output and gradients of a backend are from the plain ones at most, as a share of the largest of those: no
    kernel is trusted on a device before it has shown that. Of two rows, the end of one of them padding and, where rows
    are packed, the other one two sequences.
    """
    request = request._replace(rows=2)
    ids = np.ones((2, request.length), np.int32)
    ids[0, request.length * 3 // 4:] = 0
    ids[1, request.length // 3:] += request.packed
    with jax.set_mesh(make_mesh(MeshConfig(), jax.local_devices()[:1])):
        found, expected = (_results(name, request, ids) for name in (backend, "xla"))
    # numpy's maximum: Python's would pass over a NaN.
    return float(np.max([np.max(np.abs(x - y)) / np.max(np.abs(y)) for x, y in zip(found, expected, strict=True)]))


def _results(backend: str, request: Request, ids: np.ndarray) -> list[np.ndarray]:
    """Output and gradients where there is no padding, which some backends leave out."""
    step, arrays = _compiled(backend, request, ids)
    real = (ids > 0)[:, :, None, None]
    output, gradients = step(*arrays[:3], arrays[3] * real)
    return [np.where(real, np.asarray(x, np.float32), 0.0) for x in (output, *gradients)]


def measure(backend: str, request: Request) -> float:
    """Seconds of one forward and backward pass on one device of this process."""
    with jax.set_mesh(make_mesh(MeshConfig(), jax.local_devices()[:1])):
        # Full rows: as dear as any to all backends but cuDNN.
        step, arrays = _compiled(backend, request, np.ones((request.rows, request.length), np.int32))
        jax.block_until_ready(step(*arrays))
        taken = []
        for _ in range(REPEATS):
            begin = time.perf_counter()
            for _ in range(CALLS):
                found = step(*arrays)
            jax.block_until_ready(found)
            taken.append((time.perf_counter() - begin) / CALLS)
    return statistics.median(taken)


def _compiled(
    backend: str, request: Request, sequence_ids: np.ndarray
) -> tuple[Callable[..., Any], tuple[jax.Array, ...]]:
    """(attention with its gradients, arrays to call it with)."""
    shape = (request.rows, request.length, request.heads, request.head_size)
    key = jax.random.key(0, impl="threefry2x32")
    arrays = tuple(jax.random.normal(own, shape, request.dtype) for own in jax.random.split(key, 4))

    @jax.jit
    def step(
        ids: jax.Array, seeds: jax.Array, query: jax.Array, keys: jax.Array, value: jax.Array, gradient: jax.Array
    ) -> Any:
        def output(query: jax.Array, keys: jax.Array, value: jax.Array) -> jax.Array:
            return attention(query, keys, value, ids, request.dropout_rate, seeds, backend, request.packed)

        found, back = jax.vjp(output, query, keys, value)
        return found, back(gradient)

    # Arguments and no constants: XLA would work out the mask and the seeds when it compiles, as no step of a run can.
    seeds = row_seeds(key, jnp.arange(request.rows))
    return functools.partial(step, jnp.asarray(sequence_ids), seeds), arrays
