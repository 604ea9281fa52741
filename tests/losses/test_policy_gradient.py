"""MiniLLM's loss against its formulas in probabilities with all logits, and against the gradient of reverse KL over whole sequences."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hubdistill.losses import policy_gradient
from hubdistill.losses.chunked import Head, Responses
from hubdistill.losses.contrastive import PRESETS, contrastive_loss
from hubdistill.losses.policy_gradient import policy_gradient_loss
from tests.losses import plain

LENGTHS = [3, 7, 1, 5]
ON_POLICY = replace(PRESETS["minillm"], student_responses="round")


def before(case: plain.Case, drift: float) -> Tensor:
    """Log-probabilities of the labels under a student that was a little other; 0 is the same."""
    hidden = case.responses.student_ND.detach()
    noise = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(5), dtype=hidden.dtype)
    return plain.logp(hidden + drift * noise, case.student, case.vocab).gather(-1, case.responses.labels_N[:, None])[:, 0]


def oracle(case: plain.Case, before_N: Tensor, share: float) -> Tensor:
    """Half the mean over responses of the mean over tokens of w KL(q, p) - min(w R, clip(w) R), token by token, in probabilities."""
    total, start = torch.zeros((), dtype=torch.float64), 0
    for length in case.responses.lengths_B:
        rows = range(start, start + length)
        student, teacher = ([torch.softmax(hidden[n] @ head.weight[: case.vocab].T, 0) for n in rows] for hidden, head in
                            ((case.responses.student_ND, case.student), (case.responses.teacher_ND, case.teacher)))  # fmt: skip
        said = [int(case.responses.labels_N[n]) for n in rows]
        for t in range(length):
            q, p, old = student[t], teacher[t], before_N[start + t].exp()
            weight = q[said[t]] / (share * p[said[t]] + (1 - share) * old)
            later = [(teacher[k][said[k]] / student[k][said[k]]).log().detach() for k in range(t + 1, length)]
            later = sum(max(min(float(one), 10.0), -10.0) for one in later) / len(later) if later else 0.0
            single = weight.detach() * (q * (q / p).log()).sum()
            total = total + (single - torch.min(weight * later, weight.clamp(0.8, 1.2) * later)) / length
        start += length
    return 0.5 * total / len(LENGTHS)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.9])
@pytest.mark.parametrize("drift", [0.0, 0.3])
def test_against_the_formulas_with_stored_logits(share, drift):
    case = plain.make_case(LENGTHS, [1] * 4, surplus=(3, 0), spread=2.0)
    old = before(case, drift)
    preset = replace(PRESETS["minillm"], teacher_share=share)
    loss, tokens = contrastive_loss(case.responses, case.student, case.teacher, preset, beta=1.0, alpha=0.1, pairs=4, vocab=case.vocab, reference_logp_N=old)
    wanted = oracle(case, old, share)
    torch.testing.assert_close(loss, wanted)
    found, expected = (torch.autograd.grad(value, case.responses.student_ND)[0] for value in (loss, wanted))
    torch.testing.assert_close(found, expected)
    p, q = (plain.logp(hidden, head, case.vocab) for hidden, head in ((case.responses.teacher_ND, case.teacher), (case.responses.student_ND, case.student)))
    torch.testing.assert_close(tokens.divergence_N, (q.exp() * (q - p)).sum(-1).detach())


def test_both_clips_are_reached_and_matter(monkeypatch):
    case = plain.make_case(LENGTHS, [1] * 4, spread=4.0)
    old = before(case, 1.0)
    loss = lambda: policy_gradient_loss(case.responses, case.student, case.teacher, case.weights, old, 0.0)[0]  # noqa: E731
    as_it_is = loss()
    for name, far in (("RATIO_CLIP", 1e6), ("REWARD_CLIP", 1e6)):
        with monkeypatch.context() as patch:
            patch.setattr(policy_gradient, name, far)
            assert abs(loss() - as_it_is) > 1e-3, name


def test_the_gradient_is_that_of_reverse_kl_over_sequences():
    """All sequences of two tokens, each with its probability: the expectation of the estimator against autograd of sum q log(q/p).

    With two tokens the mean over what comes later is its sum, so the normalisation by length leaves nothing out.
    """
    V, draw = 5, torch.Generator().manual_seed(1)
    weights = [torch.randn(V, width, generator=draw, dtype=torch.float64) for width in (4, 6)]
    states = [torch.randn(1 + V, width, generator=draw, dtype=torch.float64) for width in (4, 6)]  # before the first token, and after each first token
    states[0].requires_grad_()
    q, p = ((state @ weight.T).log_softmax(-1) for state, weight in zip(states, weights, strict=True))
    joint = [(logp[0][:, None] + logp[1:]).flatten() for logp in (q, p)]
    wanted = torch.autograd.grad((joint[0].exp() * (joint[0] - joint[1])).sum(), states[0])[0]
    pairs = [(first, second) for first in range(V) for second in range(V)]
    rows = torch.tensor([row for first, _ in pairs for row in (0, 1 + first)])
    labels = torch.tensor([token for pair in pairs for token in pair])
    responses = Responses(states[0][rows], states[1][rows], labels, [2] * len(pairs), torch.ones(len(pairs), dtype=torch.bool))
    chance = joint[0].detach().exp().repeat_interleave(2)
    old = q.detach()[rows].gather(-1, labels[:, None])[:, 0]
    loss, _ = policy_gradient_loss(responses, Head(weights[0]), Head(weights[1]), chance, old, 0.0)
    torch.testing.assert_close(torch.autograd.grad(loss, states[0])[0], wanted)


def test_micro_batches_add_up():
    case = plain.make_case(LENGTHS, [1] * 4)
    old, share = before(case, 0.3), 0.2
    whole, _ = policy_gradient_loss(case.responses, case.student, case.teacher, case.weights, old, share)
    parts, start = [], 0
    for number, length in enumerate(LENGTHS):
        rows, all_of = slice(start, start + length), case.responses
        one = Responses(all_of.student_ND[rows], all_of.teacher_ND[rows], all_of.labels_N[rows], [length], all_of.from_student_B[number : number + 1])
        parts.append(policy_gradient_loss(one, case.student, case.teacher, case.weights[rows], old[rows], share)[0])
        start += length
    torch.testing.assert_close(sum(parts), whole)


def test_a_policy_gradient_without_the_student_before_is_refused():
    case = plain.make_case(LENGTHS, [1] * 4)
    with pytest.raises(ValueError, match="under the student before the round"):
        contrastive_loss(case.responses, case.student, case.teacher, ON_POLICY, beta=1.0, alpha=0.1, pairs=4)
