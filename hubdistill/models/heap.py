"""The C library's heap on a CPU."""

from __future__ import annotations

import ctypes
import platform

M_MMAP_THRESHOLD = -3  # mallopt(3)
LARGE = 2**20  # bytes


def return_large_blocks() -> bool:
    """Have freed blocks of 1 MiB and more go back to the system at once, for the rest of this process; whether the C library can.

    glibc keeps freed blocks of up to 32 MiB for later ones, which fill the holes badly where layers are computed anew in
    backward: with gradient checkpointing a run took 4711 MiB, of which 2046 were in use (docs/forecast.md).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    return bool(ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE))
