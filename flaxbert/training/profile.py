"""Profiles of chosen steps, in the form that XProf reads."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator

import jax


@contextlib.contextmanager
def open_profile(steps: range, workdir: str) -> Iterator[Callable[[int, Callable[[], None]], None]]:
    """Gives a function to be called, after each step and before the first one, with the number of steps done and a
    function that waits for those under way. A profile that was begun is written, however the run ends.
    """
    running = False

    def profile(step: int, wait: Callable[[], None]) -> None:
        nonlocal running
        due = step + 1 in steps
        if due != running:
            wait()
            if due:
                jax.profiler.start_trace(str(pathlib.Path(workdir) / "tensorboard"))
            else:
                jax.profiler.stop_trace()
            running = due

    try:
        yield profile
    finally:
        if running:
            jax.profiler.stop_trace()
