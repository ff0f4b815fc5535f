"""Host memory: what one batch or step frees, the next one takes back, and it lies in huge pages."""

import ctypes
import functools
import os

# <malloc.h> of glibc. Nothing is given back to the system; no block, however large, is a mapping of its own; and all
# threads share one heap: one of their own holds 64 MiB at most, and what does not fit in it is mapped.
_OPTIONS = {"M_TRIM_THRESHOLD": (-1, -1), "M_TOP_PAD": (-2, 256 * 2**20), "M_MMAP_MAX": (-4, 0), "M_ARENA_MAX": (-8, 1)}

MADV_HUGEPAGE = 14  # <linux/mman.h>
_HUGE_PAGE = 2 * 2**20


@functools.cache
def keep_freed_memory() -> bool:
    """Tells glibc to keep freed memory instead of giving it back to the system, and asks Linux for huge pages; True
    where glibc was told.

    Batches, and on CPU the steps that use them, allocate the same buffers again and again; XLA takes all temporaries
    of a step as one block. By default the large ones come fresh from the system each time, and clearing and mapping
    their pages, 4 KiB at a time, takes half of the time of a step of BERT-mini (benchmarks/results). Debian and Ubuntu
    give huge pages to those who ask alone (`madvise` in /sys/kernel/mm/transparent_hugepage/enabled).

    To be called before there are threads: one that has its own heap keeps it.
    """
    try:
        libc = ctypes.CDLL(None)
        told = all([libc.mallopt(option, value) == 1 for option, value in _OPTIONS.values()])
    except (OSError, AttributeError, TypeError):  # no glibc: another system, or another C library
        return False
    if told and _is_unlimited():
        _ask_for_huge_pages(libc)
    return told


def _is_unlimited() -> bool:
    """Whether the address space that is set aside is missed by nothing else."""
    import resource  # not there on Windows

    limits = [resource.getrlimit(which)[0] for which in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    return all(limit == resource.RLIM_INFINITY for limit in limits)


def _ask_for_huge_pages(libc: ctypes.CDLL) -> None:
    """Has the heap grow by half of the machine's memory, asks for huge pages there, and frees it for what comes.

    No page of it is touched, so none is taken. What the heap needs beyond that comes in pages of the usual size.
    """
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    block = libc.malloc(size)
    if block is None:  # a system that promises no more than it has
        return
    begin = -(-block // _HUGE_PAGE) * _HUGE_PAGE
    libc.madvise(begin, (block + size - begin) // _HUGE_PAGE * _HUGE_PAGE, MADV_HUGEPAGE)  # a refusal costs speed alone
    libc.free(block)
