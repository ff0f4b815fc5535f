"""Contenders in processes of their own, which work one at a time.

In one process they would share an allocator, a pool of threads and each other's caches; here an idle contender waits
for a word on its pipe, and the processor time that it uses meanwhile is measured.
"""

import contextlib
import importlib
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any, NamedTuple


_PATIENCE = 10.0  # seconds for a process to end by itself


class Contender(NamedTuple):
    """A process that waits for its turn."""

    process: Any
    connection: Connection


class Failure(Exception):
    """A contender's error, in its own words."""


def start(
    contender: str, arguments: tuple[Any, ...], cores: int | None, environment: dict[str, str],
    checkout: str | None = None,
) -> Contender:  # fmt: skip
    """Starts `module:class` with these arguments in a process bound to the first `cores` of the processor. All modules
    of the project are those of the folder `checkout`, where it is given.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, contender, arguments, cores, environment), daemon=True)
    with _modules_from(checkout):
        process.start()
    theirs.close()  # so that the end of the process is the end of the pipe
    found = Contender(process, ours)
    _answer(found)
    return found


@contextlib.contextmanager
def _modules_from(checkout: str | None) -> Iterator[None]:
    """A spawned process looks for modules where this one does at that moment."""
    before = list(sys.path)
    if checkout is not None:
        sys.path.insert(0, checkout)
    try:
        yield
    finally:
        sys.path[:] = before


def ask(contender: Contender, method: str, *arguments: Any) -> Any:
    """What the method answers. Raises Failure with its error."""
    with contextlib.suppress(BrokenPipeError):  # its end is told by what comes back
        contender.connection.send((method, arguments))
    return _answer(contender)


def stop(contender: Contender) -> None:
    """Ends the process and frees what it held: by closing its pipe, and by force where it is still at work."""
    contender.connection.close()
    contender.process.join(_PATIENCE)
    if contender.process.is_alive():
        contender.process.terminate()
        contender.process.join()


def _answer(contender: Contender) -> Any:
    try:
        succeeded, answer = contender.connection.recv()
    except (EOFError, ConnectionResetError):
        contender.process.join()
        raise Failure(f"the process ended with status {contender.process.exitcode}") from None
    if not succeeded:
        raise Failure(answer)
    return answer


def _serve(
    connection: Connection, contender: str, arguments: tuple[Any, ...], cores: int | None, environment: dict[str, str]
) -> None:
    """Builds the contender, then answers until the pipe closes. `idle` is the share of a core used while waiting."""
    os.environ.update(environment)
    if cores is not None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    used = waited = 0.0
    try:
        module, _, name = contender.partition(":")
        built = getattr(importlib.import_module(module), name)(*arguments)
        answer: Any = None
        while True:
            connection.send((True, answer))
            used, waited = used - time.process_time(), waited - time.perf_counter()
            method, given = connection.recv()
            used, waited = used + time.process_time(), waited + time.perf_counter()
            answer = used / waited if method == "idle" else getattr(built, method)(*given)
    except (EOFError, BrokenPipeError):  # the program is gone
        return
    except Exception as error:
        connection.send((False, f"{type(error).__name__}: {str(error).strip()}"))
