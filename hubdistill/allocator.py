"""What glibc's malloc does with memory that training gives back, on a CPU."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

M_MMAP_THRESHOLD = -3  # mallopt(3): blocks from this size on are mapped, and go back to the system when they are freed
ACTIVATIONS = 2**20  # bytes; an activation that training holds is larger
USUAL = 32 * 2**20  # the highest that glibc's own, moving threshold gets, which it soon does


@contextmanager
def given_back() -> Iterator[None]:
    """Freed activations go back to the system at once in this block, where the C library is glibc.

    By itself it keeps blocks of up to 32 MiB for later ones, which leaves holes: training takes a fifth more memory than its
    tensors do (docs/forecast.md). Not for sampling: each token grows the cache, and mapping it anew would take longer.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        yield
        return
    mallopt(M_MMAP_THRESHOLD, ACTIVATIONS)
    try:
        yield
    finally:
        mallopt(M_MMAP_THRESHOLD, USUAL)
