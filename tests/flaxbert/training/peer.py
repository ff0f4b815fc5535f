"""One process of several, each with two virtual devices: steps with a sum over all of them, two in flight, until a
signal anywhere ends them. `python peer.py COORDINATOR PROCESSES PROCESS HEARTBEAT_SECONDS START_SECONDS STEPS FAILS_AT`
says `ready` after the tenth step, and errors as the command line does; -1: without end, and without failing.
"""

import os
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

from flaxbert.commands import Peers  # noqa: E402
from flaxbert.training.distributed import joined  # noqa: E402
from flaxbert.training.signals import stop_requested  # noqa: E402

COORDINATOR = sys.argv[1]  # or `environment`, where that names the others
PROCESSES, PROCESS, HEARTBEAT_SECONDS, START_SECONDS, STEPS, FAILS_AT = map(int, sys.argv[2:])


def main():
    named = (None, None, None) if COORDINATOR == "environment" else (COORDINATOR, PROCESSES, PROCESS)
    with stop_requested() as stop, joined(Peers(*named, HEARTBEAT_SECONDS, START_SECONDS)):
        return train(stop)


def train(stop):
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    rows, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    state = jax.jit(lambda: jnp.zeros(100), out_shardings=everywhere)()

    @jax.jit
    def step(state, batch, stops):
        return state + batch.sum(0), stops.sum()

    in_flight, number = [], 0
    while number != STEPS:
        if number == FAILS_AT:
            raise ValueError("the corpus is not there")
        batch = jax.make_array_from_process_local_data(rows, np.ones((2, 100), np.float32))
        stops = jax.make_array_from_process_local_data(rows, np.full(2, stop(), np.int32))
        state, stopped = step(state, batch, stops)
        in_flight.append(stopped)
        number += 1
        if len(in_flight) > 2 and int(in_flight.pop(0)):
            return 75
        if number == 10:
            print("ready", flush=True)
    assert float(state[0]) == number * jax.device_count() == number * 2 * PROCESSES
    return 0


try:
    sys.exit(main())
except (ValueError, OSError) as error:
    print(f"flaxbert: {error}", file=sys.stderr)
    sys.exit(1)
