"""Divergences of a block of logit rows and their gradients in closed form, in place; the inner loop of `chunked.py`.

On CUDA `fused.py` takes the place of these functions, where Triton works; both are reached through `RowFunctions`.

N rows, V vocabulary. p teacher, q student. A kernel gets both models' rows after `normalise`, overwrites them, and
leaves dDivergence/dz_S divided by its per-row factor in the student's rows. Formulas: docs/method.md, checked there
against autograd. Probabilities rather than logarithms where the mixture keeps ratios within 1/alpha: one exponential
and one logarithm per entry is all that is left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Block:
    """What a kernel works on. `teacher`, `student`: (N, V), overwritten; `scratch`: buffers (N, V), as many as asked for."""

    teacher: Tensor
    student: Tensor
    gradient: Tensor | None  # (N, V), where it goes: `student`, or a buffer of a narrower type; None: the value alone
    alpha: Tensor  # (N, 1)
    labels: Tensor  # (N, 1)
    known: PairStats
    scratch: tuple[Tensor, ...]
    soft_cap: float | None  # of the student's head
    detached: bool

    def slope_(self, log_q: Tensor) -> Tensor:
        """Student log-probabilities (N, V), overwritten by dz/dy = 1 - (z/c)^2 of the head's soft cap z = c tanh(y/c)."""
        assert self.soft_cap is not None
        return log_q.add_(self.known.student_log_z).div_(self.soft_cap).square_().neg_().add_(1)


@dataclass(frozen=True)
class Kernel:
    """A divergence: its row function (-> value (N, 1)) and the per-row factor its gradient is still to be scaled by."""

    run: Callable[[Block], Tensor]
    factor: Callable[[Tensor], Tensor | float] = lambda alpha: 1.0
    log_space: bool = False  # rows arrive as log-probabilities instead of probabilities
    needs_alpha: bool = True


class PairStats(NamedTuple):
    """Of N rows of both models, each (N, 1), taken before the logits were overwritten."""

    teacher_logp: Tensor  # of the label
    student_logp: Tensor
    agree: Tensor  # bool: the student's first choice is the teacher's (or ties with it)
    student_log_z: Tensor
    fused: Tensor | None = None  # what `fused.py` found of each row, for itself


@dataclass(frozen=True)
class RowFunctions:
    """The row work of the loss as two functions that name a divergence, before and after alpha is known.

    `statistics` (kind, teacher, student, labels) may overwrite the logits with what `divergence` (kind, block) wants.
    """

    statistics: Callable[[str, Tensor, Tensor, Tensor], PairStats]
    divergence: Callable[[str, Block], Tensor]  # -> value (N, 1)
    scratch: int  # buffers a block needs
    narrow_gradient: bool  # whether the gradient may go to a buffer of a narrower type


def normalise(logits: Tensor, top: Tensor, choice: Tensor | None = None, *, log_space: bool) -> Tensor:
    """Turn logits (N, V) with largest entries `top` (N, 1) into (log-)probabilities, in place; -> log Z (N, 1).

    One fused pass of torch's softmax; log Z comes from the largest entry, which cannot underflow. `choice` (N, 1) is
    where it lies, if that is known.
    """
    (torch.log_softmax if log_space else torch.softmax)(logits, -1, out=logits)
    largest = logits.amax(-1, keepdim=True) if choice is None else logits.gather(-1, choice)
    return top - (largest if log_space else largest.log())


def normalise_pair(teacher: Tensor, student: Tensor, labels: Tensor, *, log_space: bool) -> PairStats:
    """`normalise` for both models' logits (N, V), in place; labels (N, 1)."""
    student_top, choice = student.max(-1, keepdim=True)
    teacher_top = teacher.amax(-1, keepdim=True)
    agree = teacher.gather(-1, choice) == teacher_top
    student_label, teacher_label = student.gather(-1, labels), teacher.gather(-1, labels)
    student_log_z = normalise(student, student_top, choice, log_space=log_space)
    teacher_log_z = normalise(teacher, teacher_top, log_space=log_space)
    return PairStats(teacher_label - teacher_log_z, student_label - student_log_z, agree, student_log_z)


def floor_of(dtype: torch.dtype) -> float:
    """Smallest probability kept: a normal number even after division by 1/alpha, far below what a sum can notice."""
    return torch.finfo(dtype).tiny * 2.0**26


def _finish(block: Block, product: Tensor, centre: Tensor, spare: Tensor) -> None:
    """student := q (T - <q, T>) with product = q T and centre = <q, T>, times dz/dy where the head is capped."""
    if block.soft_cap:  # where q underflows the slope is off, and multiplies a gradient of zero
        block.slope_(torch.log(torch.clamp_min(block.student, floor_of(spare.dtype), out=spare), out=spare))
    torch.addcmul(product, block.student, centre, value=-1, out=block.student)
    if block.soft_cap:
        block.student.mul_(spare)


