"""What `loss_core.py` times: each variant computes a loss and its gradient to the student's hidden states.

Inputs are the same on every call: hidden states and heads whose logits have a language model's spread.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hubdistill.losses.budget import whole_budget
from hubdistill.losses.chunked import Head, Responses, chunked_divergence
from hubdistill.losses.head import compute_dtype
from hubdistill.losses.tiles import tile_rows
from hubdistill.models.hardware import main_memory


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


def make_inputs(
    tokens: int, vocab: int, width: int, dtype: torch.dtype, response: int = 128, device: str = "cpu"
) -> Inputs:
    """Inputs of one shape, the same on every call; every second response of `response` tokens is the student's."""
    torch.manual_seed(0)

    def normal(rows: int, scale: float) -> Tensor:
        return torch.randn(rows, width, dtype=dtype, device=device).mul_(scale)

    count = max(2, tokens // response)
    lengths = [tokens // count] * count
    flags = torch.arange(count, device=device) % 2 == 1
    # a teacher that shares most of its logits with the student, as after the warm-up
    hidden = [normal(tokens, 1.0)]
    hidden.append(normal(tokens, 0.4).add_(hidden[0], alpha=0.9))
    heads = [Head(normal(vocab, 3 / math.sqrt(width)))]
    heads.append(Head(normal(vocab, 0.4 * 3 / math.sqrt(width)).add_(heads[0].weight, alpha=0.9)))
    labels = torch.randint(0, vocab, (tokens,), device=device)
    responses = Responses(hidden[0].requires_grad_(), hidden[1], labels, lengths, flags)
    return Inputs(responses, heads[0], heads[1], torch.full((tokens,), 1 / tokens, device=device))


def floor(inputs: Inputs) -> None:
    """The three products in reused buffers, in the type they are fastest in (see `upcast`)."""
    student, teacher = upcast(inputs.student.weight), upcast(inputs.teacher.weight)
    hidden_s = inputs.responses.student_ND.detach().to(student.dtype)
    hidden_t = inputs.responses.teacher_ND.to(student.dtype)
    vocab = len(student)
    rows = min(inputs.tokens, tile_rows(hidden_s, vocab, None, models=2))
    buffers = student.new_empty(rows, vocab), student.new_empty(rows, vocab)
    gradient = torch.empty_like(hidden_s)
    for part in torch.arange(inputs.tokens).tensor_split(-(-inputs.tokens // rows)):  # even tiles, as ours are
        tile = slice(int(part[0]), int(part[-1]) + 1)
        torch.mm(hidden_t[tile], teacher.t(), out=buffers[0][: len(part)])
        torch.mm(hidden_s[tile], student.t(), out=buffers[1][: len(part)])
        torch.mm(buffers[1][: len(part)], student, out=gradient[tile])


UPCAST: dict[int, Tensor] = {}


def upcast(weight: Tensor) -> Tensor:
    """On CPU the weight in float32, kept, for its products in narrower types are slow; elsewhere as it is."""
    if weight.dtype == torch.float32 or weight.device.type != "cpu":
        return weight
    return UPCAST.setdefault(weight.data_ptr(), weight.float())


def ours(inputs: Inputs) -> Tensor:
    """hubdistill, constant alpha."""
    return _ours(inputs, 0.1)


def ours_curriculum(inputs: Inputs) -> Tensor:
    """hubdistill, alpha from each response's log-probabilities, in the same pass."""
    return _ours(inputs, lambda teacher, student, flags: (0.05 + 0.01 * (teacher - student)).clamp(0.01, 0.1))


def _ours(inputs: Inputs, alpha: Any) -> Tensor:
    whole = whole_budget(inputs.weights.device.type, main_memory())  # as the trainer does
    loss, _ = chunked_divergence(inputs.responses, inputs.student, inputs.teacher, inputs.weights, alpha, whole_bytes=whole)
    return torch.autograd.grad(loss, inputs.responses.student_ND)[0]


def plain(inputs: Inputs) -> Tensor:
    """Eq. 2 written out plainly: full logits, log-softmax, both divergences on all rows, autograd."""
    hidden, alpha = inputs.responses.student_ND, 0.1
    log_p = (inputs.responses.teacher_ND @ inputs.teacher.weight.t()).to(compute_dtype(hidden)).log_softmax(-1)
    log_q = (hidden @ inputs.student.weight.t()).to(compute_dtype(hidden)).log_softmax(-1)
    mix_q = torch.logaddexp(log_p + math.log(alpha), log_q + math.log(1 - alpha))
    mix_p = torch.logaddexp(log_p + math.log(1 - alpha), log_q + math.log(alpha))
    skl = (log_p.exp() * (log_p - mix_q)).sum(-1)
    srkl = (log_q.exp() * (log_q - mix_p)).sum(-1)
    flags = inputs.responses.from_student_B
    flags = flags.repeat_interleave(torch.as_tensor(inputs.responses.lengths_B, device=flags.device))
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


def liger_jsd(inputs: Inputs) -> Tensor:
    """Liger's fused linear JSD on the same rows (it has no skewed divergences)."""
    return torch.autograd.grad(liger_loss(inputs.responses, inputs.student, inputs.teacher), inputs.responses.student_ND)[0]


def liger_loss(responses: Responses, student: Head, teacher: Head, *, compiled: bool = True) -> Tensor:
    """Mean JSD over the rows, nats. On CUDA Liger's kernels with a frozen head; on a CPU, where those do not run, its chunked loss in torch,
    without cross-entropy, compiled (3.5 times faster than not); it has no frozen head, so the head's gradient is formed and dropped."""
    hidden, frozen = responses.student_ND, (responses.teacher_ND, teacher.weight)
    if hidden.is_cuda:
        from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD

        return LigerFusedLinearJSD(jsd_beta=0.5)(hidden, student.weight, *frozen, shift_labels=None)
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.5, compiled=compiled)
    return loss(hidden, student.weight, *frozen, responses.labels_N)


def our_jsd(responses: Responses, student: Head, teacher: Head) -> Tensor:
    """What `liger_loss` has to give."""
    weights = torch.full(responses.labels_N.shape, 1 / len(responses.labels_N), device=responses.labels_N.device)
    return chunked_divergence(responses, student, teacher, weights, 0.5, kinds=("jsd", "jsd"))[0]


VARIANTS: dict[str, tuple[str, Callable[[Inputs], Any]]] = {
    "floor": ("three vocabulary products (floor)", floor),
    "ours": ("hubdistill, skl + srkl, constant alpha", ours),
    "curriculum": ("hubdistill, skl + srkl, alpha per response", ours_curriculum),
    "trl": ("TRL chunked, JSD", trl_jsd),
    "liger": ("Liger fused, JSD", liger_jsd),
    "plain": ("full logits, both divergences on all rows", plain),
}


def to_float64(inputs: Inputs) -> Inputs:
    """The same numbers in float64."""
    old = inputs.responses
    student = old.student_ND.detach().double().requires_grad_()
    responses = replace(old, student_ND=student, teacher_ND=old.teacher_ND.double())
    heads = [Head(head.weight.double()) for head in (inputs.student, inputs.teacher)]
    return Inputs(responses, heads[0], heads[1], inputs.weights.double())
