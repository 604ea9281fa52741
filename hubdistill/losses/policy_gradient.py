"""MiniLLM: reverse KL by policy gradient (Gu et al. 2024, arXiv 2306.08543, sections 2.2 and 2.3), on the responses of a round.

p teacher, q student, b the student as it was before the round, m = a p + (1-a) b what the responses were drawn from: a is the
teacher's share (teacher-mixed sampling). N tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hubdistill.losses.chunked import Responses, Tokens, chunked_divergence, label_logps
from hubdistill.losses.head import Head

RATIO_CLIP, REWARD_CLIP = 0.2, 10.0  # of PPO, and in nats of a token: both as the authors' code has them


def policy_gradient_loss(responses: Responses, student_head: Head, teacher_head: Head, weights_N: Tensor, before_logp_N: Tensor, share: float, *,
                         vocab: int | None = None, budget_bytes: int | None = None) -> tuple[Tensor, Tokens]:  # fmt: skip
    """sum_n weights_N[n] (w rkl - min(w R, clip(w) R)), in nats; w = q(y)/m(y) of the token, R the mean of log p/q over the tokens after it.

    The first term is the single step, exact over the vocabulary and without gradient in w; the second is what comes after, with
    its length normalised and PPO's clip, and a gradient in w alone: d(w R) is w R d log q, an NLL whose weight is known before,
    so the logits are never stored here either. `before_logp_N` is log b of the labels. Micro-batches add up.
    """
    labels = responses.labels_N
    student_N = label_logps(responses.student_ND.detach(), student_head, labels, vocab, budget_bytes)
    teacher_N = label_logps(responses.teacher_ND, teacher_head, labels, vocab, budget_bytes)
    ratio_N = (student_N - _log_mixture(teacher_N.to(student_N), before_logp_N.to(student_N), share)).exp()
    rewards_N = (teacher_N - student_N).clamp(-REWARD_CLIP, REWARD_CLIP)
    later_N = torch.cat([_mean_of_later(part) for part in rewards_N.split(torch.as_tensor(responses.lengths_B).tolist())])
    gain_N, clipped_N = ratio_N * later_N, ratio_N.clamp(1 - RATIO_CLIP, 1 + RATIO_CLIP) * later_N
    slope_N = torch.where(gain_N <= clipped_N, gain_N, 0.0)  # clipped, it does not depend on q

    def summed(kind: str, weights: Tensor) -> tuple[Tensor, Tokens]:
        return chunked_divergence(responses, student_head, teacher_head, weights, 0.5, kinds=(kind, kind), vocab=vocab, budget_bytes=budget_bytes)

    step, tokens = summed("rkl", weights_N * ratio_N)
    nll, _ = summed("nll", weights_N * slope_N)
    later = -torch.dot(weights_N, torch.minimum(gain_N, clipped_N))
    return step + nll + (later - nll).detach(), tokens


def _log_mixture(teacher_N: Tensor, before_N: Tensor, share: float) -> Tensor:
    return before_N if share == 0 else torch.logaddexp(teacher_N + math.log(share), before_N + math.log1p(-share))


def _mean_of_later(rewards: Tensor) -> Tensor:
    """For each token of a response the mean reward of those after it; 0 for the last, after which nothing comes."""
    sums = rewards.flip(0).cumsum(0).flip(0) - rewards
    count = torch.arange(len(rewards) - 1, -1, -1, device=rewards.device)
    return sums / count.clamp(min=1)
