"""Logit rows for the tests of `fused.py`, and their divergences in float64; for the interpreter and for real devices."""

from __future__ import annotations

import torch
from torch import Tensor

from hubdistill.losses import divergences
from hubdistill.losses.rows import KERNELS, Block, RowFunctions

KINDS = [(kind, False) for kind in KERNELS] + [("srkl", True)]  # with whether the mixture is detached
ROWS = 4
STYLES = ("usual", "high", "near", "extreme", "one-hot", "far")


def draw(style: str, vocab: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """(teacher, student) float32 logits (N, V)."""
    generator = torch.Generator().manual_seed(len(style))

    def normal(spread: float) -> Tensor:
        return torch.randn(ROWS, vocab, generator=generator) * spread

    student = {
        "usual": lambda: normal(3),
        "high": lambda: normal(3) + 200,  # a large log Z
        "near": lambda: normal(2),
        "extreme": lambda: normal(1).sign() * 80,
        "one-hot": lambda: torch.eye(ROWS, vocab) * 80,
        "far": lambda: normal(3e3),
    }[style]()
    teacher = {
        "usual": lambda: student + normal(1),
        "high": lambda: student - 300 + normal(1),
        "near": lambda: student + normal(0.01),
        "extreme": lambda: normal(1).sign() * 80,
        "one-hot": lambda: torch.eye(ROWS, vocab).roll(1, 0) * 80,
        "far": lambda: normal(3e3),
    }[style]()
    return teacher.to(device), student.to(device)


def exact(
    kind: str, detached: bool, teacher: Tensor, student: Tensor, labels: Tensor, alpha: Tensor, cap: float | None
) -> tuple[Tensor, Tensor]:
    """Value (N,) and gradient (N, V) in float64; dz/dy of the cap at the student's logits as they are."""
    z = student.double().requires_grad_()
    log_p, log_q = teacher.double().log_softmax(-1), z.log_softmax(-1)
    weight = alpha.double()[:, 0]
    value = {
        "nll": lambda: -log_q.gather(-1, labels)[:, 0],
        "tv": lambda: (log_p.exp() - log_q.exp()).abs().sum(-1) / 2,
        "kl": lambda: divergences.kl(log_p, log_q),
        "rkl": lambda: divergences.rkl(log_p, log_q),
        "jsd": lambda: divergences.jsd(log_p, log_q, weight),
        "skl": lambda: divergences.skl(log_p, log_q, weight),
        "srkl": lambda: divergences.srkl(log_p, log_q, weight, "detached" if detached else "exact"),
    }[kind]()
    gradient = torch.autograd.grad(value.sum(), z)[0]
    return value.detach(), gradient * (1 - (z.detach() / cap) ** 2) if cap else gradient


def found(
    functions: RowFunctions, kind: str, detached: bool, teacher: Tensor, student: Tensor, labels: Tensor, alpha: Tensor,
    cap: float | None, into: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The same by row functions, which may overwrite the logits given; the gradient with its per-row factor."""
    scratch = tuple(torch.empty_like(student) for _ in range(functions.scratch))
    known = functions.statistics(kind, teacher, student, labels)
    into = student if into is None else into
    value = functions.divergence(kind, Block(teacher, student, into, alpha, labels, known, scratch, cap, detached))
    return value[:, 0], into.double() * KERNELS[kind].factor(alpha)


def check(
    functions: RowFunctions, kind: str, detached: bool, style: str, *,
    vocab: int, device: str = "cpu", cap: float | None = None, slack: float = 1,
) -> tuple[float, float]:  # fmt: skip
    """Assert value and gradient of drawn rows; -> their errors, of the value relative to at least 1, and of the norm."""
    generator = torch.Generator().manual_seed(vocab)
    teacher, student = draw(style, vocab, device)
    labels = torch.randint(0, vocab, (ROWS, 1), generator=generator).to(device)
    alpha = torch.tensor([[0.01], [0.1], [0.5], [0.99]], device=device)
    value, gradient = exact(kind, detached, teacher, student, labels, alpha, cap)
    mine, slope = found(functions, kind, detached, teacher.clone(), student.clone(), labels, alpha, cap)
    assert mine.isfinite().all()
    assert slope.isfinite().all()
    error = float(((mine - value).abs() / value.abs().clamp_min(1)).max())
    # q (T - <q, T>) may be a small difference of large numbers, and its norm no measure of what rounding does
    size = float(max(gradient.norm(), 0.1 * value.max(), 0.1))
    rough = float((slope - gradient).norm()) / size
    assert error < 1e-6 * slack, f"value off by {error:.1e}"
    assert rough < 1e-5 * slack + (_kink(teacher, student) / size if kind == "tv" else 0), f"gradient off by {rough:.1e}"
    return error, rough


def _kink(teacher: Tensor, student: Tensor) -> float:
    """What the gradient of total variation may be off by because sign(q - p) hangs on a rounding where p and q are equal but
    for one: such an entry moves by q, and the centre by the sum of them. (A GPU's exponential is right to about 1e-6.)"""
    log_p, log_q = teacher.double().log_softmax(-1), student.double().log_softmax(-1)
    q = log_q.exp()
    close = q * ((log_p - log_q).abs() < 2e-6)
    return float((close.norm(dim=-1) + close.sum(-1) * q.norm(dim=-1)).norm())
