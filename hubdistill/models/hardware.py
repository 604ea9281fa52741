"""What a run runs on."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from hubdistill.errors import InputError

if TYPE_CHECKING:
    import torch


def pick_device(name: str) -> torch.device:
    """The torch device for a recipe's `device`; `auto` takes the accelerator when there is one.

    Raises InputError for a device that this machine does not have.
    """
    import torch

    there = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return there or torch.device("cpu")
    device = torch.device(name)
    missing = there is None or there.type != device.type or (device.index or 0) >= torch.accelerator.device_count()
    if device.type != "cpu" and missing:
        raise InputError(f"train.device or teacher.device: this machine has no {name} that PyTorch can use; write `auto` or `cpu`")
    return device


def hardware(device: str) -> str:
    """The device that a recipe's `train.device` means here."""
    import torch

    chosen = pick_device(device)
    if chosen.type == "cuda":
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(chosen)}"
    return f"{torch.get_num_threads()} threads of {processor()}" if chosen.type == "cpu" else str(chosen)


def processors() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The CPU's model name, where the system says it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


@cache
def main_memory() -> int:
    """Bytes of main memory that a process can have: all, or what its control group allows."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    except (OSError, ValueError):  # no control groups here, or "max"
        return total
