"""Addresses for processes that a test starts."""

import contextlib
import random
import socket


def free_address():
    """An address on this machine where nothing listens. Not of the ports that the system itself gives away: one of
    those may go to another test before the process that is to have it has started.
    """
    for port in random.sample(range(20_000, 32_000), 100):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return f"127.0.0.1:{port}"
    raise RuntimeError("no port is free")
