"""Where the time of one training step goes: the largest operations, and their sums by what they are for.

    python benchmarks/step_profile.py                       # SmolLM2-135M, float32, a pair with a prompt of 600 tokens and responses of 60
    python benchmarks/step_profile.py --shape 256:256 --kind int4 --variant unshared
    python benchmarks/step_profile.py --device cuda --dtype bfloat16 --pairs 8 --config FOLDER

By torch.profiler, self time, of one of the steps of train_step_variants.py after one that warms up. On a CPU that is the clock of the thread
that calls, so that shares are right with any number of threads; on CUDA the time of kernels. A product is told by its sizes: LoRA has the rank
among them, an MLP its inner width, a vision tower its widths; so a number of tokens that equals one of these would be taken for it.
"""

from __future__ import annotations

import argparse
import logging
import platform
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile
from train_step_variants import RANK, VARIANTS, Case, make_case, step
from transformers.utils.logging import disable_progress_bar

PRODUCTS = {"mm", "mm_", "addmm", "addmm_", "bmm", "baddbmm"}
ATTENTION = ("_scaled_dot_product", "_flash_attention", "_efficient_attention", "_cudnn_attention")
PRODUCT, ATTENDING, IN_LOSS = "products", "attention", "loss"


class Operation(NamedTuple):
    """Calls of one operator for one purpose; seconds of self time."""

    name: str
    group: str
    seconds: float


def recorded(work: Callable[[], Any], device: str, grouped: Callable[[str, list[list[int]], bool], str]) -> list[Operation]:
    """What `work` calls; `grouped` gets operator, sizes of its inputs, and whether it is a part of the loss (record_function of that name)."""
    cuda = device != "cpu"
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * cuda], record_shapes=True) as found:
        work()
        if cuda:
            torch.cuda.synchronize()
    sums: dict[tuple[str, str], float] = defaultdict(float)
    for event in found.events():
        seconds = (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6
        if event.device_type == torch.autograd.DeviceType.CPU and seconds:
            sums[event.name, grouped(event.name, event.input_shapes or [], within(event, IN_LOSS))] += seconds
    return sorted((Operation(*key, seconds) for key, seconds in sums.items()), key=lambda one: -one.seconds)


def within(event: Any, name: str) -> bool:
    """Whether the call lies in a record_function of that name."""
    while event is not None and event.name != name:
        event = event.cpu_parent
    return event is not None


def grouping(case: Case) -> Callable[[str, list[list[int]], bool], str]:
    """The purpose of an operator, by the widths of the two models."""
    configs = [model.config for model in (case.student, case.teacher)]
    inner = {config.get_text_config().intermediate_size for config in configs}
    vision = {getattr(config.vision_config, name) for config in configs if hasattr(config, "vision_config") for name in ("hidden_size", "intermediate_size")}
    vision -= {config.get_text_config().hidden_size for config in configs}

    def grouped(name: str, shapes: list[list[int]], in_loss: bool) -> str:
        short = name.removeprefix("aten::")
        if in_loss:
            return f"{IN_LOSS}: {f'{PRODUCT} with the vocabulary' if short in PRODUCTS else 'all else'}"
        if short.startswith(ATTENTION):
            return ATTENDING
        if short.startswith("bitsandbytes"):
            return "4-bit weights made whole"
        if short not in PRODUCTS:
            return "elementwise, norms, copies"
        sizes = {size for shape in shapes for size in shape}
        for purpose, widths in (("LoRA", {RANK}), ("vision tower", vision), ("MLP", inner)):
            if sizes & widths:
                return f"{PRODUCT}: {purpose}"
        return f"{PRODUCT}: {'others' if short in ('bmm', 'baddbmm') else 'attention projections'}"

    return grouped


def floor(operations: Iterable[Operation]) -> tuple[float, float]:
    """Seconds of products and attention, those of the loss among them; and of all."""
    found = list(operations)
    return sum(one.seconds for one in found if PRODUCT in one.group or one.group == ATTENDING), sum(one.seconds for one in found)


def profiled(case: Case, variant: str) -> list[Operation]:
    """One step, the second."""
    step(case, variant)
    return recorded(lambda: step(case, variant), case.device.type, grouping(case))


def table(operations: list[Operation], largest: int = 10) -> list[str]:
    """Markdown: the largest operations, then all by purpose."""
    whole = sum(one.seconds for one in operations)
    lines = ["| operation | for | self time | share |", "|---|---|---|---|"]
    lines += [f"| `{one.name}` | {one.group} | {one.seconds * 1e3:.1f} ms | {one.seconds / whole:.1%} |" for one in operations[:largest]]
    sums: dict[str, float] = defaultdict(float)
    for one in operations:
        sums[one.group] += one.seconds
    lines += ["", "| for | self time | share |", "|---|---|---|"]
    lines += [f"| {group} | {seconds * 1e3:.1f} ms | {seconds / whole:.1%} |" for group, seconds in sorted(sums.items(), key=lambda item: -item[1])]
    least, _ = floor(operations)
    return [*lines, f"| *products and attention together* | {least * 1e3:.1f} ms | {least / whole:.1%} |", f"| *all* | {whole * 1e3:.1f} ms | |"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="600:60", metavar="PROMPT:RESPONSE", help="tokens; of no meaning for vlm")
    parser.add_argument("--kind", choices=["text", "int4", "vlm"], default="text")
    parser.add_argument("--variant", choices=[name for name in VARIANTS if name not in ("trl", "gkd", "liger")], default="shared")
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--config", type=Path, help="folder of a config.json: teacher and student with such random weights")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    disable_progress_bar()
    torch.set_num_threads(args.threads)
    prompt, response = map(int, args.shape.split(":"))
    case = make_case(args.kind, (prompt, response), args.pairs, args.device, args.dtype, args.config)
    where = f"{args.threads} threads, {platform.machine()}" if args.device == "cpu" else torch.cuda.get_device_name()
    shown = "" if args.kind == "vlm" else f"{args.shape}, "
    print(f"{date.today()}, {where}, torch {torch.__version__}, {args.kind}, {args.dtype}, {shown}{args.pairs} pairs: {VARIANTS[args.variant][0]}\n")
    print("\n".join(table(profiled(case, args.variant))))


if __name__ == "__main__":
    main()
