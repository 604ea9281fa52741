"""Cost of the contrastive loss from hidden states, as a multiple of the products with the vocabulary it cannot avoid.

    python benchmarks/loss_core.py                  # N=2048 tokens, V=151936, D=896, float32: a few minutes on 2 cores
    python benchmarks/loss_core.py --quick          # a small shape, seconds
    python benchmarks/loss_core.py --device cuda --dtype bfloat16 --tokens 8192

Every variant (loss_variants.py) computes a loss and its gradient to the student's hidden states. The floor is three
products, in tiles of the same size: teacher logits, student logits, gradient to the hidden states. Variants run in turn,
several times; the table shows medians, and the peak memory beyond the inputs. On CPU: CPU time of the process (threads
wait passively, so that waiting is not counted as work), each variant's memory in a process of its own. On CUDA: time
between events, and torch's own peak. `liger` needs `pip install --no-deps liger-kernel`, and on a CPU a C++ compiler: it is
compiled before it is timed, and the compiler's memory is left out. A last line holds it against our JSD.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: its threads would spin, and spinning is CPU time

import torch
from loss_variants import VARIANTS, Inputs, liger_loss, make_inputs, our_jsd, ours, plain, to_float64, upcast

from hubdistill.models.heap import return_freed

MIB = 2**20


def seconds_of(run: Callable[[], Any], device: str) -> float:
    """CPU time of one call over all threads; on CUDA the time between two events."""
    if device == "cpu":
        start = time.process_time()
        run()
        return time.process_time() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


def timings(inputs: Inputs, names: list[str], args: argparse.Namespace) -> dict[str, float]:
    """Median seconds per variant, variants interleaved, after a call that sets up threads, pages and kernels."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        whole = args.device != "cpu" or name == "liger"  # which is compiled anew for other numbers of tokens
        VARIANTS[name][1](inputs if whole else inputs.first(min(256, inputs.tokens)))
    for _ in range(args.repeats):
        for name in names:
            seconds[name].append(seconds_of(lambda name=name: VARIANTS[name][1](inputs), args.device))  # type: ignore[misc]
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_mib() -> float:
    """Largest resident size of this process so far, MiB. (Linux's ru_maxrss starts at the parent's size.)"""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB


def reset_peak() -> None:
    """Have `peak_mib` forget what was freed (Linux; elsewhere it remembers)."""
    gc.collect()
    return_freed()
    if (file := Path("/proc/self/clear_refs")).exists():
        file.write_text("5")


def extra_memory(name: str, inputs: Inputs, args: argparse.Namespace) -> float:
    """Peak MiB beyond the inputs; on CPU in a fresh process."""
    if args.device != "cpu":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        VARIANTS[name][1](inputs)
        return float(torch.cuda.max_memory_allocated() - before) / MIB
    command = [sys.executable, __file__, "--peak-of", name, "--dtype", args.dtype, "--tokens", str(inputs.tokens)]
    for option in ("vocab", "width", "response", "threads"):
        command += [f"--{option}", str(getattr(args, option))]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def print_peak(args: argparse.Namespace) -> None:
    """Child process: run one variant once and print how far it raised the peak. Imports and threads come first."""
    run = VARIANTS[args.peak_of][1]
    run(make_inputs(8, 64, 8, getattr(torch, args.dtype)))
    inputs = make_inputs(args.tokens, args.vocab, args.width, getattr(torch, args.dtype), args.response)
    for weight in (inputs.student.weight, inputs.teacher.weight):
        if args.peak_of == "floor":
            upcast(weight)
    if args.peak_of == "liger" and args.device == "cpu":
        run(inputs)
        reset_peak()
    before = peak_mib()
    run(inputs)
    print(peak_mib() - before)


def errors(args: argparse.Namespace) -> tuple[float, float]:
    """Relative distance of our gradient, and of the plainly written one, from the latter in float64."""
    inputs = make_inputs(
        256, min(args.vocab, 32768), args.width, getattr(torch, args.dtype), args.response, args.device
    )
    exact = plain(to_float64(inputs))
    return tuple(float((run(inputs).double() - exact).norm() / exact.norm()) for run in (ours, plain))  # type: ignore[return-value]


def liger_errors(inputs: Inputs) -> tuple[float, float]:
    """Relative distance of Liger's JSD, and of its gradient, from ours."""
    rows, heads = inputs.responses, (inputs.student, inputs.teacher)
    losses = [loss(rows, *heads) for loss in (liger_loss, our_jsd)]
    theirs, mine = (torch.autograd.grad(loss, rows.student_ND)[0] for loss in losses)
    return float((losses[0] - losses[1]).detach().abs() / losses[1].detach()), float((theirs - mine).norm() / mine.norm())


def print_rows(inputs: Inputs, names: list[str], args: argparse.Namespace) -> None:
    """The table's lines of one number of tokens."""
    seconds = timings(inputs, names, args)
    for name in names:
        ratio, memory = seconds[name] / seconds["floor"], extra_memory(name, inputs, args)
        shown = f"{seconds[name]:.2f} s" if args.device == "cpu" else f"{seconds[name] * 1e3:.1f} ms"
        print(f"| {VARIANTS[name][0]} | {inputs.tokens} | {shown} | {ratio:.2f}x | {memory:.0f} MiB |", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048, help="response tokens N")
    parser.add_argument("--vocab", type=int, default=151936, help="vocabulary V")
    parser.add_argument("--width", type=int, default=896, help="hidden size D of both models")
    parser.add_argument("--response", type=int, default=128, help="tokens per response")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--plain-tokens", type=int, default=512, help="tokens of the full-logit variant, which needs about 8 MiB each"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--skip", nargs="*", default=[], choices=list(VARIANTS)[1:], help="variants to leave out")
    parser.add_argument("--quick", action="store_true", help="N=512, V=32768, D=256")
    parser.add_argument("--peak-of", choices=list(VARIANTS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.tokens, args.vocab, args.width, args.plain_tokens = 512, 32768, 256, 512
    if importlib.util.find_spec("liger_kernel") is None:
        args.skip.append("liger")
    return args


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    if args.peak_of:
        return print_peak(args)
    dtype = getattr(torch, args.dtype)
    inputs = make_inputs(args.tokens, args.vocab, args.width, dtype, args.response, args.device)
    where = f"{args.threads} threads, {platform.machine()}" if args.device == "cpu" else torch.cuda.get_device_name()
    print(f"{date.today()}, {where}, torch {torch.__version__}, {args.dtype}, "
          f"V={args.vocab}, D={args.width}, {args.repeats} repeats\n")  # fmt: skip
    clock = "CPU time" if args.device == "cpu" else "time"
    print(f"| variant | tokens | {clock} | against the floor | extra memory |\n|---|---|---|---|---|")
    short = min(args.plain_tokens, args.tokens)
    names = [name for name in VARIANTS if name not in args.skip]
    apart = short < args.tokens and "plain" in names
    if apart:
        names.remove("plain")
    print_rows(inputs, names, args)
    if apart:
        print_rows(inputs.first(short), ["floor", "ours", "plain"], args)
    if "plain" not in args.skip:
        mine, theirs = errors(args)
        print(f"\nGradient against float64, relative distance: hubdistill {mine:.1e}, written out plainly {theirs:.1e}")
    if "liger" not in args.skip:
        value, gradient = liger_errors(inputs)
        print(f"\nLiger's JSD against ours, relative distance: value {value:.1e}, gradient {gradient:.1e}")
    return None


if __name__ == "__main__":
    main()
