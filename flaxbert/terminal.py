"""Rich consoles that end nothing: rich's own ends the program where the reader of its pipe has gone."""

import contextlib
import os
from typing import Any

from rich.console import Console


class Tables(Console):
    """Standard output, for tables. Once its reader has gone it prints nothing more; paths and texts that hold brackets
    are no markup. Any other failure, as of a full disk, is raised.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, **options)

    def on_broken_pipe(self) -> None:
        self.quiet = True
        with contextlib.suppress(OSError):  # what is left in the buffer would fail once more at the exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


class Lines(Tables):
    """Standard error, for what nobody need listen to: nor need there be room for it where it goes to a file."""

    def __init__(self, **options: Any) -> None:
        super().__init__(stderr=True, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        try:
            super().print(*objects, **options)
        except OSError:
            self.on_broken_pipe()
