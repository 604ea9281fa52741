"""Cost of a whole training step: teacher forward, LoRA student forward and backward, and the loss, on pairs of fixed responses.

    python benchmarks/train_step.py                         # SmolLM2-135M, float32, prompts:responses 600:60 256:256 64:256
    python benchmarks/train_step.py --kind int4             # the student in 4 bit; --kind vlm: two LLaVAs, one image a prompt
    python benchmarks/train_step.py --device cuda --dtype bfloat16 --pairs 8 --config FOLDER   # random weights of a config.json

Variants (train_step_variants.py) run in turn, several times; the table shows median seconds, the median of the ratios within a turn with
the smallest and the largest (a shared machine is faster or slower from minute to minute), and the peak memory beyond the models, each
variant in a process of its own. On CPU: CPU time of the process (threads wait passively). On CUDA: time between events
and torch's own peak. The optimiser's step, equal for all, is left out. `trl` and `gkd` need TRL; `liger`
needs `pip install --no-deps liger-kernel`, and on a CPU a C++ compiler.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import platform
import statistics
import subprocess
import sys
import warnings
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: its threads would spin, and spinning is CPU time

import torch
from loss_core import MIB, peak_mib, reset_peak, seconds_of
from step_profile import floor, profiled
from train_step_variants import VARIANTS, Case, make_case, prepare, step
from transformers.utils.logging import disable_progress_bar


def timings(case: Case, names: list[str], args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each variant, turn by turn: of the second of two steps, for the first one finds the heap as another variant left it."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(args.repeats):
        for name in names:
            step(case, name)
            seconds[name].append(seconds_of(lambda name=name: step(case, name), args.device))  # type: ignore[misc]
    return seconds


def ratio(base: list[float], this: list[float]) -> str:
    """base / this within a turn: the median, and the smallest and the largest."""
    found = [one / other for one, other in zip(base, this, strict=True)]
    return f"{statistics.median(found):.2f}x" + (f" [{min(found):.2f}, {max(found):.2f}]" if len(found) > 1 and base is not this else "")


def extra_memory(case: Case, name: str, shape: str, args: argparse.Namespace) -> float:
    """Peak MiB beyond the models; on CPU in a fresh process."""
    if args.device != "cpu":
        case.student.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(case, name)
        return float(torch.cuda.max_memory_allocated() - before) / MIB
    command = [sys.executable, __file__, "--peak-of", name, "--shapes", shape]
    for option in ("kind", "dtype", "pairs", "threads", "common"):
        command += [f"--{option}", str(getattr(args, option))]
    command += ["--config", str(args.config)] if args.config else []
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def distance(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """Of all gradients together, relative."""
    apart = sum(float((found[name] - value).double().square().sum()) for name, value in expected.items())
    return (apart / sum(float(value.double().square().sum()) for value in expected.values())) ** 0.5


def print_shape(shape: str, names: list[str], args: argparse.Namespace) -> None:
    """The table's lines of one shape, and how far our gradients are from the plainly written one's."""
    case = case_of(shape, args)
    seconds = timings(case, names, args)
    shown = shape if args.kind != "vlm" else f"{len(case.pairs[0].prompt_ids)} and {len(case.pairs[0].student_prompt_ids or ())}:{len(case.pairs[0].teacher_ids)}"
    for name in names:
        ratios = [ratio(seconds[base], seconds[name]) if base in seconds else "" for base in ("official", "unshared")]
        middle = statistics.median(seconds[name])
        time = f"{middle:.2f} s" if args.device == "cpu" else f"{middle * 1e3:.0f} ms"
        print(f"| {VARIANTS[name][0]} | {shown} | {time} | {' | '.join(ratios)} | {extra_memory(case, name, shape, args):.0f} MiB |", flush=True)
    if "shared" in names:
        least, whole = floor(profiled(case, "shared"))
        print(f"<!-- {shown}: of a step that reads the prompt once, products and attention take {least:.2f} s of {whole:.2f} s, {least / whole:.0%} (torch.profiler, the calling thread's clock, or the kernels') -->", flush=True)
    if "official" in names:
        plain = {key: value.clone() for key, value in step(case, "official").items()}
        errors = {name: distance(step(case, name), plain) for name in ("shared", "unshared") if name in names}
        print(f"<!-- {shown}: gradients from the plainly written ones, relative: {', '.join(f'{name} {error:.1e}' for name, error in errors.items())} -->", flush=True)


def case_of(shape: str, args: argparse.Namespace) -> Case:
    prompt, response = shape.split(":")
    return make_case(args.kind, (int(prompt), int(response)), args.pairs, args.device, args.dtype, args.config, args.common)


def print_peak(args: argparse.Namespace) -> None:
    """Child process: one step, and how far it raised the peak over models and imports."""
    case = case_of(args.shapes[0], args)
    prepare(case, args.peak_of)
    if args.peak_of == "liger":  # compiled first: the compiler's memory is not the step's
        step(case, args.peak_of)
        case.student.zero_grad(set_to_none=True)
        reset_peak()
    before = peak_mib()
    step(case, args.peak_of)
    print(peak_mib() - before)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["600:60", "256:256", "64:256"], metavar="PROMPT:RESPONSE", help="tokens; of no meaning for vlm")
    parser.add_argument("--kind", choices=["text", "int4", "vlm"], default="text")
    parser.add_argument("--pairs", type=int, default=1, help="pairs in a micro-batch")
    parser.add_argument("--common", type=int, default=0, metavar="N", help="tokens that all prompts begin with; fewer than PROMPT; of no meaning for vlm")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--config", type=Path, help="folder of a config.json: teacher and student with such random weights")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--skip", nargs="*", default=[], choices=list(VARIANTS), help="variants to leave out")
    parser.add_argument("--peak-of", choices=list(VARIANTS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.skip += ["trl", "gkd"] if args.kind == "vlm" or importlib.util.find_spec("trl") is None else []  # TRL: one processor for both models
    args.skip += ["liger"] if importlib.util.find_spec("liger_kernel") is None else []
    args.shapes = args.shapes[:1] if args.kind == "vlm" else args.shapes
    return args


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    disable_progress_bar()
    args = parse()
    torch.set_num_threads(args.threads)
    if args.peak_of:
        return print_peak(args)
    names = [name for name in VARIANTS if name not in args.skip]
    where = f"{args.threads} threads, {platform.machine()}" if args.device == "cpu" else torch.cuda.get_device_name()
    print(f"{date.today()}, {where}, torch {torch.__version__}, {args.kind}, {args.dtype}, {args.pairs} pairs, {args.repeats} repeats\n")
    print(f"| variant | prompt:response | {'CPU time' if args.device == 'cpu' else 'time'} | official / this | prompt twice / this | extra memory |\n|---|---|---|---|---|---|")
    for shape in args.shapes:
        print_shape(shape, names, args)
    return None


if __name__ == "__main__":
    main()
