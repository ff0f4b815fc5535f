"""The processes of one run: how they find each other, and that none waits for one which has gone."""

import contextlib
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flaxbert.commands import Peers

GRACE_SECONDS = 3  # for what is left to say and to close in a process that has failed

# What XLA's collectives (Gloo on CPU, NCCL on GPU) and JAX's coordination service say when a process has gone.
LOST = re.compile(r"Gloo .*failed|remote process exited|CoordinationService", re.DOTALL)


@contextlib.contextmanager
def joined(peers: Peers) -> Iterator[None]:
    """Makes this process one of its run's, where the flags or the environment say that there are several.

    Enter it before JAX has looked for devices. Raises ValueError for what the user can mend and ConnectionError where
    the others cannot be joined, or are lost later.
    """
    import jax  # on a TPU this sets what `found` looks for

    arguments = found(peers, os.environ)
    if arguments is None:
        yield
        return
    # JAX's own listener would take SIGTERM away from a handler that listens already.
    jax.config.update("jax_enable_preemption_service", False)
    say_joined = _speak_at_an_abort(*_sentences(arguments, peers))
    with ends_on_error():
        _join(arguments, peers)
        say_joined()
        yield


def wait_for_all(name: str) -> None:
    """Returns when every process of the run has come to the place of this name."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def ends_on_error() -> Iterator[None]:
    """An error inside ends this process within `GRACE_SECONDS`, where it is one of several.

    Without it the process would wait for the others, in a barrier of Orbax or in JAX's at exit, while they wait for it
    in a collective, with every heartbeat in order. That a process was lost is raised as ConnectionError. May be nested.
    """
    import jax

    try:
        yield
    except BaseException as error:
        if not jax.distributed.is_initialized():
            raise
        timer = threading.Timer(GRACE_SECONDS, _end)
        timer.daemon = True
        timer.start()
        lost = peer_failure(error)
        if lost is None or isinstance(error, ConnectionError):
            raise
        raise ConnectionError(
            f"another process of this run has gone ({lost}): the output of the others says which, and why; "
            "the same command in all of them goes on from the last checkpoint"
        ) from error


def peer_failure(error: BaseException | None) -> str | None:
    """What JAX says of a lost process, where that is behind an error: the exception of a collective of which the other
    end has gone, raised where its result is waited for or passed on, or of a barrier that failed. None: another error.
    """
    import jax

    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError) and LOST.search(str(error)):
            return re.sub(r"^[A-Z_]+: |\[[\w/]+\.cc:\d+\] ", "", str(error).splitlines()[0])
        error = error.__cause__ or error.__context__
    return None


def found(peers: Peers, environ: Mapping[str, str]) -> dict[str, Any] | None:
    """The arguments of `jax.distributed.initialize` that the flags or the environment lead to; None: one process.

    Where the environment does not say that there are several, nothing waits: a job of one task, its batch script and
    its interactive shell are one process each.
    """
    if peers.coordinator is not None:
        if peers.processes == 1:
            return None
        return {
            "coordinator_address": peers.coordinator, "num_processes": peers.processes, "process_id": peers.process,
            "cluster_detection_method": "deactivate",  # else JAX may still hide devices, or ask Kubernetes' API
        }  # fmt: skip
    # Open MPI first: under SLURM the step is that of its daemons.
    for find in (_open_mpi, _slurm, _tpu, _kubernetes):
        arguments = find(environ)
        if arguments is not None:
            return arguments
    return None


def _open_mpi(environ: Mapping[str, str]) -> dict[str, Any] | None:
    if int(environ.get("OMPI_COMM_WORLD_SIZE", 1)) == 1:
        return None
    if "OMPI_MCA_orte_hnp_uri" not in environ:
        raise ValueError(
            "this version of Open MPI does not say where process 0 is: give --coordinator HOST:PORT, "
            '--processes "$OMPI_COMM_WORLD_SIZE" and --process "$OMPI_COMM_WORLD_RANK"'
        )
    return {"cluster_detection_method": "ompi"} | _devices(environ, environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1")


def _slurm(environ: Mapping[str, str]) -> dict[str, Any] | None:
    """SLURM_NTASKS, which JAX reads, is the job's: the batch script has it too, and `salloc`'s shell. The step's own
    number is set by `srun` alone.
    """
    tasks = environ.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks == "1":
        return None
    alone_on_its_node = environ.get("SLURM_STEP_NUM_NODES") == tasks
    return {"cluster_detection_method": "slurm", "num_processes": int(tasks)} | _devices(environ, alone_on_its_node)


def _devices(environ: Mapping[str, str], alone_on_its_node: bool) -> dict[str, Any]:
    """JAX gives each process the one GPU of its number on the node. Wrong where it has the node to itself, and where
    the launcher has bound it to a GPU already, which is then the only one it sees. An empty list hides nothing.
    """
    bound = environ.get("CUDA_VISIBLE_DEVICES", "").strip(",")
    takes_all = alone_on_its_node or (bound != "" and "," not in bound)
    return {"local_device_ids": []} if takes_all and "JAX_LOCAL_DEVICE_IDS" not in environ else {}


def _tpu(environ: Mapping[str, str]) -> dict[str, Any] | None:
    """JAX has set TPU_ML_PLATFORM where it found TPU chips. GKE tells each host of the others in its environment; a
    Cloud TPU VM is told by its metadata server, which JAX asks, and a host without others joins itself at once.
    """
    platforms = environ.get("JAX_PLATFORMS", "tpu").split(",")
    if environ.get("TPU_ML_PLATFORM") != "JAX" or "tpu" not in platforms:
        return None
    hosts = environ.get("TPU_PROCESS_ADDRESSES", environ.get("TPU_WORKER_HOSTNAMES"))
    if hosts is None:
        return None if "TPU_SKIP_MDS_QUERY" in environ else {}
    return {} if "," in hosts or int(environ.get("MEGASCALE_NUM_SLICES", 1)) > 1 else None


def _kubernetes(environ: Mapping[str, str]) -> dict[str, Any] | None:
    """Kubernetes gives each pod of an indexed job its number, and nothing more: where the first one is and how many
    there are, the manifest says. JAX would ask the API server, for which a pod mostly has no permission.
    """
    index = environ.get("JOB_COMPLETION_INDEX")
    if index is None or "TPU_WORKER_HOSTNAMES" in environ:  # GKE tells each TPU host of the others, if there are any
        return None
    coordinator, count = environ.get("JAX_COORDINATOR_ADDRESS"), environ.get("JAX_NUM_PROCESSES")
    if coordinator and count:
        return found(Peers(coordinator, int(count), int(index)), {})
    if index == "0":
        return None  # of a job of one pod; of a larger one the others are refused, and end the job
    raise ValueError(
        f"this is pod {index} of an indexed job, and nothing says where pod 0 is and how many there are: set "
        "JAX_COORDINATOR_ADDRESS to HOST:PORT and JAX_NUM_PROCESSES, or give --coordinator HOST:PORT, --processes and "
        "--process; --coordinator localhost:8476 --processes 1 --process 0 where each pod makes a run of its own"
    )


def _join(arguments: dict[str, Any], peers: Peers) -> None:
    import jax

    if arguments.get("process_id") == 0:
        _check_port_is_free(arguments["coordinator_address"])
    arguments = arguments | {
        "initialization_timeout": peers.start_seconds, "heartbeat_timeout_seconds": peers.heartbeat_seconds,
    }  # fmt: skip
    try:
        with _ended_by_signals():
            jax.distributed.initialize(**arguments)
    except RuntimeError as error:
        raise ConnectionError(f"this process could not join the others of its run: {error}") from error


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """A signal ends the process at once: no handler in Python would run before all have come. Nothing is lost yet."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_port_is_free(address: str) -> None:
    """JAX would crash on it without a word."""
    port = int(address.rpartition(":")[2])
    both = socket.has_dualstack_ipv6()
    try:
        family = socket.AF_INET6 if both else socket.AF_INET
        socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        reason = os.strerror(error.errno or 0)  # its own sentence names the address too
        raise ValueError(f"port {port} of {address} cannot be opened here: {reason}") from None


