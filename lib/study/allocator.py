"""The allocator of the C library: whether large blocks of memory go back to the system when they are freed.

glibc maps every block above 32 MiB from the system and unmaps it when it is freed, and it trims the end of the heap. A
network then asks for the same activations again in its next step, and the system maps and zeroes them anew, page by
page. ``python -m study bench --table pages`` measures what that costs.
"""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
"""Parameters of mallopt, as in malloc.h."""


def is_glibc() -> bool:
    """Whether the C library of this process is glibc, whose allocator can be told to keep freed memory."""
    return platform.libc_ver()[0] == "glibc"


def keep_freed_memory() -> bool:
    """Have this process keep the memory it frees, for its own next allocations, until it ends.

    Sets M_MMAP_MAX = 0 (large blocks come from the heap) and disables M_TRIM_THRESHOLD (the heap never shrinks); blocks
    that are mapped already stay so. The numbers computed do not change. Returns whether it was done: False where the C
    library is not glibc. It is a decision for a whole process, so a library does not make it: ``python -m study``
    does, and so may a training script, before its first large tensor.

    Source: mallopt(3), Linux man-pages.
    """
    if not is_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt  # int mallopt(int param, int value): 1 if it was accepted
    return all([mallopt(M_MMAP_MAX, 0) == 1, mallopt(M_TRIM_THRESHOLD, -1) == 1])
