"""Profiles of chosen steps, in the form that XProf reads."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax._src import profiler


def profile_folder(workdir: str) -> pathlib.Path:
    """Where the profiles of a run are."""
    return pathlib.Path(workdir) / "tensorboard"


def is_missed(steps: range, workdir: str, step: int) -> bool:
    """Whether steps to profile are all past, and no launch before has profiled any."""
    return 0 < steps.stop <= step + 1 and not any(profile_folder(workdir).glob("plugins/profile/*"))


@contextlib.contextmanager
def open_profile(
    steps: range, workdir: str, say: Callable[[str], None]
) -> Iterator[Callable[[int, Callable[[], None], Callable[[], Any]], None]]:  # fmt: skip
    """Gives a function to be called, after each step and before the first one, with the number of steps done, a
    function that waits for those under way, and one that makes a context in which no training is timed. A profile that
    was begun is written, however the run ends; where it cannot be, that is said, and the run goes on.
    """
    running, folder = False, str(profile_folder(workdir))

    def write() -> None:
        try:
            jax.profiler.stop_trace()
        except (OSError, RuntimeError) as error:
            say(f"the profile could not be written into {folder} ({str(error).splitlines()[0]})")
            # JAX goes on holding what it could not write, and would refuse the profile of the next phase.
            profiler._profile_state.reset()

    def profile(step: int, wait: Callable[[], None], paused: Callable[[], Any]) -> None:
        nonlocal running
        due = step + 1 in steps
        if due != running:
            wait()
            with paused():  # to write takes seconds
                if due:
                    jax.profiler.start_trace(folder)
                else:
                    write()
            running = due

    try:
        yield profile
    finally:
        if running:
            write()
