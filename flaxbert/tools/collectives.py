"""What a compiled program sends between devices, read from its HLO text."""

import re
from typing import NamedTuple

from flaxbert.tools.hlo import Computation, Instruction, Module, array_bytes

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")


class Traffic(NamedTuple):
    """Collectives of one kind in one run of a program."""

    count: int  # type: ignore[assignment]  # a tuple has a method of that name
    bytes: int
    """On one device, of the whole array: of an all-gather the gathered one, of a reduce-scatter the one given."""


class Collectives(NamedTuple):
    """All that a program sends in one run."""

    kinds: dict[str, Traffic]
    """Those that occur."""
    loops_counted_once: int
    """Loops with collectives inside whose length could not be read."""


_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|branch_computations|true_computation|false_computation)=(\{[^}]*\}|%?[\w.-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


def read_collectives(module: Module) -> Collectives:
    """Collectives of an optimised module, those inside loops times the loop's length.

    A pair of -start and -done counts once, at its start. On TPUs a collective may be spread over a chain of fusions
    that work beside it; each repeats the instruction, and the one that begins it counts.
    """
    computations, entry = module
    found: dict[str, list[int]] = {kind: [0, 0] for kind in KINDS}
    unknown = 0

    def visit(name: str, times: int) -> None:
        nonlocal unknown
        computation = computations.get(name, {})
        for instruction in computation.values():
            kind = instruction.opcode.removesuffix("-start")
            if kind in found and _begins_here(instruction, computation):
                found[kind][0] += times
                found[kind][1] += times * _moved(instruction, computation)
            inner = times
            if instruction.opcode == "while":
                trips = _trips(instruction, computation, computations)
                unknown += trips is None and _sends(_called(instruction), computations)
                inner = times * (1 if trips is None else trips)
            for called in _called(instruction):
                visit(called, inner)

    visit(entry, 1)
    return Collectives({kind: Traffic(*sums) for kind, sums in found.items() if sums[0]}, unknown)


def _called(instruction: Instruction) -> list[str]:
    """Computations that an instruction runs. The condition of a loop sends nothing."""
    if instruction.opcode in ("async-update", "async-done"):
        return []  # they name what their start has begun
    return [name for group in _CALLED.findall(instruction.rest) for name in re.findall(r"[\w.-]+", group)]


def _begins_here(instruction: Instruction, computation: Computation) -> bool:
    """False for a later link of a TPU's chain of fusions."""
    return "chain_id=" not in instruction.rest or any(
        '"AsyncCollectiveStart"' in other.rest for other in computation.values()
    )


def _moved(instruction: Instruction, computation: Computation) -> int:
    """Bytes of one collective. An all-reduce may round what it is given: what it gives is what it sends."""
    given = sum(array_bytes(computation[name].shape) for name in instruction.operands if name in computation)
    if instruction.opcode.startswith("reduce-scatter"):
        return given
    holds_operands = instruction.opcode in ("all-gather-start", "collective-permute-start", "all-to-all-start")
    return array_bytes(instruction.shape) - (given if holds_operands else 0)


def _sends(names: list[str], computations: dict[str, Computation]) -> bool:
    inside = [instruction for name in names for instruction in computations.get(name, {}).values()]
    return any(instruction.opcode.removesuffix("-start") in KINDS for instruction in inside) or any(
        _sends(_called(instruction), computations) for instruction in inside if _called(instruction)
    )


def _trips(loop: Instruction, computation: Computation, computations: dict[str, Computation]) -> int | None:
    """How often a loop runs: as the compiler says, or from a counter that is compared with a constant and rises by
    one, which is what JAX's scans and XLA's own loops over shards are made of. None where neither is seen.
    """
    known = _TRIPS.search(loop.rest)
    if known:
        return int(known[1])
    condition = re.search(r"condition=%?([\w.-]+)", loop.rest)
    inside = computations.get(condition[1], {}) if condition else {}
    root = next((instruction for instruction in inside.values() if instruction.is_root), None)
    if root is None or root.opcode != "compare" or "direction=LT" not in root.rest or len(root.operands) != 2:
        return None
    counter, limit = (inside.get(name) for name in root.operands)
    index = re.search(r"index=(\d+)", counter.rest) if counter is not None else None
    last, first = _constant(limit), _constant(_element(loop, computation, int(index[1]))) if index else None
    return None if last is None or index is None else last - (first or 0)


def _element(loop: Instruction, computation: Computation, index: int) -> Instruction | None:
    """What a loop begins with in one place of its tuple."""
    start = computation.get(loop.operands[0]) if loop.operands else None
    if start is None or start.opcode != "tuple" or index >= len(start.operands):
        return None
    return computation.get(start.operands[index])


def _constant(instruction: Instruction | None) -> int | None:
    match = re.match(r"(-?\d+)\)", instruction.rest) if instruction and instruction.opcode == "constant" else None
    return int(match[1]) if match else None
