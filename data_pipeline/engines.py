"""Who runs the work of prepare: a pool of local processes, or Apache Beam. What is written does not depend on it."""

import concurrent.futures
import functools
import multiprocessing
import os
import signal
import threading
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Callable, NamedTuple, Sequence

from data_pipeline import beam_engine
from data_pipeline.shards import ShardJob, Work
from data_pipeline.unfinished import Unfinished

_POLL_SECONDS = 0.2


class Engine(NamedTuple):
    """`run_shards(work, jobs, show)` does the work for each job and returns the records in order; `show` is told the
    bytes read so far. `run_alone(function, *arguments)` returns what the function does."""

    run_shards: Callable[[Work, Sequence[ShardJob], Callable[[int], None]], list[dict[str, Any]]]
    run_alone: Callable[..., Any]


# In a worker: the counter of bytes that all workers share.
_worker: dict[str, Any] = {}


def default_workers() -> int:
    """One for each processor that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose(engine: str, workers: int | None, beam_flags: Sequence[str]) -> Engine:
    """The engine of a name. Raises ValueError for settings that it does not take."""
    if engine == "local":
        if beam_flags:
            raise ValueError(f"{beam_flags[0]} after -- is for a Beam runner: add --engine beam")
        if workers is not None and workers < 1:
            raise ValueError(f"workers {workers} is not positive")
        workers = workers or default_workers()
        return Engine(functools.partial(run_shards, workers=workers), run_apart if workers > 1 else run_here)
    if engine != "beam":
        raise ValueError(f"engine {engine!r} is not one of 'local', 'beam'")
    if workers is not None:
        raise ValueError(f"workers {workers} is for the local engine: Beam's runners have flags of their own, after --")
    beam_engine.check(beam_flags)
    return Engine(functools.partial(beam_engine.run_shards, flags=tuple(beam_flags)), run_apart)


def run_here(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls the function: one worker is this process."""
    return function(*arguments)


def run_apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls the function in a process of its own: its memory is given back, and Ctrl-C ends it at once."""
    with _Pool(1, _start_worker, ()) as pool:
        return pool.collect([pool.executor.submit(function, *arguments)], lambda: None)[0]


def run_shards(
    work: Work, jobs: Sequence[ShardJob], show: Callable[[int], None], workers: int
) -> list[dict[str, Any]]:
    """Does the work for each job and returns the records in order. `show` is told the bytes read so far.

    One worker is this process itself. A ValueError of any job ends all; so does a worker that dies.
    """
    if workers == 1 or len(jobs) <= 1:
        return _run_here(work, jobs, show)
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    with _Pool(min(workers, len(jobs)), _start_shard_worker, (counter,)) as pool:
        futures = [pool.executor.submit(work, job, _report) for job in jobs]
        return pool.collect(futures, lambda: show(counter.value))


def _run_here(work: Work, jobs: Sequence[ShardJob], show: Callable[[int], None]) -> list[dict[str, Any]]:
    read = 0

    def report(count: int) -> None:
        nonlocal read
        read += count
        show(read)

    return [work(job, report) for job in jobs]


def _start_worker() -> None:
    # The terminal sends Ctrl-C to every process; a worker ends silently and leaves the message to its parent.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # One process per core: threads inside of them would only get in each other's way.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    """A worker whose parent was killed would otherwise wait for work for ever."""
    parent.join()
    os._exit(1)


def _start_shard_worker(counter: Any) -> None:
    _start_worker()
    _worker.update(counter=counter)


def _report(count: int) -> None:
    with _worker["counter"].get_lock():
        _worker["counter"].value += count


class _Pool:
    """A ProcessPoolExecutor whose processes end at once when anything goes wrong."""

    def __init__(self, workers: int, initializer: Callable[..., None], arguments: tuple[Any, ...]):
        self.others = set(multiprocessing.active_children())
        self.executor = concurrent.futures.ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), initializer, arguments
        )

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is not None:
            for process in set(multiprocessing.active_children()) - self.others:
                process.terminate()
        self.executor.shutdown(wait=True, cancel_futures=True)

    def collect(self, futures: list["concurrent.futures.Future[Any]"], tick: Callable[[], None]) -> list[Any]:
        """The results in order, calling `tick` while waiting; the first error is raised as soon as it occurs."""
        waiting = set(futures)
        try:
            while waiting:
                done, waiting = concurrent.futures.wait(waiting, _POLL_SECONDS, concurrent.futures.FIRST_EXCEPTION)
                for future in done:
                    future.result()
                tick()
        except BrokenProcessPool:
            raise Unfinished(
                "a worker process was killed, by the system for want of memory perhaps: "
                "run the same command again, with fewer workers"
            ) from None
        return [future.result() for future in futures]
