"""The divergences of DistiLLM-2, written to be read: the oracle that the fused loss in `chunked.py` is tested against.

All take log-probabilities `(..., V)` of teacher p and student q, and return nats per token `(...)`, differentiable by
autograd. `alpha` is a number, or a tensor that broadcasts against `(...)`. Everything stays in log space.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

MixGrad = Literal["exact", "detached"]
Weight = float | Tensor


def kl(teacher_logp: Tensor, student_logp: Tensor) -> Tensor:
    """KL(p, q) = sum_v p log(p / q); at least 0."""
    return _expectation(teacher_logp, teacher_logp - student_logp)


def rkl(teacher_logp: Tensor, student_logp: Tensor) -> Tensor:
    """Reverse KL(q, p) = sum_v q log(q / p); at least 0."""
    return _expectation(student_logp, student_logp - teacher_logp)


def skl(teacher_logp: Tensor, student_logp: Tensor, alpha: Weight, mix_grad: MixGrad = "exact") -> Tensor:
    """Skew KL (Ko et al. 2024): KL(p, alpha p + (1 - alpha) q), within [0, -log alpha].

    The student enters through the mixture alone, so `mix_grad` changes nothing here: without that path there would be
    no gradient at all. It is accepted so that skl and srkl are called alike.
    """
    mixture = _log_mixture(teacher_logp, student_logp, alpha)
    return _expectation(teacher_logp, teacher_logp - mixture)


def srkl(teacher_logp: Tensor, student_logp: Tensor, alpha: Weight, mix_grad: MixGrad = "exact") -> Tensor:
    """Skew reverse KL (Ko et al. 2024): KL(q, (1 - alpha) p + alpha q), within [0, -log alpha].

    `mix_grad="detached"` lets no gradient through the mixture, as the authors' released code does.
    """
    mixture = _log_mixture(student_logp, teacher_logp, alpha)
    if mix_grad == "detached":
        mixture = mixture.detach()
    return _expectation(student_logp, student_logp - mixture)


def jsd(teacher_logp: Tensor, student_logp: Tensor, b: Weight) -> Tensor:
    """Generalised JSD of GKD (Agarwal et al. 2024, eq. 1): b KL(p, m) + (1 - b) KL(q, m), m = b p + (1 - b) q."""
    mixture = _log_mixture(teacher_logp, student_logp, b)
    teacher_term = _expectation(teacher_logp, teacher_logp - mixture)
    student_term = _expectation(student_logp, student_logp - mixture)
    return b * teacher_term + (1 - b) * student_term


def tv(teacher_logp: Tensor, student_logp: Tensor) -> Tensor:
    """Total variation 1 - sum_v min(p, q), within [0, 1]: how often a speculative draft from q is rejected by p
    (Leviathan et al. 2023, arXiv 2211.17192, corollary 3.6)."""
    return 1 - torch.minimum(teacher_logp, student_logp).exp().sum(-1)


def _expectation(logp: Tensor, value: Tensor) -> Tensor:
    return (logp.exp() * value).sum(-1)


def _log_mixture(first_logp: Tensor, second_logp: Tensor, weight: Weight) -> Tensor:
    """log(weight * first + (1 - weight) * second) without leaving log space."""
    if isinstance(weight, Tensor):
        weight = weight.unsqueeze(-1)
        return torch.logaddexp(first_logp + weight.log(), second_logp + torch.log1p(-weight))
    return torch.logaddexp(first_logp + math.log(weight), second_logp + math.log1p(-weight))
