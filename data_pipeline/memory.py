"""Host memory: what one batch or step frees, the next one takes back."""

import contextlib
import ctypes
import functools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

# <malloc.h> of glibc, and values for them that stay below what it accepts.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -3, -4, -8
_OF_BATCHES = {M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 256 * 2**20, M_MMAP_THRESHOLD: 32 * 2**20}
# Nothing of the heap goes back to the system, and all threads share one: one of their own holds 64 MiB at most.
_OF_STEPS = {M_TRIM_THRESHOLD: -1, M_TOP_PAD: 16 * 2**20, M_MMAP_THRESHOLD: 32 * 2**20, M_ARENA_MAX: 1}
DEFAULT_MMAP_MAX = 65_536
# Of the machine's memory: what a heap that is never shrunk may hold in vain.
SHARE_OF_STEPS = 8

MADV_HUGEPAGE = 14  # <linux/mman.h>
HUGE_PAGE_FILE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
MOST_OF_A_HUGE_PAGE = 32 * 2**20
OVERCOMMIT_FILE = Path("/proc/sys/vm/overcommit_memory")
CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def machine_memory(limits: Iterable[Path] | None = None) -> tuple[int, str]:
    """(bytes, whose): what the machine has, or less where the container of this process may not take as much."""
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "the machine's memory"
    for path in limit_files() if limits is None else limits:
        with contextlib.suppress(OSError, ValueError):  # not there, or `max`
            limit = int(path.read_text())
            if limit < found[0]:
                found = limit, "the container's memory"
    return found


def limit_files(own: Path = OWN_CGROUPS, root: Path = CGROUPS) -> Iterator[Path]:
    """Where a limit on this process's memory may stand: in its control group and in those around it, of version 2 or 1.

    A job of a scheduler or a service sees the groups of all the machine; a container for the most part its own alone.
    """
    with contextlib.suppress(OSError, ValueError):  # another system has no such file, or one of another form
        for line in own.read_text().splitlines():
            _, controllers, place = line.split(":", 2)
            if not controllers:
                base, name = root, "memory.max"
            elif "memory" in controllers.split(","):
                base, name = root / "memory", "memory.limit_in_bytes"
            else:
                continue
            group = Path(place.lstrip("/"))
            yield from (base / each / name for each in (group, *group.parents))


@functools.cache
def keep_memory_of_batches() -> bool:
    """Tells glibc to keep freed memory instead of giving it back to the system; True where it is told, or was before
    by `keep_memory_of_steps`, which keeps as much or more.

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

    The heap has an eighth of the memory to fill. Blocks of 32 MiB and more that find no place there are mapped and
    unmapped as by default; smaller ones make it grow. What is small and outlives a step lies where a large block was,
    so that without this a heap grows to nearly twice of what is ever used at once. Where address space has a limit
    nothing is set aside, and memory is kept as `keep_memory_of_batches` does.

    To be called before there are threads, for a thread that has its own heap keeps it. What is freed is used again but
    never returned, and `calloc` has to clear it.
    """
    spare = _libc() is not None and _has_space_to_spare()
    told = _told(_OF_STEPS if spare else _OF_BATCHES)
    if told and spare:
        _set_aside(machine_memory()[0] // SHARE_OF_STEPS)
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


def _set_aside(size: int) -> None:
    """Has the heap grow by so many bytes, asks for huge pages there, and frees them for what comes.

    No page of it is touched, so none is taken.
    """
    libc = _libc()
    assert libc is not None, "it has been told"
    libc.mallopt(M_MMAP_MAX, 0)  # or the block would be a mapping of its own
    block = libc.malloc(size)
    libc.mallopt(M_MMAP_MAX, DEFAULT_MMAP_MAX)
    if block is None:
        return
    page = int(HUGE_PAGE_FILE.read_text()) if HUGE_PAGE_FILE.exists() else 0
    if 0 < page <= MOST_OF_A_HUGE_PAGE:  # of 64 KiB pages a huge one has 512 MiB
        begin = -(-block // page) * page
        libc.madvise(begin, (block + size - begin) // page * page, MADV_HUGEPAGE)  # a refusal costs speed alone
    libc.free(block)
