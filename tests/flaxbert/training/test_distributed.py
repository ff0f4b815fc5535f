"""Several processes: they find each other, and whichever dies, stops, errs or never comes, all end, soon, and say why.

Real processes on this machine. Each waits `HEARTBEAT` seconds for a silent one, where a user's wait 100.
"""

import contextlib
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest
from addresses import free_address

from flaxbert.commands import Peers
from flaxbert.training.distributed import GRACE_SECONDS, found, peer_failure

PEER = pathlib.Path(__file__).with_name("peer.py")
HEARTBEAT = 5
# For what is not waiting: the news between machines and the end of a process, on a machine with other work.
SLACK = 15
# Who is quicker is chance: the collective that fails, or JAX, which ends the process.
GONE = re.compile("another process of this run has gone|most likely because another has gone")


def wait_until_open(address):
    """Returns once process 0 waits there for the others."""
    host, port = address.split(":")
    for _ in range(600):
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection((host, int(port))):
            return
        time.sleep(0.1)
    raise TimeoutError(f"nobody has opened {address}")


@pytest.fixture
def start():
    """Starts process `process` of two; what still runs at the end of the test is killed."""
    address, begun = free_address(), []

    def begin(process, *, address=address, steps=-1, fails_at=-1, start_seconds=60, environ=None):
        numbers = map(str, (2, process, HEARTBEAT, start_seconds, steps, fails_at))
        command = [sys.executable, str(PEER), address, *numbers]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        begun.append(subprocess.Popen(command, **pipes, env=os.environ | (environ or {}), cwd=PEER.parents[3]))
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


def ready(*processes):
    """Returns once each has said so; Gloo writes lines of its own before."""
    for process in processes:
        assert "ready\n" in iter(process.stdout.readline, ""), process.stderr.read()


def end(process, seconds):
    """(exit status, what it said to the user) of a process that ends by itself within so many seconds."""
    said = process.communicate(timeout=seconds + SLACK)[1]
    return process.returncode, [line for line in said.splitlines() if line.startswith("flaxbert: ")]


def test_processes_that_have_done_their_steps_end_together(start):
    both = start(0, steps=20), start(1, steps=20)
    assert [end(process, 60) for process in both] == [(0, [])] * 2


@pytest.mark.parametrize("number, told", [(signal.SIGTERM, 0), (signal.SIGINT, 1)])
def test_a_signal_to_one_process_is_heard_by_its_handler_and_ends_all(start, number, told):
    """The handler was there before the processes joined."""
    both = start(0), start(1)
    ready(*both)
    both[told].send_signal(number)
    assert [end(process, 0) for process in both] == [(75, [])] * 2


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_which_says_so(start, victim):
    both = start(0), start(1)
    ready(*both)
    both[victim].kill()
    status, said = end(both[1 - victim], HEARTBEAT)
    assert status not in (0, 75)
    assert any(GONE.search(line) for line in said)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_stops_ends_the_other_after_the_heartbeat(start, victim):
    both = start(0), start(1)
    ready(*both)
    both[victim].send_signal(signal.SIGSTOP)
    status, said = end(both[1 - victim], 3 * HEARTBEAT)
    assert status not in (0, 75)
    assert f"silent for {HEARTBEAT} seconds (--heartbeat-seconds)" in said[0]


@pytest.mark.parametrize("fails", [0, 1])
def test_a_process_that_errs_says_why_and_leaves_no_other_waiting(start, fails):
    both = [start(process, fails_at=30 if process == fails else -1) for process in (0, 1)]
    ready(*both)
    assert end(both[fails], GRACE_SECONDS) == (1, ["flaxbert: the corpus is not there"])
    status, said = end(both[1 - fails], GRACE_SECONDS + HEARTBEAT)
    assert status not in (0, 75)
    assert any(GONE.search(line) for line in said)


@pytest.mark.parametrize("comes", [0, 1])
def test_a_process_waits_for_the_others_no_longer_than_it_was_told(start, comes):
    began = time.monotonic()
    status, said = end(start(comes, start_seconds=2), 2)
    assert status != 0 and time.monotonic() - began > 2
    assert len(said) == 1
    assert said[0].startswith(f"flaxbert: process {comes} of 2 could not join the others within 2 seconds (--start-")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_process_that_waits_for_the_others_to_come(start, number):
    address = free_address()
    waiting = start(0, address=address)
    wait_until_open(address)
    waiting.send_signal(number)
    assert end(waiting, 0) == (-number, [])


def test_a_port_that_is_taken_is_named(start):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        status, said = end(start(0, address=f"127.0.0.1:{port}"), 0)
    assert status == 1
    assert said == [f"flaxbert: port {port} of 127.0.0.1:{port} cannot be opened here: Address already in use"]