def _total(rows: Tensor) -> Tensor:
    return rows.sum(-1, keepdim=True)


def _skl(block: Block) -> Tensor:
    """sum p log r, r = p / (a p + (1-a) q); gradient -(1-a) q (r - <q, r>)."""
    p, q, (ratio, work) = block.teacher, block.student, block.scratch
    p.clamp_min_(floor_of(p.dtype))
    torch.lerp(q, p, block.alpha, out=ratio)
    torch.div(p, ratio, out=ratio)
    value = _total(torch.log(ratio, out=work).mul_(p))
    if block.gradient is not None:
        torch.mul(q, ratio, out=work)
        _finish(block, work, _total(work), ratio)
    return value


def _srkl(block: Block) -> Tensor:
    """sum q log s, s = q / ((1-a) p + a q); gradient q (T - <q, T>), T = log s - a s (exact) or log s (detached)."""
    p, q, (ratio, work) = block.teacher, block.student, block.scratch
    q.clamp_min_(floor_of(q.dtype))
    torch.lerp(p, q, block.alpha, out=ratio)
    torch.div(q, ratio, out=ratio)
    torch.log(ratio, out=work)
    if block.gradient is not None and not block.detached:
        torch.addcmul(work, ratio, block.alpha, value=-1, out=ratio).mul_(q)
        value = _total(work.mul_(q))
        _finish(block, ratio, _total(ratio), work)
        return value
    value = _total(work.mul_(q))
    if block.gradient is not None:
        _finish(block, work, value, ratio)
    return value


def _jsd(block: Block) -> Tensor:
    """b KL(p, m) + (1-b) KL(q, m), m = b p + (1-b) q; gradient (1-b) q (log(q/m) - KL(q, m))."""
    p, q, (ratio, work) = block.teacher, block.student, block.scratch
    p.clamp_min_(floor_of(p.dtype))
    q.clamp_min_(floor_of(q.dtype))
    torch.lerp(q, p, block.alpha, out=ratio)
    torch.div(q, ratio, out=work)
    student_kl = _total(work.log_().mul_(q))
    teacher_kl = _total(torch.div(p, ratio, out=ratio).log_().mul_(p))
    if block.gradient is not None:
        _finish(block, work, student_kl, ratio)
    return torch.lerp(student_kl, teacher_kl, block.alpha)


def _rkl(block: Block) -> Tensor:
    """sum q (log q - log p); gradient q (log q - log p - rkl)."""
    log_p, log_q, (work, spare) = block.teacher, block.student, block.scratch
    torch.sub(log_q, log_p, out=work)
    value = _total(work.mul_(log_q.exp_()))
    if block.gradient is not None:
        _finish(block, work, value, spare)
    return value


def _kl(block: Block) -> Tensor:
    """sum p (log p - log q); gradient q - p."""
    log_p, log_q, (work, spare) = block.teacher, block.student, block.scratch
    torch.sub(log_p, log_q, out=work)
    value = _total(work.mul_(log_p.exp_()))
    if block.gradient is not None:
        if block.soft_cap:
            block.slope_(spare.copy_(log_q))
        log_q.exp_().sub_(log_p)
        if block.soft_cap:
            log_q.mul_(spare)
    return value


def _tv(block: Block) -> Tensor:
    """1/2 sum |q - p| = 1 - sum min(p, q); gradient q (T - <q, T>), T = sign(q - p) / 2 (the 1/2 is the factor)."""
    p, q, (work, spare) = block.teacher, block.student, block.scratch
    torch.sub(q, p, out=work)
    value = _total(torch.abs(work, out=spare)).div_(2)
    if block.gradient is not None:
        work.sign_().mul_(q)
        _finish(block, work, _total(work), spare)
    return value


def _nll(block: Block) -> Tensor:
    """-log q(label); gradient q - onehot(label)."""
    log_q, spare = block.student, block.scratch[0]
    if block.gradient is not None:
        if block.soft_cap:
            block.slope_(spare.copy_(log_q))
        log_q.exp_().scatter_add_(-1, block.labels, log_q.new_full(block.labels.shape, -1.0))
        if block.soft_cap:
            log_q.mul_(spare)
    return -block.known.student_logp


KERNELS = {
    "kl": Kernel(_kl, log_space=True, needs_alpha=False),
    "rkl": Kernel(_rkl, log_space=True, needs_alpha=False),
    "skl": Kernel(_skl, factor=lambda alpha: alpha - 1),
    "srkl": Kernel(_srkl),
    "jsd": Kernel(_jsd, factor=lambda b: 1 - b),
    "tv": Kernel(_tv, factor=lambda alpha: 0.5, needs_alpha=False),
    "nll": Kernel(_nll, log_space=True, needs_alpha=False),
}


EAGER = RowFunctions(
    lambda kind, *tensors: normalise_pair(*tensors, log_space=KERNELS[kind].log_space),
    lambda kind, block: KERNELS[kind].run(block),
    scratch=2,
    narrow_gradient=False,
)
