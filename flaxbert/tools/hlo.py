"""The text of a compiled program (HLO): its computations, their instructions, the bytes of their arrays."""

import math
import re
from typing import NamedTuple


class Instruction(NamedTuple):
    """One line: `%name = shape opcode(%operand, ...), rest`."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str
    """All that follows the opening parenthesis."""
    is_root: bool


Computation = dict[str, Instruction]


class Module(NamedTuple):
    """A program."""

    computations: dict[str, Computation]
    entry: str


_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+)\s.*\{\s*$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+)(\d*)(?:e\d+m\d+\w*)?\[([\d,]*)\]")


def parse(text: str) -> Module:
    """Computations by name, each with its instructions by name."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if not line.startswith(" "):
            head = _HEAD.match(line)
            if head is None or line.startswith("HloModule"):
                continue
            current = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif current is not None and (match := _LINE.match(line)):
            root, name, shape, opcode, rest = match.groups()
            operands = tuple(re.findall(r"%([\w.-]+)", rest.split("), ", 1)[0]))
            current[name] = Instruction(name, shape, opcode, operands, rest, root is not None)
    return Module(computations, entry)


def array_bytes(shape: str) -> int:
    """Bytes of an array or of a tuple of arrays; scalars are counters, flags and losses: not counted."""
    total = 0
    for letters, bits, sizes in _ARRAY.findall(shape):
        if sizes:
            total += math.prod(map(int, sizes.split(","))) * (8 if letters == "pred" else int(bits)) // 8
    return total


def largest_operand(module: Module) -> int:
    """Bytes of the largest array that goes into a matrix product."""
    sizes = [
        array_bytes(computation[name].shape)
        for computation in module.computations.values() for instruction in computation.values()
        if instruction.opcode == "dot" or (instruction.opcode == "custom-call" and "matmul" in instruction.rest)
        for name in instruction.operands if name in computation
    ]  # fmt: skip
    return max(sizes, default=0)
