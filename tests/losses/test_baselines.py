"""Each baseline's loss against an oracle that shares no code with it: TRL's GKD, torch's cross-entropy, plain float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hubdistill.losses.chunked import Responses
from hubdistill.losses.contrastive import PRESETS, contrastive_loss
from hubdistill.losses.schedules import beta_at
from tests.losses import plain

LENGTHS = [3, 7, 2, 5]


def trl(beta: float):
    """TRL's generalised JSD: 0 is forward KL, 1 reverse KL (of logits, summed over a response, divided by its length)."""
    from trl.experimental.gkd import GKDTrainer

    return lambda student, teacher, labels: GKDTrainer.generalized_jsd_loss(student[None], teacher[None], labels=labels[None], beta=beta, reduction="batchmean")


def skewed_reverse(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """sum q log(q / (0.9 p + 0.1 q)) with probabilities, as section 3.1 of DistiLLM prints it."""
    q, p = torch.softmax(student, -1), torch.softmax(teacher, -1)
    return (q * (q / (0.9 * p + 0.1 * q)).log()).sum(-1).mean()


def nll(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(student, labels)


ORACLES = {
    "sft": (nll, None), "seqkd": (nll, None), "kd": (trl(0), None), "imitkd": (None, trl(0)), "gkd": (trl(0.5), trl(0.5)),
    "distillm": (skewed_reverse, skewed_reverse), "kl": (trl(0), trl(0)),
}  # fmt: skip


def by_hand(case: plain.Case, flags: list[int], oracles) -> Tensor:
    """Half the mean over all responses of the oracle of each, with the logits of plain matrix products."""
    parts = [tensor.split(LENGTHS) for tensor in (case.responses.student_ND, case.responses.teacher_ND, case.responses.labels_N)]
    values = []
    for student, teacher, labels, flag in zip(*parts, flags, strict=True):
        values.append(oracles[flag](student @ case.student.weight.T, teacher @ case.teacher.weight.T, labels))
    return 0.5 * torch.stack(values).mean()


@pytest.mark.parametrize("name", ORACLES)
def test_a_baseline_is_what_its_oracle_says(name):
    preset, oracles = PRESETS[name], ORACLES[name]
    assert preset.sides == tuple(oracle is not None for oracle in oracles)
    flags = [0, 1, 0, 1] if all(oracles) else [int(oracles[0] is None)] * 4
    case = plain.make_case(LENGTHS, flags)
    beta = beta_at(preset.beta, round=1, rounds=2, step=3, steps=4)
    loss, _ = contrastive_loss(case.responses, case.student, case.teacher, preset, beta=beta, alpha=preset.alpha, pairs=len(flags) // sum(preset.sides))
    wanted = by_hand(case, flags, oracles)
    # TRL works in the logits' own precision, and so do we: float64 on both sides
    torch.testing.assert_close(loss, wanted, rtol=1e-9, atol=1e-12)
    found, expected = (torch.autograd.grad(value, case.responses.student_ND)[0] for value in (loss, wanted))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", ["kd", "seqkd", "sft", "imitkd"])
def test_a_side_that_is_left_out_has_weight_zero_in_every_step(name):
    preset = PRESETS[name]
    assert {beta_at(preset.beta, round=r, rounds=3, step=s, steps=5) for r in (1, 2, 3) for s in range(5)} == {float(preset.sides[1])}
    assert preset.prompts_per_pair == 2


def test_presets_that_train_on_both_weigh_responses_as_those_that_train_on_one():
    """With equal responses a step of one-sided and of two-sided kl is the same step: methods share one learning rate."""
    case = plain.make_case(LENGTHS, [0, 1, 0, 1])
    losses = []
    for name, flags, pairs in (("kl", [0, 1, 0, 1], 2), ("kd", [0] * 4, 4), ("imitkd", [1] * 4, 4)):
        old = case.responses
        responses = Responses(old.student_ND, old.teacher_ND, old.labels_N, LENGTHS, torch.tensor(flags, dtype=torch.bool))
        preset = PRESETS[name]
        beta = beta_at(preset.beta, round=1, rounds=1, step=0, steps=1)
        losses.append(contrastive_loss(responses, case.student, case.teacher, preset, beta=beta, alpha=0.1, pairs=pairs)[0])
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(losses[0], losses[2])
