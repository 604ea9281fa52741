"""The preference losses that DistiLLM-2 is held against: DPO (eq. 3) and DPKD (eq. 4), on the pairs of a round.

P pairs, N tokens. Of each pair the teacher's response is preferred to the student's. What a response's likelihood is held
against is the student as it was before the round (DPO: Rafailov et al. 2023, arXiv 2305.18290), or the teacher (DPKD: Li et
al. 2024, arXiv 2406.19774).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from hubdistill.losses.chunked import Responses, Tokens, chunked_divergence, label_logps
from hubdistill.losses.head import Head


@dataclass(frozen=True)
class Preference:
    """How strongly pairs are told apart (lambda), over how many pairs the mean runs, and the vocabulary both heads share."""

    strength: float
    pairs: int
    vocab: int | None = None
    budget_bytes: int | None = None


def preference_loss(responses: Responses, student_head: Head, teacher_head: Head, settings: Preference, reference_logp_N: Tensor | None = None) -> tuple[Tensor, Tokens]:
    """1/pairs sum over pairs of -log sigmoid(lambda [log q(y_t)/r(y_t) - log q(y_s)/r(y_s)]), log-probabilities summed over tokens.

    The k-th teacher response and the k-th student response are a pair. r is the teacher, or gave `reference_logp_N`. Its gradient is that of NLLs with weights that are known once the margin is, so the logits are never
    stored here either. Micro-batches add up. Raises ValueError where responses are not in pairs.
    """
    lengths = torch.as_tensor(responses.lengths_B)
    flags = responses.from_student_B.cpu()
    if int(flags.sum()) * 2 != len(flags):
        raise ValueError(f"{int(flags.sum())} student responses among {len(flags)}; a preference needs one of each in every pair")
    student_B = _sums(label_logps(responses.student_ND.detach(), student_head, responses.labels_N, settings.vocab, settings.budget_bytes), lengths)
    if reference_logp_N is None:
        reference_logp_N = label_logps(responses.teacher_ND, teacher_head, responses.labels_N, settings.vocab, settings.budget_bytes)
    reference = _sums(reference_logp_N, lengths)
    ratio_B = student_B - reference.to(student_B)
    margin_P = settings.strength * (ratio_B[~flags] - ratio_B[flags])
    pull_P = settings.strength * torch.sigmoid(-margin_P) / settings.pairs
    weight_B = torch.empty_like(ratio_B)
    weight_B[~flags], weight_B[flags] = pull_P, -pull_P
    weights_N = weight_B.repeat_interleave(lengths.to(weight_B.device))
    nll, tokens = chunked_divergence(responses, student_head, teacher_head, weights_N, 0.5, kinds=("nll", "nll"), vocab=settings.vocab, budget_bytes=settings.budget_bytes)
    value = softplus(-margin_P).sum() / settings.pairs
    return nll + (value - nll).detach(), tokens


def _sums(logps_N: Tensor, lengths_B: Tensor) -> Tensor:
    """Of each response (B,), over its tokens."""
    return torch.stack([part.sum() for part in logps_N.split(lengths_B.tolist())])