def _end() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(1)


def _sentences(arguments: dict[str, Any], peers: Peers) -> tuple[str, str]:
    """What is to be said of an abort before and after the processes have joined."""
    first, who = arguments.get("coordinator_address", "the first one"), "this process"
    if "process_id" in arguments:
        who = f"process {arguments['process_id']} of {arguments['num_processes']}"
    return (
        f"flaxbert: {who} could not join the others within {peers.start_seconds} seconds (--start-seconds): each "
        f"must run, reach {first}, and have an index of its own and the same number of processes as the others",
        f"flaxbert: {who} was ended by JAX, most likely because another has gone or was silent for "
        f"{peers.heartbeat_seconds} seconds (--heartbeat-seconds): the output of the others says which, and why; the "
        "same command in all of them goes on from the last checkpoint",
    )


# Reads the numbers of the signals that its parent receives, and `J` once it has joined the others. It ends with its
# parent, and not at a signal that is meant for that.
SPEAKER = """
import os, signal, sys
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
joined = False
while heard := os.read(0, 1):
    joined = joined or heard == b"J"
    if heard[0] == signal.SIGABRT:
        print(sys.argv[1 + joined], file=sys.stderr, flush=True)
        break
"""


def _speak_at_an_abort(joining: str, after: str) -> Callable[[], None]:
    """Has a sentence said when JAX ends this process, which it does from C++, by abort() and a page of its log, when
    others are missing, silent, or the first one has gone. Returns what to call once the processes have joined.

    No Python runs in a process that aborts, but the C half of its signal handling writes the signal's number into a
    pipe, and another process speaks.
    """
    heard, told = os.pipe()
    os.set_blocking(told, False)
    command = [sys.executable, "-I", "-S", "-c", SPEAKER, joining, after]
    os.posix_spawn(command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, heard, 0)], setpgroup=0)
    os.close(heard)
    signal.signal(signal.SIGABRT, lambda number, frame: None)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)

    def say_joined() -> None:
        os.write(told, b"J")

    return say_joined
