"""Profiles of chosen steps, in the form that XProf reads."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator

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
) -> Iterator[Callable[[int, Callable[[], None]], None]]:  # fmt: skip
    """Gives a function to be called, after each step and before the first one, with the number of steps done and a
    function that waits for those under way. A profile that was begun is written, however the run ends; where it cannot
    be, that is said, and the run goes on.
    """
    running, folder = False, str(profile_folder(workdir))

    def write() -> None:
        try:
            jax.profiler.stop_trace()
        except (OSError, RuntimeError) as error:
            say(f"the profile could not be written into {folder} ({str(error).splitlines()[0]})")
            # JAX goes on holding what it could not write, and would refuse the profile of the next phase.
            profiler._profile_state.reset()

    def profile(step: int, wait: Callable[[], None]) -> None:
        nonlocal running
        due = step + 1 in steps
        if due != running:
            wait()
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
