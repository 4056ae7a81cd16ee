"""A setting of the C allocator that training on a CPU wants."""

from __future__ import annotations

import ctypes
import sys

# glibc's mallopt parameters (malloc.h)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks instead of giving them back to the system.

    Each step frees and asks again for the same large activations; giving them back costs a page fault per 4 KiB.
    Measured on the embedded decoder's training step: 0.82 to 1.09 CPU-seconds before, 0.65 after. No effect outside
    Linux.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
