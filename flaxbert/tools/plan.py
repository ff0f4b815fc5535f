"""`flaxbert plan`: what a run would take and how long it would last, from the real step, compiled and never run."""

import contextlib
import dataclasses
import math
from typing import Any

import jax
from jax.sharding import Mesh

from flaxbert.config import Experiment, with_vocabulary
from flaxbert.phases import Part, named, parts
from flaxbert.sharding import make_mesh
from flaxbert.tools.compiled_step import CompiledStep, counted_flops, state_bytes
from flaxbert.tools.largest_batch import Attempt, Waiting, bounds, find_largest_batch, rows_multiple, try_step
from flaxbert.tools.topologies import DeviceMemory, compiler_version, device_memory, open_topology
from flaxbert.training.attention_choice import foretold
from flaxbert.training.metrics import flops_by_part, next_sentence_flops, peak_flops
from flaxbert.training.step import build_functions

ASSUMED_VOCABULARY = 30_522  # what `prepare` trains by default, and that of the released English models

Plan = dict[str, Any]


def plan(
    experiment: Experiment, topology: str | None = None, mfu: float = 0.5, search: int = 8,
    waiting: Waiting = contextlib.nullcontext, peak: float | None = None,
) -> list[Plan]:  # fmt: skip
    """All that can be said of each phase of a run before it is made, on a TPU slice that need not be there or on the
    devices here.

    `search` compilations a phase at most look for the largest batch. `peak` is that of one device in FLOP/s; None: of
    its kind, where that is known. Raises ValueError where the experiment does not fit the devices, and for a topology
    that is not known.
    """
    if not 0 < mfu <= 1:
        raise ValueError(f"--mfu {mfu} is not in (0, 1]")
    if peak is not None and not 0 < peak < math.inf:
        raise ValueError(f"--peak-flops {peak} is not positive")
    if search < 0:
        raise ValueError(f"--search {search} is negative")
    experiment, assumed = _with_a_vocabulary(experiment)
    devices = jax.devices() if topology is None else open_topology(topology)
    plans = []
    for number, part in enumerate(parts(experiment)):
        with named(experiment, number):
            found = _plan_part(part, topology, devices, search, waiting)
            speed = _speed(part, devices, mfu, peak or peak_flops(devices[0].device_kind))
            plans.append({"assumed": assumed, **found, "speed": speed})
    return plans


def _plan_part(part: Part, topology: str | None, devices: list[Any], search: int, waiting: Waiting) -> Plan:
    """All of a plan but the speed."""
    mesh, memory = make_mesh(part.experiment.mesh, devices), device_memory(devices[0], len(devices))
    experiment: Experiment = foretold(part.experiment, mesh)
    capacity = None if memory is None else memory.bytes
    with waiting(f"compiling the step for {experiment.train.batch_size:,} rows"):
        step, first = try_step(experiment, mesh, capacity)
    found = {
        "steps": part.last_step - part.first_step,
        "versions": compiler_version(),
        "settings": dataclasses.asdict(part.experiment),
        "attention": experiment.train.attention,
        "devices": _devices(devices, topology, mesh, memory),
        "parameters": _parameters(experiment, mesh),
        "memory": None if step is None else step.memory,
        "memory_needed": first.bytes,
        "fits": first.fits if capacity is not None else None,
        "flops": _flops(experiment, step),
        "collectives": None if step is None else _collectives(step),
        "largest_batch": None,
    }
    if search and capacity is not None:
        tried = find_largest_batch(experiment, mesh, capacity, first, search, waiting)
        fits, refused = bounds(tried)
        found["largest_batch"] = {"rows": fits, "refused": refused, "tried": [each._asdict() for each in tried]}
    return found


def _with_a_vocabulary(experiment: Experiment) -> tuple[Experiment, list[str]]:
    if experiment.model.vocab_size is not None:
        return experiment, []
    return with_vocabulary(experiment, ASSUMED_VOCABULARY), [
        f"a vocabulary of {ASSUMED_VOCABULARY:,} is assumed: --model.vocab-size or --corpus says which it is"
    ]


def _devices(devices: list[Any], topology: str | None, mesh: Mesh, memory: DeviceMemory | None) -> dict[str, Any]:
    return {
        "topology": topology, "kind": devices[0].device_kind, "count": len(devices), "mesh": dict(mesh.shape),
        "memory": None if memory is None else memory.bytes,
        "memory_source": None if memory is None else memory.source,
    }  # fmt: skip


def _parameters(experiment: Experiment, mesh: Mesh) -> int:
    """Those of the model, without the padding of the vocabulary."""
    params, model = build_functions(experiment, mesh).abstract_state.params, experiment.model
    padding = (model.padded_vocab_size - (model.vocab_size or 0)) * (model.hidden_size + 1)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) - padding


def _flops(experiment: Experiment, step: CompiledStep | None) -> dict[str, Any]:
    """Of one step on all devices, but for the compiler's own count of the program of one."""
    rows, data = experiment.train.batch_size, experiment.data
    parts = flops_by_part(experiment.model, data.sequence_length, data.predictions_per_row, data.packing)
    return {
        "parts": {name: rows * flops for name, flops in parts.items()},
        "model": rows * sum(parts.values()),
        "next_sentence": rows * next_sentence_flops(experiment.model, data.packing),
        "counted": counted_flops(experiment),
        "compiled_per_device": None if step is None else step.flops,
    }


