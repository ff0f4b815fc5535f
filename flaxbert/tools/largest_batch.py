"""The largest batch that fits, found by trying: each try is a compilation, so they are few."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from jax.sharding import Mesh

from flaxbert.config import Experiment
from flaxbert.tools.compiled_step import CompiledStep, DoesNotFitError, compile_step, state_bytes

CLOSE_ENOUGH = 32  # the answer is at most one part in so many below the largest batch: a compilation takes a minute
FARTHEST = 64  # times what fits: how far the line is trusted

Waiting = Callable[[str], contextlib.AbstractContextManager[Any]]


class Attempt(NamedTuple):
    """One batch size that was tried."""

    rows: int
    bytes: int | None
    """What it needs on a device, where that is known of one that does not fit."""
    fits: bool


def try_step(experiment: Experiment, mesh: Mesh, capacity: int | None) -> tuple[CompiledStep | None, Attempt]:
    """Compiles the step for devices of so many bytes each, if that is known. A step that is refused is None."""
    rows = experiment.train.batch_size
    try:
        step = compile_step(experiment, mesh)
    except DoesNotFitError as refusal:
        return None, Attempt(rows, refusal.needed, False)
    return step, Attempt(rows, step.bytes, capacity is None or step.bytes <= capacity)


def rows_multiple(experiment: Experiment, mesh: Mesh) -> int:
    """What a global batch must be a multiple of."""
    return mesh.shape["data"] * mesh.shape["fsdp"] * experiment.train.microbatches


def find_largest_batch(
    experiment: Experiment, mesh: Mesh, capacity: int, first: Attempt, most: int,
    waiting: Waiting = contextlib.nullcontext,
) -> list[Attempt]:  # fmt: skip
    """Compiles the step for at most `most` other batches; returns all that was tried, `first` among them."""

    def attempt(rows: int) -> Attempt:
        train = dataclasses.replace(experiment.train, batch_size=rows)
        with waiting(f"compiling the step for {rows:,} rows"):
            return try_step(dataclasses.replace(experiment, train=train), mesh, capacity)[1]

    fixed = state_bytes(experiment, mesh)
    return largest_batch(attempt, first, rows_multiple(experiment, mesh), capacity, fixed, most)


def largest_batch(
    attempt: Callable[[int], Attempt], first: Attempt, multiple: int, capacity: int, fixed: int, most: int
) -> list[Attempt]:
    """Tries at most `most` further batch sizes, multiples of `multiple`; returns all attempts, the first among them.

    `fixed` bytes do not depend on the batch; the rest is taken to grow with it, which says where to look next.
    """
    tried, line = [first], functools.partial(_by_line, multiple=multiple, capacity=capacity, fixed=fixed)
    for _ in range(most):
        fits, refused = bounds(tried)
        step = max(multiple, fits // CLOSE_ENOUGH // multiple * multiple)
        if refused is not None and refused - fits <= step:
            break
        tried.append(attempt(_next(tried, step, line, multiple)))
    return tried


def bounds(tried: list[Attempt]) -> tuple[int, int | None]:
    """The largest batch that fits, or 0, and the smallest that does not."""
    fits = max((attempt.rows for attempt in tried if attempt.fits), default=0)
    return fits, min((attempt.rows for attempt in tried if not attempt.fits), default=None)


def _by_line(attempt: Attempt, multiple: int, capacity: int, fixed: int) -> int | None:
    """The batch that would fill the memory if what is not fixed grew with the rows."""
    if attempt.bytes is None or attempt.bytes <= fixed or capacity <= fixed:
        return None
    return int((capacity - fixed) * attempt.rows / (attempt.bytes - fixed)) // multiple * multiple


def _next(tried: list[Attempt], step: int, line: Callable[[Attempt], int | None], multiple: int) -> int:
    """What the line says, or a step more where that is there already, in leaps where the line is seen to deceive; the
    middle where nothing else is left.
    """
    fits, refused = bounds(tried)
    guess = line(tried[-1])
    if tried[-1].fits:
        rows = max(min(guess or 2 * fits, FARTHEST * fits), fits + _leap(tried, step, guess, line))
    else:
        rows = guess if guess is not None and len(tried) % 2 else 0
    if rows <= fits or (refused is not None and rows >= refused):
        assert refused is not None, "what lies beyond all that was tried is larger"
        rows = max(fits + multiple, (fits + refused) // 2 // multiple * multiple)
    return rows


def _leap(tried: list[Attempt], step: int, guess: int | None, line: Callable[[Attempt], int | None]) -> int:
    """How far to go beyond the last attempt, which fits: twice as far as before where the line had said it would not,
    or said that it was the last and now says there are more.
    """
    said = line(tried[-2]) if len(tried) > 1 and tried[-2].fits else None
    last = tried[-1].rows
    deceived = said is not None and (last > said or (last == said and (guess or 0) > last))
    return 2 * (last - tried[-2].rows) if deceived else step
