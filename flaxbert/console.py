"""Standard error that nobody need read: what a command does does not depend on who listens to what it says."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any


class _Unheard:
    """In the place of `sys.stderr`. Where its reader has gone, or its disk is full, the rest is dropped."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError:
            self._give_up()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        with contextlib.suppress(OSError):  # what is left in the buffer would fail once more at the exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def errors_need_no_reader() -> Iterator[None]:
    """For as long as it lasts nothing that is written to standard error fails."""
    with contextlib.ExitStack() as closing:
        # Closed before the start (`2>&-`), it is None.
        stderr: Any = sys.stderr or closing.enter_context(open(os.devnull, "w", encoding="utf-8"))
        with contextlib.redirect_stderr(_Unheard(stderr)):  # type: ignore[type-var]
            yield
