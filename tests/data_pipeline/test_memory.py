"""Memory that is freed stays with the process; that of steps whichever thread takes it, and in huge pages."""

import json
import os
import pathlib
import resource
import subprocess
import sys

import pytest

from data_pipeline import memory

HUGE_PAGES = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
TOUCHED = (224 << 20) // resource.getpagesize()

BEGIN = """
import ctypes, json, mmap, os, pathlib, resource, sys, threading
from data_pipeline import memory
libc = ctypes.CDLL(None)
"""
FAULTS = BEGIN + """
libc.prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: a fault for each page, whatever the system has by default
if sys.argv[1] == "limited":
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 + (1 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
if sys.argv[1] == "bounded":
    memory.limit_files = lambda: [pathlib.Path(sys.argv[2])]
if sys.argv[1] in ("batches", "both") and not memory.keep_memory_of_batches():
    sys.exit(77)
if sys.argv[1] in ("steps", "both", "limited", "bounded") and not memory.keep_memory_of_steps():
    sys.exit(77)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
found = []
def faults_of_once():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    sizes = [16 << 20] * 4 + [160 << 20] * (sys.argv[1] != "batches")
    blocks = [libc.malloc(size) for size in sizes]
    for block, size in zip(blocks, sizes):
        libc.memset(block, 1, size)
    for block in blocks:
        libc.free(block)
    found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
for _ in range(3):
    faults_of_once()
for _ in range(3):
    thread = threading.Thread(target=faults_of_once)
    thread.start()
    thread.join()
elsewhere = mmap.mmap(-1, 900 << 20)  # a limit on address space leaves room for what is no heap
print(json.dumps(found))
"""
FLAGS = BEGIN + """
if not memory.keep_memory_of_steps():
    sys.exit(77)
parts = open("/proc/self/smaps").read().split("VmFlags:")
flags = [after.split("\\n")[0] for before, after in zip(parts, parts[1:]) if "[heap]" in before]
print(json.dumps(flags))
"""


def answer(program, *arguments, **environment):
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=120,
        env=bare | environment,
    )  # fmt: skip
    if done.returncode == 77 and not environment:
        pytest.skip("another C library than glibc, or another allocator")
    return done


def page_faults(mode, *arguments):
    """Of six rounds that fill 224 MB each ("batches": 64), the last three in threads of their own."""
    done = answer(FAULTS, mode, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_memory_freed_by_one_batch_is_that_of_the_next():
    """Otherwise each round clears it anew, page by page."""
    assert max(page_faults("batches")[1:3]) < TOUCHED / 100
    assert min(page_faults("given back")) > TOUCHED / 2


@pytest.mark.parametrize("mode", ["steps", "both"])
def test_memory_freed_by_one_step_is_that_of_the_next_in_any_thread(mode):
    if not memory._has_space_to_spare():
        pytest.skip("no memory is set aside here")
    assert max(page_faults(mode)[1:]) < TOUCHED / 100


def test_a_block_that_the_heap_has_no_room_for_goes_back_to_the_system(tmp_path):
    """A container of 800 MB sets 100 aside: 64 of them serve again and again, the block of 160 is mapped anew."""
    (tmp_path / "limit").write_text(str(800 << 20))
    if not memory._has_space_to_spare():
        pytest.skip("no memory is set aside here")
    large = (160 << 20) // resource.getpagesize()
    found = page_faults("bounded", str(tmp_path / "limit"))[1:]
    assert all(0.99 * large < faults < 1.01 * large + TOUCHED / 100 for faults in found)


def test_a_limit_on_address_space_leaves_it_to_others():
    """There memory is kept as that of batches: the main thread's serves again, what another takes is mapped anew."""
    faults = page_faults("limited")
    assert max(faults[1:3]) < TOUCHED / 100 and min(faults[3:]) > TOUCHED / 2


def test_where_glibc_is_not_nothing_is_asked_of_the_system(monkeypatch):
    """Windows has no module `resource`."""
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(memory, "_libc", lambda: None)
    assert memory.keep_memory_of_steps.__wrapped__() is False


@pytest.mark.parametrize("content, limit", [("max\n", None), (f"{2**63 - 4096}\n", None), ("1048576\n", 2**20)])
def test_a_container_may_take_less_than_its_machine_has(tmp_path, content, limit):
    """As cgroups 2 and 1 say it; `max` and an absurd number say that there is no limit."""
    whole = memory.machine_memory([tmp_path / "none"])
    assert whole[1] == "the machine's memory"
    (tmp_path / "limit").write_text(content)
    expected = whole if limit is None else (limit, "the container's memory")
    assert memory.machine_memory([tmp_path / "limit"]) == expected


@pytest.mark.parametrize("groups, path", [
    ("0::/\n", "memory.max"),
    ("0::/system.slice/job.scope\n", "system.slice/job.scope/memory.max"),
    ("0::/system.slice/job.scope\n", "system.slice/memory.max"),
    ("9:cpu,cpuacct:/\n4:memory:/slurm/job_1\n0::/\n", "memory/slurm/job_1/memory.limit_in_bytes"),
    ("4:memory:/slurm/job_1\n", "memory/memory.limit_in_bytes"),
])  # fmt: skip
def test_the_limit_of_each_group_around_a_process_counts(tmp_path, groups, path):
    (tmp_path / "own").write_text(groups)
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text("1048576\n")
    assert memory.machine_memory(memory.limit_files(tmp_path / "own", tmp_path)) == (2**20, "the container's memory")


def test_a_system_without_groups_has_no_limit(tmp_path):
    (tmp_path / "other").write_text("no groups\n")
    for own in ("none", "other"):
        assert list(memory.limit_files(tmp_path / own, tmp_path)) == []


def test_the_heap_asks_for_huge_pages():
    if not HUGE_PAGES.exists() or not memory.HUGE_PAGE_FILE.exists():
        pytest.skip("this system has no huge pages")
    if not memory._has_space_to_spare() or int(memory.HUGE_PAGE_FILE.read_text()) > memory.MOST_OF_A_HUGE_PAGE:
        pytest.skip("no huge pages are asked for here")
    done = answer(FLAGS)
    assert done.returncode == 0, done.stderr
    assert any("hg" in flags.split() for flags in json.loads(done.stdout))


@pytest.mark.parametrize("setting", [{"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}])
def test_what_the_environment_says_of_the_heap_stands(setting):
    assert answer(FAULTS, "steps", **setting).returncode == 77
