"""Disks that are full, as far as a process can tell."""

import contextlib
import resource


@contextlib.contextmanager
def files_may_grow_to(size):
    """A limit on the size of files stands for a full disk: the system refuses what goes beyond it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
