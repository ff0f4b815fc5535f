"""Memory that is freed stays with the process, whichever thread takes it, and lies in huge pages."""

import json
import pathlib
import resource
import subprocess
import sys

import pytest

PAGES = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
TOUCHED = (224 << 20) // resource.getpagesize()

PROGRAM = """
import ctypes, json, mmap, os, resource, sys, threading
from data_pipeline.memory import keep_freed_memory
if "limited" in sys.argv:
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 + (1 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
if "kept" in sys.argv and not keep_freed_memory():
    sys.exit(77)
malloc, free, touch = ctypes.CDLL(None).malloc, ctypes.CDLL(None).free, ctypes.CDLL(None).memset
malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
free.argtypes, touch.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def faults_of_once():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    sizes = [16 << 20] * 4 + [160 << 20]
    blocks = [malloc(size) for size in sizes]
    for block, size in zip(blocks, sizes):
        touch(block, 1, size)
    for block in blocks:
        free(block)
    found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
found = []
for _ in range(3):
    faults_of_once()
for _ in range(3):
    thread = threading.Thread(target=faults_of_once)
    thread.start()
    thread.join()
elsewhere = mmap.mmap(-1, 900 << 20)  # a limit on address space leaves room for what is no heap
print(json.dumps(found))
"""


def page_faults(*modes):
    """Of six rounds that each fill 224 MB, the last three in threads of their own."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, *modes], capture_output=True, text=True, timeout=120)
    if done.returncode == 77:
        pytest.skip("this C library has no mallopt")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("modes", [["kept"], ["kept", "limited"]])
def test_memory_freed_by_one_step_is_that_of_the_next(modes):
    """Otherwise each round clears it anew, page by page."""
    assert max(page_faults(*modes)[1:]) < TOUCHED / 100
    assert min(page_faults("given back")) > TOUCHED / 2


def test_what_is_kept_lies_in_huge_pages():
    if not PAGES.exists() or "[never]" in PAGES.read_text():
        pytest.skip("this system has no huge pages")
    assert page_faults("kept")[0] < TOUCHED / 8
