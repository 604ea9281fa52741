"""Cost of the contrastive loss from hidden states, as a multiple of the products with the vocabulary it cannot avoid.

    python benchmarks/loss_core.py            # N=2048 tokens, V=151936, D=896, float32: a few minutes on 2 cores
    python benchmarks/loss_core.py --quick    # a small shape, seconds

Every variant computes a loss and its gradient to the student's hidden states. The floor is three products, in tiles of
the same size: teacher logits, student logits, gradient to the hidden states. Variants run in turn, several times; the
table shows medians of process CPU time (threads wait passively, so that waiting is not counted as work), and the peak
memory a process needs beyond its inputs, each variant in a process of its own.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: its threads would spin, and spinning is CPU time

import torch
from torch import Tensor

from hubdistill.losses.chunked import Head, Responses, chunked_divergence
from hubdistill.losses.head import compute_dtype
from hubdistill.losses.tiles import tile_rows

MIB = 2**20


@dataclass(frozen=True)
class Inputs:
    """Random hidden states and heads whose logits have a language model's spread (standard deviation about 3)."""

    responses: Responses
    student: Head
    teacher: Head
    weights: Tensor

    @property
    def tokens(self) -> int:
        return len(self.weights)

    def first(self, tokens: int) -> Inputs:
        """The same with the first rows alone."""
        old = self.responses
        length = int(torch.as_tensor(old.lengths_B)[0])
        count = max(1, tokens // length)
        new = Responses(
            old.student_ND.detach()[:tokens].requires_grad_(),
            old.teacher_ND[:tokens],
            old.labels_N[:tokens],
            [tokens // count] * count,
            old.from_student_B[:count],
        )
        return Inputs(new, self.student, self.teacher, self.weights[:tokens])


def make_inputs(tokens: int, vocab: int, width: int, dtype: torch.dtype, response: int = 128) -> Inputs:
    """Inputs of one shape, the same on every call; every second response of `response` tokens is the student's."""
    torch.manual_seed(0)

    def normal(rows: int, scale: float) -> Tensor:
        return torch.randn(rows, width, dtype=dtype).mul_(scale)

    count = max(2, tokens // response)
    lengths = [tokens // count] * count
    flags = torch.arange(count) % 2 == 1
    # a teacher that shares most of its logits with the student, as after the warm-up
    hidden = [normal(tokens, 1.0)]
    hidden.append(normal(tokens, 0.4).add_(hidden[0], alpha=0.9))
    heads = [Head(normal(vocab, 3 / math.sqrt(width)))]
    heads.append(Head(normal(vocab, 0.4 * 3 / math.sqrt(width)).add_(heads[0].weight, alpha=0.9)))
    labels = torch.randint(0, vocab, (tokens,))
    responses = Responses(hidden[0].requires_grad_(), hidden[1], labels, lengths, flags)
    return Inputs(responses, heads[0], heads[1], torch.full((tokens,), 1 / tokens))


def floor(inputs: Inputs) -> None:
    """The three products in reused buffers; a narrow head is up-cast once, outside the clock (see `upcast`)."""
    student, teacher = upcast(inputs.student.weight), upcast(inputs.teacher.weight)
    hidden_s, hidden_t = inputs.responses.student_ND.detach().float(), inputs.responses.teacher_ND.float()
    vocab = len(student)
    rows = min(inputs.tokens, tile_rows(hidden_s, vocab, None, models=2))
    buffers = torch.empty(rows, vocab), torch.empty(rows, vocab)
    gradient = torch.empty_like(hidden_s)
    for part in torch.arange(inputs.tokens).tensor_split(-(-inputs.tokens // rows)):  # even tiles, as ours are
        tile = slice(int(part[0]), int(part[-1]) + 1)
        torch.mm(hidden_t[tile], teacher.t(), out=buffers[0][: len(part)])
        torch.mm(hidden_s[tile], student.t(), out=buffers[1][: len(part)])
        torch.mm(buffers[1][: len(part)], student, out=gradient[tile])


UPCAST: dict[int, Tensor] = {}


def upcast(weight: Tensor) -> Tensor:
    """The weight in float32, kept."""
    if weight.dtype == torch.float32:
        return weight
    return UPCAST.setdefault(weight.data_ptr(), weight.float())


def ours(inputs: Inputs) -> Tensor:
    """hubdistill, constant alpha."""
    return _ours(inputs, 0.1)


def ours_curriculum(inputs: Inputs) -> Tensor:
    """hubdistill, alpha from each response's log-probabilities, in the same pass."""
    return _ours(inputs, lambda teacher, student, flags: (0.05 + 0.01 * (teacher - student)).clamp(0.01, 0.1))


def _ours(inputs: Inputs, alpha: Any) -> Tensor:
    loss, _ = chunked_divergence(inputs.responses, inputs.student, inputs.teacher, inputs.weights, alpha)
    return torch.autograd.grad(loss, inputs.responses.student_ND)[0]


def plain(inputs: Inputs) -> Tensor:
    """The released arithmetic written out plainly: full logits, log-softmax, both divergences on all rows, autograd."""
    hidden, alpha = inputs.responses.student_ND, 0.1
    log_p = (inputs.responses.teacher_ND @ inputs.teacher.weight.t()).to(compute_dtype(hidden)).log_softmax(-1)
    log_q = (hidden @ inputs.student.weight.t()).to(compute_dtype(hidden)).log_softmax(-1)
    mix_q = torch.logaddexp(log_p + math.log(alpha), log_q + math.log(1 - alpha))
    mix_p = torch.logaddexp(log_p + math.log(1 - alpha), log_q + math.log(alpha))
    skl = (log_p.exp() * (log_p - mix_q)).sum(-1)
    srkl = (log_q.exp() * (log_q - mix_p)).sum(-1)
    lengths = torch.as_tensor(inputs.responses.lengths_B)
    flags = inputs.responses.from_student_B.repeat_interleave(lengths)
    loss = (torch.where(flags, srkl, skl) * inputs.weights).sum()
    return torch.autograd.grad(loss, hidden)[0]


def trl_jsd(inputs: Inputs) -> Tensor:
    """TRL's chunked divergence: JSD at beta 0.5 on the same rows (it has no skewed divergences)."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    hidden = inputs.responses.student_ND
    divergence, _ = ChunkedDivergenceFunction.apply(
        hidden, inputs.student.weight, None, inputs.responses.teacher_ND, inputs.teacher.weight, None, 0.5
    )
    return torch.autograd.grad((divergence * inputs.weights).sum(), hidden)[0]


VARIANTS: dict[str, tuple[str, Callable[[Inputs], Any]]] = {
    "floor": ("three vocabulary products (floor)", floor),
    "ours": ("hubdistill, skl + srkl, constant alpha", ours),
    "curriculum": ("hubdistill, skl + srkl, alpha per response", ours_curriculum),
    "trl": ("TRL chunked, JSD", trl_jsd),
    "plain": ("full logits, skl + srkl written out plainly", plain),
}


def cpu_seconds(run: Callable[[], Any]) -> float:
    """CPU time of one call, over all threads."""
    start = time.process_time()
    run()
    return time.process_time() - start


def timings(inputs: Inputs, names: list[str], repeats: int) -> dict[str, float]:
    """Median CPU seconds per variant, variants interleaved; one round of warm-up where calls are short."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name in names:  # the first products set up threads and pages
        VARIANTS[name][1](inputs.first(min(256, inputs.tokens)))
    for _ in range(repeats):
        for name in names:
            seconds[name].append(cpu_seconds(lambda name=name: VARIANTS[name][1](inputs)))  # type: ignore[misc]
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_mib() -> float:
    """Largest resident size of this process so far, MiB. (Linux's ru_maxrss starts at the parent's size.)"""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB


def extra_memory(name: str, tokens: int, args: argparse.Namespace) -> float:
    """Peak MiB beyond the inputs, in a fresh process."""
    command = [
        sys.executable,
        __file__,
        "--tokens",
        str(tokens),
        "--vocab",
        str(args.vocab),
        "--width",
        str(args.width),
    ]
    command += [
        "--response",
        str(args.response),
        "--dtype",
        args.dtype,
        "--threads",
        str(args.threads),
        "--peak-of",
        name,
    ]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def print_peak(args: argparse.Namespace) -> None:
    """Child process: run one variant once and print how far it raised the peak. Imports and threads come first."""
    run = VARIANTS[args.peak_of][1]
    run(make_inputs(8, 64, 8, getattr(torch, args.dtype)))
    inputs = make_inputs(args.tokens, args.vocab, args.width, getattr(torch, args.dtype), args.response)
    for weight in (inputs.student.weight, inputs.teacher.weight):
        if args.peak_of == "floor":
            upcast(weight)
    before = peak_mib()
    run(inputs)
    print(peak_mib() - before)


def to_float64(inputs: Inputs) -> Inputs:
    """The same numbers in float64."""
    old = inputs.responses
    student = old.student_ND.detach().double().requires_grad_()
    responses = replace(old, student_ND=student, teacher_ND=old.teacher_ND.double())
    heads = [Head(head.weight.double()) for head in (inputs.student, inputs.teacher)]
    return Inputs(responses, heads[0], heads[1], inputs.weights.double())


def errors(args: argparse.Namespace) -> tuple[float, float]:
    """Relative distance of our gradient, and of the plainly written one, from the latter in float64."""
    inputs = make_inputs(256, min(args.vocab, 32768), args.width, getattr(torch, args.dtype))
    exact = plain(to_float64(inputs))
    return tuple(float((run(inputs).double() - exact).norm() / exact.norm()) for run in (ours, plain))  # type: ignore[return-value]


def row(name: str, tokens: int, seconds: dict[str, float], args: argparse.Namespace) -> str:
    """One line of the table."""
    ratio = seconds[name] / seconds["floor"]
    memory = extra_memory(name, tokens, args)
    return f"| {VARIANTS[name][0]} | {tokens} | {seconds[name]:.2f} s | {ratio:.2f}x | {memory:.0f} MiB |"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048, help="response tokens N")
    parser.add_argument("--vocab", type=int, default=151936, help="vocabulary V")
    parser.add_argument("--width", type=int, default=896, help="hidden size D of both models")
    parser.add_argument("--response", type=int, default=128, help="tokens per response")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
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
    return args


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    if args.peak_of:
        return print_peak(args)
    inputs = make_inputs(args.tokens, args.vocab, args.width, getattr(torch, args.dtype), args.response)
    print(f"{date.today()}, {args.threads} threads, {platform.machine()}, torch {torch.__version__}, {args.dtype}, "
          f"V={args.vocab}, D={args.width}, {args.repeats} repeats\n")  # fmt: skip
    print("| variant | tokens | CPU time | against the floor | extra memory |\n|---|---|---|---|---|")
    short = min(args.plain_tokens, args.tokens)
    names = [name for name in VARIANTS if name not in args.skip]
    if short < args.tokens and "plain" in names:
        names.remove("plain")
    seconds = timings(inputs, names, args.repeats)
    for name in names:
        print(row(name, args.tokens, seconds, args), flush=True)
    if short < args.tokens and "plain" not in args.skip:
        names = ["floor", "ours", "plain"]
        seconds = timings(inputs.first(short), names, args.repeats)
        for name in names:
            print(row(name, short, seconds, args), flush=True)
    if "plain" not in args.skip:
        mine, theirs = errors(args)
        print(f"\nGradient against float64, relative distance: hubdistill {mine:.1e}, written out plainly {theirs:.1e}")
    return None


if __name__ == "__main__":
    main()
