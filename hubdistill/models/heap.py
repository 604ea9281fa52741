"""The C library's heap on a CPU: glibc keeps freed blocks of up to 32 MiB for later ones, and fills the holes badly."""

from __future__ import annotations

import ctypes
import platform
from functools import cache
from typing import Any

M_MMAP_THRESHOLD = -3  # mallopt(3)
LARGE = 2**20  # bytes


def return_large_blocks() -> bool:
    """Have freed blocks of 1 MiB and more go back to the system at once, for the rest of this process; whether the C library can.

    Where layers are computed anew in backward the holes are at their worst: with gradient checkpointing a run took 4711 MiB, of
    which 2046 were in use (docs/forecast.md).
    """
    library = _glibc()
    return library is not None and bool(library.mallopt(M_MMAP_THRESHOLD, LARGE))


def return_freed() -> None:
    """Give back what is free now, holes among it: what one stage leaves would be held beside all that the next one takes."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


@cache
def _glibc() -> Any:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
