"""Host memory: what one batch frees, the next one takes back."""

import ctypes

# <malloc.h> of glibc, and values for them that stay below what it accepts.
_OPTIONS = {"M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_TOP_PAD": (-2, 256 * 2**20), "M_MMAP_THRESHOLD": (-3, 32 * 2**20)}


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed memory instead of giving it back to the system; True where it was told.

    Batches, and on CPU the steps that use them, allocate the same buffers again and again. By default the large ones
    come fresh from the system each time, and clearing their pages took a quarter of the processor's time in a run of
    BERT-mini and as much in the stream itself.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # no glibc: another system, or another C library
        return False
    return all([mallopt(option, value) == 1 for option, value in _OPTIONS.values()])