def _speed(part: Part, devices: list[Any], mfu: float, peak: float | None) -> dict[str, Any] | None:
    """Rates and the length of the schedule at a share of the devices' peak; None where the peak is not known."""
    experiment: Experiment = part.experiment
    config, data, length = experiment.train, experiment.data, experiment.data.sequence_length
    if peak is None:
        return None
    parts = flops_by_part(experiment.model, length, data.predictions_per_row, data.packing)
    rows = mfu * peak * len(devices) / sum(parts.values())
    seconds = (part.last_step - part.first_step) * config.batch_size / rows
    return {
        "mfu": mfu, "peak_flops_per_device": peak, "seconds_per_step": config.batch_size / rows,
        "rows_per_second": rows, "tokens_per_second": rows * length, "seconds": seconds,
        "device_hours": seconds / 3600 * len(devices),
    }  # fmt: skip


def _collectives(step: CompiledStep) -> dict[str, Any]:
    kinds = {kind: traffic._asdict() for kind, traffic in step.collectives.kinds.items()}
    return {"kinds": kinds, "loops_counted_once": step.collectives.loops_counted_once}


def what_would_fit(experiment: Experiment, mesh: Mesh, memory: DeviceMemory | None = None) -> str:
    """A sentence for a run that has exhausted its devices' memory: what its step needs, and settings that would fit.

    `memory` is what a device has; None: what it says itself. Takes at most seven compilations. Never raises: there is
    an error already to be told of.
    """
    try:
        return _what_would_fit(experiment, mesh, memory or device_memory(mesh.devices.flat[0], mesh.size))
    except Exception as error:  # whatever goes wrong, the run's own error must not be hidden
        return f"what would fit could not be found out ({type(error).__name__}: {' '.join(str(error).split())[:200]})"


def _what_would_fit(experiment: Experiment, mesh: Mesh, memory: DeviceMemory | None) -> str:
    if memory is None:
        return "how much memory the device has is not known"
    step, first = try_step(experiment, mesh, memory.bytes)
    needs = "more memory than it has" if first.bytes is None else f"{gigabytes(first.bytes)} GB per device"
    if step is not None:
        largest = sorted(step.memory.items(), key=lambda item: -item[1])[:4]
        needs += " (" + ", ".join(f"{kind} {gigabytes(size)}" for kind, size in largest) + ")"
    sentence = f"the step needs {needs} and the device has {gigabytes(memory.bytes)} GB ({memory.source})"
    if first.fits:
        return sentence + ": the step alone would fit, so something else holds memory there"
    flags = [
        flag for suggest in (_with_microbatches, _with_fewer_rows, _with_more_shards)
        if (flag := _suggestion(suggest, experiment, mesh, memory.bytes, first))
    ]  # fmt: skip
    return sentence + (f"; it would fit with {' or with '.join(flags)}" if flags else "; no setting tried would fit")


def _suggestion(suggest: Any, *arguments: Any) -> str | None:
    """One setting that fits. Where it cannot be compiled the others may still be."""
    with contextlib.suppress(Exception):
        return suggest(*arguments)
    return None


def _with_microbatches(experiment: Experiment, mesh: Mesh, capacity: int, first: Attempt) -> str | None:
    """The fewest pieces that fit, of the two likeliest."""
    now = experiment.train.microbatches
    most = experiment.train.batch_size // (rows_multiple(experiment, mesh) // now)
    pieces = [count for count in range(now + 1, most + 1) if most % count == 0]
    if first.bytes is not None:
        fixed = state_bytes(experiment, mesh)
        least = now * (first.bytes - fixed) / max(1, capacity - fixed)
        pieces = [count for count in pieces if count >= least] or pieces[-1:]
    for count in pieces[:2]:
        train = dataclasses.replace(experiment.train, microbatches=count)
        if try_step(dataclasses.replace(experiment, train=train), mesh, capacity)[1].fits:
            return f"--train.microbatches {count}"
    return None


def _with_fewer_rows(experiment: Experiment, mesh: Mesh, capacity: int, first: Attempt) -> str | None:
    fits, _ = bounds(find_largest_batch(experiment, mesh, capacity, first, most=3))
    return f"--train.batch-size {fits} in a new --workdir" if fits else None


def _with_more_shards(experiment: Experiment, mesh: Mesh, capacity: int, first: Attempt) -> str | None:
    """The state divided over all devices, where it is not yet."""
    shards = mesh.size // mesh.shape["tensor"]
    if shards == mesh.shape["fsdp"]:
        return None
    divided = dataclasses.replace(experiment, mesh=dataclasses.replace(experiment.mesh, data=1, fsdp=shards))
    other = make_mesh(divided.mesh, list(mesh.devices.flat))
    return f"--mesh.data 1 --mesh.fsdp {shards}" if try_step(divided, other, capacity)[1].fits else None


def gigabytes(size: int) -> str:
    """Units of 10^9 bytes."""
    return f"{size / 1e9:.1f}" if size >= 1e8 else f"{size / 1e9:.3f}"
