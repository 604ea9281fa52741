"""Devices by name: memory, speed and price; and what this machine is."""

from __future__ import annotations

import os
import platform
import sys
import time
from dataclasses import dataclass, replace
from datetime import date
from difflib import get_close_matches
from functools import cache

from hubdistill.errors import InputError
from hubdistill.models.hardware import main_memory, processor, processors
from hubdistill.models.kept import kept

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A device that a run could be on. `tflops` are dense matrix products in the format that models are loaded in."""

    name: str
    kind: str  # "cuda" or "cpu"
    memory: int  # bytes that can be used
    tflops: float
    gb_per_second: float  # memory bandwidth
    usd_per_hour: float | None = None
    price_of: str = ""


def _gpu(name: str, gib: float, tflops: float, bandwidth: float, flavor: str = "", usd: float | None = None) -> Machine:
    return Machine(name=name, kind="cuda", memory=int(gib * GIB), tflops=tflops, gb_per_second=bandwidth, usd_per_hour=usd,
                   price_of=f"Hugging Face Jobs, {flavor}" if flavor else "")  # fmt: skip


# Memory as the driver reports it, dense bfloat16 (T4: float16) products and bandwidth from NVIDIA's data sheets; prices from
# the Hub's table of Jobs flavors of November 2026. They change: --usd-per-hour overrides, and `launch` asks the Hub.
GPUS = (
    _gpu("T4", 14.6, 65, 320, "t4-small", 0.40),
    _gpu("RTX-4090", 23.5, 165, 1008),
    _gpu("L4", 22.2, 121, 300, "l4x1", 0.80),
    _gpu("A10G", 22.1, 70, 600, "a10g-large", 1.50),
    _gpu("L40S", 44.4, 362, 864, "l40sx1", 1.80),
    _gpu("A100-40GB", 39.4, 312, 1555),
    _gpu("A100-80GB", 79.2, 312, 2039, "a100-large", 2.50),
    _gpu("H100-80GB", 79.1, 989, 3350),
    _gpu("H200", 139.8, 989, 4800, "h200", 5.00),
    _gpu("B200", 178.4, 2250, 8000),
)


def gpu_named(name: str) -> Machine:
    """A GPU of the table, by its name in any case. Raises InputError with the names that are there."""
    found = {gpu.name.lower(): gpu for gpu in GPUS}.get(name.lower())
    if found is None:
        close = get_close_matches(name.lower(), [gpu.name.lower() for gpu in GPUS], n=1)
        meant = next((f"; did you mean {gpu.name}?" for gpu in GPUS if gpu.name.lower() in close), "")
        raise InputError(f"--gpu: no GPU {name!r} in the table{meant or ';'} choose from {', '.join(gpu.name for gpu in GPUS)}")
    return found


def priced(machine: Machine, usd_per_hour: float | None) -> Machine:
    """The machine at a price of the user's own."""
    return machine if usd_per_hour is None else replace(machine, usd_per_hour=usd_per_hour, price_of="--usd-per-hour")


def this_machine(device: str) -> Machine:
    """The device that a recipe's `train.device` means here. Raises InputError where it is not there."""
    if device == "cpu":  # without torch, which takes a second to import
        return _cpu()
    import torch

    from hubdistill.models.hardware import pick_device

    chosen = pick_device(device)
    if chosen.type != "cuda":
        return _cpu()
    found = torch.cuda.get_device_properties(chosen)
    like = next((gpu for gpu in GPUS if gpu.name.split("-")[0] in found.name.replace(" ", "-")), None)
    return Machine(name=found.name, kind="cuda", memory=found.total_memory, tflops=like.tflops if like else 100, gb_per_second=like.gb_per_second if like else 500)


@cache
def _cpu() -> Machine:
    """This CPU, its speed measured in a tenth of a second; or as it was measured today, where torch would have to be imported for that."""
    threads = [os.environ.get("OMP_NUM_THREADS"), os.environ.get("MKL_NUM_THREADS"), processors()]
    key = ["speed", platform.node(), processor(), threads, date.today().isoformat()]
    tflops, gb_per_second = kept(key, lambda: [_products(), _bandwidth()], anew="torch" in sys.modules)
    return Machine(name="this machine's CPU", kind="cpu", memory=main_memory(), tflops=tflops, gb_per_second=gb_per_second)


def _products() -> float:
    """TFLOPS of float32 matrix products."""
    import torch

    a = torch.ones(1024, 1024)
    return 2 * 1024**3 / _fastest(lambda: a @ a) / 1e12


def _bandwidth() -> float:
    """GB a second that are read and written in copying 64 MiB."""
    import torch

    a, b = torch.ones(2**24), torch.ones(2**24)
    return 2 * a.nbytes / _fastest(lambda: b.copy_(a)) / 1e9


def _fastest(work) -> float:
    """Seconds of the fastest of four."""
    times = []
    for _ in range(4):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)
