"""Eq. 2 by hand: presets, both reductions, exact accumulation, telemetry."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hubdistill.losses import contrastive
from hubdistill.losses.chunked import Responses
from hubdistill.losses.contrastive import PRESETS, contrastive_loss, resolve, response_gaps, summarise, telemetry
from hubdistill.losses.schedules import AlphaCurriculum
from hubdistill.specs import LossSpec
from tests.losses import plain

LENGTHS, FLAGS = [3, 7, 2, 5, 4, 6], [0, 1, 0, 1, 0, 1]  # three pairs
PRESET = PRESETS["distillm2"]
TOKEN = replace(PRESET, reduction="token")


def run(case, preset=PRESET, responses=None, **options):
    arguments = dict(beta=0.7, alpha=0.1, pairs=3) | options
    return contrastive_loss(responses or case.responses, case.student, case.teacher, preset, **arguments)


def pieces(case, alpha=0.1, mix_grad="exact"):
    """Plain per-token divergences of each response."""
    _, found = plain.loss(case, torch.full((len(LENGTHS),), alpha, dtype=torch.float64), mix_grad=mix_grad)
    return found.split(LENGTHS)


def by_hand(case, reduction, beta, mix_grad="exact"):
    """Eq. 2, side by side."""
    parts = pieces(case, mix_grad=mix_grad)
    teacher = [part for part, flag in zip(parts, FLAGS, strict=True) if not flag]
    student = [part for part, flag in zip(parts, FLAGS, strict=True) if flag]
    if reduction == "sequence":
        means = [sum(part.mean() for part in side) / 3 for side in (teacher, student)]
    else:
        means = [torch.cat(side).mean() for side in (teacher, student)]
    return 0.5 * ((1 - beta) * means[0] + beta * means[1])


@pytest.mark.parametrize("mix_grad", ["exact", "detached"])
@pytest.mark.parametrize("reduction", ["sequence", "token"])
@pytest.mark.parametrize("beta", [0.5, 0.8, 1.0])
def test_equation_2(reduction, beta, mix_grad):
    case = plain.make_case(LENGTHS, FLAGS)
    loss, _ = run(case, replace(PRESET, reduction=reduction, mix_grad=mix_grad), beta=beta)
    expected = by_hand(case, reduction, beta, mix_grad)
    torch.testing.assert_close(loss, expected)
    found, wanted = (torch.autograd.grad(value, case.responses.student_ND)[0] for value in (loss, expected))
    torch.testing.assert_close(found, wanted)
    if beta == 1.0:  # the teacher term has weight zero
        rows = plain.repeat(~case.responses.from_student_B, case)
        assert found[rows].abs().max() == 0


def micro_batches(case):
    """One pair each."""
    for pair in range(3):
        start, size = sum(LENGTHS[: 2 * pair]), sum(LENGTHS[2 * pair : 2 * pair + 2])
        old, rows, mine = case.responses, slice(start, start + size), slice(2 * pair, 2 * pair + 2)
        yield Responses(
            old.student_ND[rows], old.teacher_ND[rows], old.labels_N[rows], LENGTHS[mine], old.from_student_B[mine]
        )


@pytest.mark.parametrize("preset", [PRESET, TOKEN], ids=["sequence", "token"])
def test_accumulation_is_exact(preset):
    case = plain.make_case(LENGTHS, FLAGS)
    whole, _ = run(case, preset)
    totals = (sum(LENGTHS[::2]), sum(LENGTHS[1::2]))
    summed = sum(run(case, preset, part, pairs=3, side_tokens=totals)[0] for part in micro_batches(case))
    torch.testing.assert_close(summed, whole)
    found, wanted = (torch.autograd.grad(value, case.responses.student_ND)[0] for value in (summed, whole))
    torch.testing.assert_close(found, wanted)
    if preset is PRESET:  # or as a mean of means
        mean = sum(run(case, preset, part, pairs=1)[0] for part in micro_batches(case)) / 3
        torch.testing.assert_close(mean, whole)


def test_curriculum_drives_the_loss():
    """Round 1 collects gaps; in round 2 every response gets the alpha that Algorithm 1 asks for."""
    case = plain.make_case(LENGTHS, FLAGS, spread=3.0)
    preset = replace(PRESET, alpha_high=0.6)
    curriculum = AlphaCurriculum(preset)
    _, tokens = run(case, preset, alpha=curriculum.rule())
    assert tokens.alpha_B.tolist() == pytest.approx([0.1] * 6)
    teacher, student = plain.mean_logps(case)
    sign = torch.tensor([1 - 2 * flag for flag in FLAGS])
    gaps = sign * (teacher.exp() - student.exp())
    torch.testing.assert_close(response_gaps(tokens, case.responses).double(), gaps, rtol=1e-5, atol=1e-7)
    curriculum.observe(response_gaps(tokens, case.responses).abs(), case.responses.from_student_B)
    curriculum.end_round()
    _, tokens = run(case, preset, alpha=curriculum.rule())
    anchors = [gaps[side::2].abs().mean() for side in (0, 1)]
    for alpha, gap, flag in zip(tokens.alpha_B, gaps, FLAGS, strict=True):
        wanted = 0.6 if gap <= 0 else float((1 - 0.9 * anchors[flag] / gap).clamp(0.01, 0.6))
        assert float(alpha) == pytest.approx(wanted, abs=1e-4)


def test_telemetry_by_hand():
    case = plain.make_case(LENGTHS, FLAGS, spread=2.0)
    alphas = torch.tensor([0.01, 0.1, 0.05, 0.1, 0.1, 0.03])

    def rule(teacher, student, from_student):
        found = torch.empty(len(teacher))
        found[~from_student], found[from_student] = alphas[0::2], alphas[1::2]
        return found

    _, tokens = run(case, alpha=rule)
    totals = telemetry(tokens, case.responses, PRESET)
    found = summarise(totals)
    alpha_N = plain.repeat(alphas.double(), case)
    labels = case.responses.labels_N[:, None]
    nll = {
        "teacher_nll": -plain.logp(case.responses.teacher_ND, case.teacher, case.vocab).gather(-1, labels)[:, 0],
        "student_nll": -plain.logp(case.responses.student_ND, case.student, case.vocab).gather(-1, labels)[:, 0],
    }
    means = plain.mean_logps(case)
    rows = plain.repeat(case.responses.from_student_B, case)
    for side, mask, kind in (("teacher", ~rows, "skl"), ("student", rows, "srkl")):
        pick = slice(0 if side == "teacher" else 1, None, 2)
        mine = plain.divergence(kind, case, alpha_N)[mask].mean().detach()
        assert found[f"{side}/divergence"] == pytest.approx(float(mine), rel=1e-6)
        for key, values in nll.items():
            assert found[f"{side}/{key}"] == pytest.approx(float(values[mask].mean().detach()), rel=1e-6)
        gap = (means[0].exp() - means[1].exp())[pick].mean() * (1 if side == "teacher" else -1)
        assert found[f"{side}/gap"] == pytest.approx(float(gap), abs=1e-6)
        assert found[f"{side}/alpha"] == pytest.approx(float(alphas[pick].mean()))
        assert found[f"{side}/length"] == pytest.approx(sum(LENGTHS[pick]) / 3)
    assert found["teacher/alpha_at_low"] == pytest.approx(1 / 3)
    assert found["teacher/alpha_at_high"] == pytest.approx(1 / 3)
    assert found["student/alpha_at_low"] == 0
    assert found["student/alpha_at_high"] == pytest.approx(2 / 3)
    assert [found[f"teacher/alpha_in_{number}"] for number in range(10)] == pytest.approx([1 / 3, 0, 0, 0, 1 / 3, 0, 0, 0, 0, 1 / 3])  # 0.01, 0.05, 0.1
    assert not any("alpha_in_" in key for key in summarise(telemetry(tokens, case.responses, replace(PRESET, anchor="off"))))
    assert all(value.shape == () and not value.requires_grad for value in totals.values())


def test_telemetry_adds_over_micro_batches():
    case = plain.make_case(LENGTHS, FLAGS)
    whole = telemetry(run(case)[1], case.responses, PRESET)
    parts = [telemetry(run(case, responses=part)[1], part, PRESET) for part in micro_batches(case)]
    for key, value in whole.items():
        torch.testing.assert_close(sum(part[key] for part in parts), value)
    one_side = telemetry(run(case)[1], replace(case.responses, from_student_B=torch.zeros(6, dtype=torch.bool)), PRESET)
    assert not any(key.startswith("student/") for key in summarise(one_side))


def test_presets():
    facts = {
        name: (
            p.alpha,
            p.alpha_low,
            p.alpha_high,
            p.anchor,
            p.nonpositive_gap,
            p.mix_grad,
            p.beta,
            p.beta_end,
            p.reduction,
            *(() if p.kinds == ("skl", "srkl") else p.kinds),
            *(() if p.fixed_responses == "teacher" else (p.fixed_responses,)),
            *(() if p.student_responses == "round" else (p.student_responses,)),
            *(() if p.preference == "off" else (p.preference, p.strength)),
            *((p.acceptance, p.top_k, p.teacher_share) if p.interleaved else ()),
            *(("policy gradient",) if p.policy_gradient else ()),
        )
        for name, p in PRESETS.items()
    }
    assert facts == {
        "distillm2": (0.1, 0.01, 0.1, "frozen", "max", "exact", "linear", 1.0, "sequence"),
        "paper": (0.1, 0.01, 0.1, "frozen", "max", "exact", "paper", 1.0, "sequence"),
        "released": (0.1, 0.01, 0.1, "off", "max", "detached", "constant", 1.0, "sequence"),
        "cald": (0.1, 0.01, 0.1, "off", "max", "exact", "constant", 1.0, "sequence"),
        "gkd": (0.5, 0.01, 0.1, "off", "max", "exact", "constant", 1.0, "sequence", "jsd", "jsd"),
        "kl": (0.1, 0.01, 0.1, "off", "max", "exact", "constant", 1.0, "sequence", "kl", "kl"),
        "tvd": (0.1, 0.01, 0.1, "off", "max", "exact", "constant", 1.0, "sequence", "tv", "tv"),
        "cald_beta": (0.1, 0.01, 0.1, "off", "max", "exact", "linear", 1.0, "sequence"),
        "cald_alpha": (0.1, 0.01, 0.1, "frozen", "max", "exact", "constant", 1.0, "sequence"),
        "off_policy": (0.1, 0.01, 0.1, "frozen", "max", "exact", "linear", 1.0, "sequence", "initial"),
        "distillm": (0.1, 0.01, 0.1, "off", "max", "exact", "constant", 1.0, "sequence", "srkl", "srkl", "replay"),
        "imitkd": (0.1, 0.01, 0.1, "off", "max", "exact", "full", 1.0, "sequence", "kl", "kl"),
        "skd": (0.1, 0.01, 0.1, "off", "max", "exact", "full", 1.0, "sequence", "kl", "kl", "interleaved", "top_k", 25, 0.2),
        "minillm": (0.1, 0.01, 0.1, "off", "max", "exact", "full", 1.0, "sequence", "rkl", "rkl", "interleaved", "mixed", 25, 0.2, "policy gradient"),
        "kd": (0.1, 0.01, 0.1, "off", "max", "exact", "off", 1.0, "sequence", "kl", "kl", "data"),
        "seqkd": (0.1, 0.01, 0.1, "off", "max", "exact", "off", 1.0, "sequence", "nll", "nll"),
        "dpo": (0.1, 0.01, 0.1, "off", "max", "exact", "constant", 1.0, "sequence", "nll", "nll", "before", 0.1),
        "dpkd": (0.1, 0.01, 0.1, "off", "max", "exact", "constant", 1.0, "sequence", "nll", "nll", "teacher", 0.1),
        "sft": (0.1, 0.01, 0.1, "off", "max", "exact", "off", 1.0, "sequence", "nll", "nll", "data"),
    }


def test_resolve_takes_a_spec():
    assert resolve({}) == PRESETS["distillm2"]
    for name, preset in PRESETS.items():
        assert resolve(LossSpec(preset=name).model_dump()) == preset
    given = dict(
        preset="cald", alpha=0.2, alpha_range=(0.05, 0.3), anchor="ema", nonpositive_gap="min", mix_grad="detached",
        beta="linear", beta_end=0.9, reduction="token", fixed_responses="data", student_responses="interleaved", strength=0.2, acceptance="typical", top_k=3, epsilon=0.4,
        teacher_share=0.3,
    )  # fmt: skip
    assert set(given) == set(LossSpec.model_fields)  # a field added there must be read here
    assert resolve(LossSpec(**given).model_dump()) == contrastive.LossPreset(
        name="cald", alpha=0.2, alpha_low=0.05, alpha_high=0.3, anchor="ema", nonpositive_gap="min",
        mix_grad="detached", beta="linear", beta_end=0.9, reduction="token", fixed_responses="data", student_responses="interleaved", strength=0.2,
        acceptance="typical", top_k=3, epsilon=0.4, teacher_share=0.3,
    )  # fmt: skip
    with pytest.raises(ValueError, match="choose from distillm2"):
        resolve({"preset": "maxillm"})


@pytest.mark.parametrize("preset", [PRESET, TOKEN], ids=["sequence", "token"])
def test_empty_response_is_refused(preset):
    case = plain.make_case([3, 2], [0, 1])
    responses = replace(case.responses, lengths_B=[3, 2, 0], from_student_B=torch.tensor([False, True, True]))
    with pytest.raises(ValueError, match="no tokens"):
        run(case, preset, responses)


def test_no_pairs_is_refused():
    with pytest.raises(ValueError, match="pairs is 0"):
        run(plain.make_case(LENGTHS, FLAGS), pairs=0)
