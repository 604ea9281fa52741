"""What a run runs on."""

from __future__ import annotations

import platform
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
    model = next((line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine())
    return f"{torch.get_num_threads()} threads of {model}" if chosen.type == "cpu" else str(chosen)


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
