"""Signals that ask a run to stop. Imports nothing slow: a launch listens before it does anything else."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """True after SIGTERM or SIGINT. A second signal ends the process at once, as if nobody had listened."""
    received: list[int] = []
    watched = (signal.SIGTERM, signal.SIGINT)

    def listen(number: int, frame: Any) -> None:
        received.append(number)
        for each in watched:  # by the system itself: no Python need run, which waits for a compilation or a dead disk
            signal.signal(each, signal.SIG_DFL)

    before = {number: signal.signal(number, listen) for number in watched}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
