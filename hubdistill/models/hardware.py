"""What a run runs on, in words."""

from __future__ import annotations

import platform
from pathlib import Path


def hardware(device: str) -> str:
    """The device that a recipe's `train.device` means here."""
    import torch

    from hubdistill.models.load import pick_device

    chosen = pick_device(device)
    if chosen.type == "cuda":
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(chosen)}"
    model = next((line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine())
    return f"{torch.get_num_threads()} threads of {model}" if chosen.type == "cpu" else str(chosen)


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
