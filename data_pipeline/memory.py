"""Host memory: what one batch or step frees, the next one takes back."""

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

# <malloc.h> of glibc, and values for them that stay below what it accepts.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -3, -4, -8
_OF_BATCHES = {M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 256 * 2**20, M_MMAP_THRESHOLD: 32 * 2**20}
# Nothing goes back to the system; no block, however large, is a mapping of its own; and all threads share one heap: one
# of their own holds 64 MiB at most, and what does not fit in it is mapped.
_OF_STEPS = {M_TRIM_THRESHOLD: -1, M_TOP_PAD: 16 * 2**20, M_MMAP_MAX: 0, M_ARENA_MAX: 1}

MADV_HUGEPAGE = 14  # <linux/mman.h>
HUGE_PAGE_FILE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
MOST_OF_A_HUGE_PAGE = 32 * 2**20
OVERCOMMIT_FILE = Path("/proc/sys/vm/overcommit_memory")


@functools.cache
def keep_memory_of_batches() -> bool:
    """Tells glibc to keep freed memory instead of giving it back to the system; True where it is told, or was before
    by `keep_memory_of_steps`, which keeps more.

    Batches allocate the same buffers again and again. By default the large ones come fresh from the system each time,
    and clearing their pages took a quarter of the stream's processor time.
    """
    return keep_memory_of_steps() if keep_memory_of_steps.cache_info().currsize else _told(_OF_BATCHES)


@functools.cache
def keep_memory_of_steps() -> bool:
    """For a process whose steps run on the CPU: one heap for all threads, kept, in huge pages. True where it is told.

    XLA takes all temporaries of a step as one block, in a thread. By default that is mapped, cleared, 4 KiB at a time,
    and unmapped for every step, which takes half of the time of a step of BERT-mini (benchmarks/results). Debian, for
    one, gives huge pages to those who ask alone (`madvise` in /sys/kernel/mm/transparent_hugepage/enabled).

    To be called before there are threads, for a thread that has its own heap keeps it. What is freed is used again but
    never returned, and `calloc` has to clear it.
    """
    told = _told(_OF_STEPS)
    if told and _has_space_to_spare():
        _ask_for_huge_pages()
    return told


def _told(options: dict[int, int]) -> bool:
    """What the environment says of the heap stands."""
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    libc = _libc()
    return libc is not None and all([libc.mallopt(option, value) == 1 for option, value in options.items()])


def _libc() -> ctypes.CDLL | None:
    """None where glibc is not what allocates: another system or C library, or an allocator that was preloaded."""
    try:
        libc, ours = ctypes.CDLL(None), ctypes.CDLL("libc.so.6")
        same = all(_address(libc[name]) == _address(ours[name]) for name in ("malloc", "mallopt"))
    except (OSError, AttributeError, TypeError):
        return None
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc if same else None


def _address(function: Any) -> int | None:
    return ctypes.cast(function, ctypes.c_void_p).value


def _has_space_to_spare() -> bool:
    """Whether address space that is set aside is missed by nothing else."""
    import resource  # not there on Windows

    limits = [resource.getrlimit(which)[0] for which in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    promised = OVERCOMMIT_FILE.exists() and OVERCOMMIT_FILE.read_text().strip() == "2"  # then space is memory
    return all(limit == resource.RLIM_INFINITY for limit in limits) and not promised


def _ask_for_huge_pages() -> None:
    """Has the heap grow by half of the machine's memory, asks for huge pages there, and frees it for what comes.

    No page of it is touched, so none is taken. What the heap needs beyond that comes in pages of the usual size.
    """
    page = int(HUGE_PAGE_FILE.read_text()) if HUGE_PAGE_FILE.exists() else 0
    libc, size = _libc(), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    if libc is None or not 0 < page <= MOST_OF_A_HUGE_PAGE:  # of 64 KiB pages a huge one has 512 MiB
        return
    block = libc.malloc(size)
    if block is None:
        return
    begin = -(-block // page) * page
    libc.madvise(begin, (block + size - begin) // page * page, MADV_HUGEPAGE)  # a refusal costs speed alone
    libc.free(block)
