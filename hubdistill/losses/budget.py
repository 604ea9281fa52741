"""What the loss may hold at once; apart from tiles.py and head.py, which import torch, because `plan` asks it."""

from __future__ import annotations

CAST_BYTES = 32 * 2**20  # largest up-cast slice of a head
CPU_BUDGET = 256 * 2**20  # bytes of both logit buffers; 128 MiB each keeps the matrix products efficient
DEVICE_BUDGET = 2**30  # an accelerator needs more rows a tile, or it waits for the head's weights
WHOLE_BUDGET, WHOLE_SHARE = 2**30, 16  # what a response that has to be whole may take of main memory: bytes, and a part of it


def usual_budget(kind: str) -> int:
    """Bytes of both logit buffers on a kind of device."""
    return CPU_BUDGET if kind == "cpu" else DEVICE_BUDGET


def whole_budget(kind: str, memory: int) -> int:
    """Bytes of both logit buffers for the sake of a whole response, of a device with so much memory. Of all memory, not of what is free just
    now: on the same machine a resumed run has the same tiles, and so the same digits. Nothing on accelerators, whose
    usual tiles are four times as high, and whose memory is dearer than two products."""
    return min(WHOLE_BUDGET, memory // WHOLE_SHARE) if kind == "cpu" else 0


def fitting(budget_bytes: int, row_bytes: int, *, longest: int = 0, whole_bytes: int = 0) -> int:
    """Rows that fit the budget, at least one; the `longest` response where that takes no more than `whole_bytes`."""
    rows = max(1, budget_bytes // row_bytes)
    return longest if rows < longest <= whole_bytes // row_bytes else rows
