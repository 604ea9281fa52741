"""Inputs for the loss tests, and the loss written out plainly: all logits, the oracle's divergences, autograd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hubdistill.losses import divergences
from hubdistill.losses.chunked import Head, Responses


@dataclass(frozen=True)
class Case:
    """One call of the loss. Heads may have more ids than `vocab`."""

    responses: Responses
    student: Head
    teacher: Head
    weights: Tensor
    vocab: int


def make_case(
    lengths: list[int],
    flags: list[int],
    *,
    vocab: int = 61,
    surplus: tuple[int, int] = (0, 0),
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    spread: float = 1.0,
    bias: bool = False,
    scale: float = 1.0,
    soft_cap: float | None = None,
    trainable_head: bool = False,
) -> Case:
    """Random hidden states of unequal widths; `spread` is the logits' standard deviation (before scale)."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    count, widths = sum(lengths), (7, 11)
    weights = [normal(vocab + more, d) * (spread / d**0.5) for more, d in zip(surplus, widths, strict=True)]
    biases = [normal(vocab + more) if bias else None for more in surplus]
    heads = [
        Head(
            weight=w.to(dtype).requires_grad_(trainable_head and side == 0),
            bias=None if b is None else b.to(dtype).requires_grad_(trainable_head and side == 0),
            scale=scale if side == 0 else 1.0,
            soft_cap=soft_cap,
        )
        for side, (w, b) in enumerate(zip(weights, biases, strict=True))
    ]
    hidden = [normal(count, d).to(dtype) for d in widths]
    responses = Responses(
        student_ND=hidden[0].requires_grad_(),
        teacher_ND=hidden[1],
        labels_N=torch.randint(0, vocab, (count,), generator=draw),
        lengths_B=lengths,
        from_student_B=torch.tensor(flags, dtype=torch.bool),
    )
    return Case(responses, heads[0], heads[1], torch.rand(count, generator=draw, dtype=torch.float64).to(dtype), vocab)


def leaves(case: Case) -> list[Tensor]:
    """The tensors that get a gradient."""
    candidates = [case.responses.student_ND, case.student.weight, case.student.bias]
    return [t for t in candidates if t is not None and t.requires_grad]


def as_float64(case: Case) -> Case:
    """The same numbers in float64, with leaves of their own."""
    return _mapped(case, lambda t: t.double() if t.is_floating_point() else t)


def on_device(case: Case, device: str) -> Case:
    """The same on another device, with leaves of their own."""
    return _mapped(case, lambda t: t.to(device))


def _mapped(case: Case, change: Callable[[Tensor], Tensor]) -> Case:
    def leaf(t: Tensor | None) -> Tensor | None:
        return None if t is None else change(t.detach()).detach().requires_grad_(t.requires_grad)

    def head(h: Head) -> Head:
        return replace(h, weight=leaf(h.weight), bias=leaf(h.bias))

    old = case.responses
    tensors = ("student_ND", "teacher_ND", "labels_N", "from_student_B")
    responses = replace(old, **{name: leaf(getattr(old, name)) for name in tensors})
    return Case(responses, head(case.student), head(case.teacher), change(case.weights), case.vocab)


def logp(hidden: Tensor, head: Head, vocab: int) -> Tensor:
    """Log-probabilities (N, V) of one model, from all its logits at once."""
    logits = hidden @ head.weight.T
    if head.bias is not None:
        logits = logits + head.bias
    logits = head.scale * logits
    if head.soft_cap is not None:
        logits = head.soft_cap * torch.tanh(logits / head.soft_cap)
    return logits[:, :vocab].log_softmax(-1)


def divergence(kind: str, case: Case, alpha_N: Tensor, mix_grad: str = "exact") -> Tensor:
    """Per-token divergence (N,) of one kind on all rows."""
    p = logp(case.responses.teacher_ND, case.teacher, case.vocab)
    q = logp(case.responses.student_ND, case.student, case.vocab)
    if kind == "nll":
        return -q.gather(-1, case.responses.labels_N[:, None])[:, 0]
    if kind == "tv":  # not divergences.tv: that one's minimum and this one's absolute value share no step
        return (p.exp() - q.exp()).abs().sum(-1) / 2
    if kind in ("kl", "rkl"):
        return getattr(divergences, kind)(p, q)
    if kind == "jsd":
        return divergences.jsd(p, q, alpha_N)
    return getattr(divergences, kind)(p, q, alpha_N, mix_grad)


def repeat(values_B: Tensor, case: Case) -> Tensor:
    """From one value per response to one per token."""
    return values_B.repeat_interleave(torch.as_tensor(case.responses.lengths_B, device=values_B.device))


def mean_logps(case: Case) -> tuple[Tensor, Tensor]:
    """Mean log-probability (B,) of each response's labels under teacher and student."""
    labels = case.responses.labels_N[:, None]
    result = []
    for hidden, head in ((case.responses.teacher_ND, case.teacher), (case.responses.student_ND, case.student)):
        values = logp(hidden, head, case.vocab).gather(-1, labels)[:, 0].detach()
        result.append(torch.stack([part.mean() for part in values.split(list(case.responses.lengths_B))]))
    return result[0], result[1]


def loss(
    case: Case, alpha_B: Tensor, *, kinds: tuple[str, str] = ("skl", "srkl"), mix_grad: str = "exact"
) -> tuple[Tensor, Tensor]:
    """(loss, divergence_N), the plain way."""
    alpha_N, flags_N = repeat(alpha_B, case), repeat(case.responses.from_student_B, case)
    values = [divergence(kind, case, alpha_N, mix_grad) for kind in kinds]
    found = torch.where(flags_N, values[1], values[0])
    return (found * case.weights).sum(), found