SLURM = {
    "SLURM_JOB_ID": "77", "SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODELIST": "n[1-2]"
}  # fmt: skip
STEP = SLURM | {"SLURM_STEP_NUM_TASKS": "16", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "n[1-2]"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_SIZE": "4", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1"
}  # fmt: skip
TPU = {"TPU_ML_PLATFORM": "JAX"}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}
NAMED = {"JAX_COORDINATOR_ADDRESS": "run-workers-0-0.run:8476", "JAX_NUM_PROCESSES": "2"}
ALL_DEVICES = {"local_device_ids": []}
BY_SLURM = {"cluster_detection_method": "slurm", "num_processes": 16}
BY_OPEN_MPI = {"cluster_detection_method": "ompi"}


@pytest.mark.parametrize("environ", [
    {},
    SLURM,  # a batch script, or salloc's shell
    STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1"},  # salloc's shell where it is a step of one task
    {"OMPI_COMM_WORLD_SIZE": "1"},
    {"TPU_WORKER_HOSTNAMES": "a,b"},  # no TPU here
    TPU | {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
    TPU | {"TPU_SKIP_MDS_QUERY": "1"},
    TPU | {"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "cpu"},
    {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    POD | {"JOB_COMPLETION_INDEX": "0"},  # of one pod, as far as it knows
    POD | TPU | {"TPU_WORKER_HOSTNAMES": "localhost", "JOB_COMPLETION_INDEX": "1"},  # each host a run of its own
    POD | NAMED | {"JAX_NUM_PROCESSES": "1", "JOB_COMPLETION_INDEX": "0"},
])  # fmt: skip
def test_nothing_waits_for_others_where_the_environment_names_none(environ):
    assert found(Peers(), environ) is None


@pytest.mark.parametrize("environ, expected", [
    (STEP, BY_SLURM),
    (STEP | {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, BY_SLURM),
    (STEP | {"CUDA_VISIBLE_DEVICES": "0"}, BY_SLURM | ALL_DEVICES),
    (STEP | {"CUDA_VISIBLE_DEVICES": "0", "JAX_LOCAL_DEVICE_IDS": "0"}, BY_SLURM),
    (STEP | {"SLURM_STEP_NUM_NODES": "16", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, BY_SLURM | ALL_DEVICES),
    (OPEN_MPI, BY_OPEN_MPI),
    (OPEN_MPI | STEP | {"SLURM_STEP_NUM_TASKS": "2"}, BY_OPEN_MPI),
    (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, BY_OPEN_MPI | ALL_DEVICES),
    (TPU, {}),
    (TPU | {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, {}),
    (TPU | {"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, {}),
    (TPU | POD | {"TPU_WORKER_HOSTNAMES": "a,b"}, {}),
    (POD | NAMED, {
        "coordinator_address": "run-workers-0-0.run:8476", "num_processes": 2, "process_id": 1,
        "cluster_detection_method": "deactivate",
    }),
])  # fmt: skip
def test_several_processes_are_found_in_their_launchers_environment(environ, expected):
    assert found(Peers(), environ) == expected


def test_flags_go_before_the_environment():
    told = found(Peers("host:1234", 4, 3), STEP)
    assert (told["coordinator_address"], told["num_processes"], told["process_id"]) == ("host:1234", 4, 3)
    assert found(Peers("host:1234", 1, 0), STEP) is None


def test_a_launcher_that_does_not_say_enough_is_refused():
    with pytest.raises(ValueError, match="give --coordinator HOST:PORT"):
        found(Peers(), {"OMPI_COMM_WORLD_SIZE": "8"})


@pytest.mark.parametrize("told", [{}, {"JAX_NUM_PROCESSES": "2"}, {"JAX_COORDINATOR_ADDRESS": "host:1234"}], ids=str)
def test_a_pod_of_several_that_is_not_told_of_the_others_is_refused(told):
    """It would train alone, in the work directory of the others."""
    with pytest.raises(ValueError, match="pod 1 of an indexed job.* or give --coordinator .*, --processes and --proc"):
        found(Peers(), POD | told)


def test_a_pod_whose_number_cannot_be_is_refused():
    with pytest.raises(ValueError, match="--process 1 is not one of the 1 that --processes says"):
        found(Peers(), POD | NAMED | {"JAX_NUM_PROCESSES": "1"})


def test_two_pods_find_each_other_by_their_environment(start):
    address = free_address()
    pods = [POD | {
        "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JOB_COMPLETION_INDEX": str(index)
    } for index in (0, 1)]  # fmt: skip
    both = [start(index, address="environment", steps=20, environ=pod) for index, pod in enumerate(pods)]
    assert [end(process, 60) for process in both] == [(0, [])] * 2


def test_only_the_loss_of_a_process_is_taken_for_one():
    lost = jax.errors.JaxRuntimeError(
        "UNKNOWN: Gloo all-reduce failed: [external/gloo/gloo/transport/tcp/pair.cc:538] Read error [::1]:6: reset"
    )
    assert peer_failure(lost) == "Gloo all-reduce failed: Read error [::1]:6: reset"
    wrapped = RuntimeError("the save failed")
    wrapped.__cause__ = lost
    assert peer_failure(wrapped) == peer_failure(lost)
    assert peer_failure(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")) is None
    assert peer_failure(ValueError("Gloo all-reduce failed")) is None
