"""The processes of one run: alone, or one for each device, as torchrun and `launcher.py` start them.

All of them do the same in the same order. `Processes` says who this one is, and holds the few things that they do together.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

Value = TypeVar("Value")
# What torchrun tells a process of its group; a program that is started from within one is not of it.
GROUP = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# The first process may evaluate for hours while the others wait; one that dies is noticed by who started them.
PATIENCE = timedelta(days=14)


@dataclass(frozen=True)
class Processes:
    """Who this process is: `rank` of `size`, and `local_rank` of those on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this process does what is done once: it writes all files but those of its own responses."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.size == 1

    def wait(self) -> None:
        """Go on when all are here."""
        self.share(None)

    def share(self, value: Value) -> Value:
        """The first process's value, in all of them. It must be picklable."""
        if self.alone:
            return value
        import torch

        box = [value]
        torch.distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]


ALONE = Processes()


def told(environment: Mapping[str, str] = os.environ) -> Processes:
    """Who the environment says that this process is; alone where it says nothing."""
    return Processes(*(int(environment.get(name) or default) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))))


def without_group(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a program that is no part of the group."""
    return {name: value for name, value in environment.items() if name not in GROUP}


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """The group of this process, for the length of a block; `device` is the type that they train on."""
    found = told()
    if found.alone:
        yield found
        return
    import torch

    if device == "cuda":
        torch.cuda.set_device(found.local_rank)
    # What is not a tensor of the accelerator goes through gloo, which waits without using it.
    torch.distributed.init_process_group("gloo" if device == "cpu" else None, timeout=PATIENCE)
    try:
        yield found
    finally:
        torch.distributed.destroy_process_group()


def visible_gpus(environment: Mapping[str, str] = os.environ, driver: Path = Path("/proc/driver/nvidia/gpus")) -> int:
    """How many NVIDIA GPUs this process may use, without asking CUDA, which takes seconds and memory of one."""
    return len(gpu_names(environment, driver))


def gpu_names(environment: Mapping[str, str] = os.environ, driver: Path = Path("/proc/driver/nvidia/gpus")) -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls the NVIDIA GPUs that this process may use: numbers, or what it says itself."""
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for one in named.split(",") if (name := one.strip()) not in ("", "-1")]
    return [str(number) for number in range(len(list(driver.iterdir())))] if driver.is_dir() else []
