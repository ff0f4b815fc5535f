"""Memory that is freed stays with the process."""

import resource
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys
from data_pipeline.memory import keep_freed_memory
if sys.argv[1] == "kept" and not keep_freed_memory():
    sys.exit(77)
malloc, free, touch = ctypes.CDLL(None).malloc, ctypes.CDLL(None).free, ctypes.CDLL(None).memset
malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
free.argtypes, touch.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def once():
    blocks = [malloc(16 << 20) for _ in range(4)]
    for block in blocks:
        touch(block, 1, 16 << 20)
    for block in blocks:
        free(block)
once()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    once()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode):
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, timeout=120)
    if done.returncode == 77:
        pytest.skip("this C library has no mallopt")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_memory_freed_by_one_batch_is_that_of_the_next():
    """Five times 64 MB: without it each is cleared anew, page by page."""
    touched = 5 * (64 << 20) // resource.getpagesize()
    assert page_faults("kept") < touched / 20
    assert page_faults("given back") > touched / 2
