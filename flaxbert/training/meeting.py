"""Where the background threads of a save by several processes wait for each other, left by all once one has failed."""

import contextlib
from typing import Any

import jax
from jax._src import distributed
from orbax.checkpoint._src.multihost import multihost

# In the names of Orbax's two barriers of a save: all have written; process 0 has committed.
PLACES = ("async_write_complete", "async_commit_complete")
SECONDS = 1200  # what Orbax gives a save, and the barriers of it


class Meeting:
    """The barriers of one save after the other. Without it Orbax has the others of a process that has failed wait for
    it for twenty minutes: here it tells them, and comes to the barriers all the same.
    """

    def __init__(self) -> None:
        self._number, self._left = 0, list[str]()

    def begin(self) -> None:
        """Another save begins; all processes must say so."""
        self._number, self._left = self._number + 1, list(PLACES)

    def wait(self, *, key: str, timeout_ms: int) -> None:
        """Orbax's `barrier_sync_fn`. Raises RuntimeError with the reason where a process has failed."""
        place = next((place for place in self._left if place in key), None)
        if place is None:
            multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)
            return
        self._come(place, timeout_ms)
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # nobody has failed
            reason = _client().key_value_try_get(self._name("failed"))
            raise RuntimeError(reason)

    def fail(self, reason: str) -> None:
        """This process has failed: the first one to say so is heard. Returns once the others have come too."""
        if jax.process_count() == 1:
            return
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # said already, or the processes part
            told = f"process {jax.process_index()}: {reason}"
            _client().key_value_set(self._name("failed"), told)
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            for place in list(self._left):
                self._come(place, SECONDS * 1000)

    def _come(self, place: str, timeout_ms: int) -> None:
        self._left.remove(place)
        _client().wait_at_barrier(self._name(place), timeout_ms)

    def _name(self, what: str) -> str:
        return f"flaxbert/save/{self._number}/{what}"


def _client() -> Any:
    """Of the coordination service that JAX's processes share."""
    return distributed.global_state.client


MEETING = Meeting()  # of all managers that a process opens: the numbers of saves must not begin anew
