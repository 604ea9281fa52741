"""How much memory a piece of work took, at most: of this process, and of its accelerator."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc_pid_clear_refs(5): sets the high-water mark of the resident set to its present size


@dataclass
class Peaks:
    """Bytes; None where this machine does not tell, and before the work is done."""

    main: int | None = None  # largest resident set of this process, libraries included
    device: int | None = None  # most that torch held of the accelerator

    def as_dict(self) -> dict[str, int]:
        return {name: value for name, value in (("main", self.main), ("device", self.device)) if value is not None}


@contextmanager
def measured() -> Iterator[Peaks]:
    """The peaks of the block; they are there when it ends. Main memory on Linux, the accelerator where torch is in use."""
    peaks, resettable = Peaks(), _reset_main()
    accelerator = _accelerator()
    if accelerator is not None:
        accelerator.reset_peak_memory_stats()
    try:
        yield peaks
    finally:
        peaks.main = _resident("VmHWM") if resettable else None
        if (accelerator := _accelerator()) is not None:
            # Reserved, not allocated: what the allocator keeps is not there for others.
            peaks.device = int(accelerator.max_memory_reserved())


def resident() -> int | None:
    """Bytes of main memory that this process has now."""
    return _resident("VmRSS")


def _accelerator():
    """torch's memory module of the accelerator in use; None without one. torch is not imported for this."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized() else None


def _reset_main() -> bool:
    try:
        CLEAR.write_text(RESET_PEAK)
    except OSError:  # another system, or a container that does not allow it
        return False
    return True


def _resident(field: str) -> int | None:
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)
