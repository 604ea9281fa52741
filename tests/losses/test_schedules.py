"""Beta against tables worked out by hand, and every trap of the alpha curriculum."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from hubdistill.losses.contrastive import PRESETS
from hubdistill.losses.schedules import AlphaCurriculum, beta_at, beta_table

FROZEN = PRESETS["distillm2"]  # alpha_0 0.1, clip 0.01 to 0.1
WIDE = replace(FROZEN, alpha_high=0.5)

# (schedule, rounds, steps, end) -> all values, by hand
TABLES = {
    ("linear", 1, 3, 1.0): [0.5, 0.75, 1.0],
    ("linear", 2, 3, 1.0): [0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
    ("linear", 2, 2, 0.8): [0.5, 0.6, 0.7, 0.8],
    ("linear", 1, 1, 1.0): [0.5],
    ("paper", 1, 4, 1.0): [1.0, 1.0, 1.0, 1.0],
    ("paper", 2, 4, 1.0): [0.75, 1.0, 1.0, 1.0] + [1.0] * 4,
    ("paper", 3, 6, 1.0): [0.5, 2 / 3, 5 / 6, 1, 1, 1] + [5 / 6, 1, 1, 1, 1, 1] + [1] * 6,
    ("paper", 4, 8, 1.0): [0.5, 0.5, 0.625, 0.75, 0.875, 1, 1, 1] + [0.625, 0.75, 0.875, 1, 1, 1, 1, 1]
    + [0.875, 1, 1, 1, 1, 1, 1, 1] + [1] * 8,
    ("released", 2, 4, 1.0): [0.5, 0.625, 0.75, 0.75] * 2,
    ("constant", 2, 3, 1.0): [0.5] * 6,
    ("off", 2, 2, 1.0): [0.0] * 4,
}  # fmt: skip


def betas(schedule, rounds, steps, end=1.0):
    return [
        beta_at(schedule, round=r, rounds=rounds, step=s, steps=steps, end=end)
        for r in range(1, rounds + 1)
        for s in range(steps)
    ]


@pytest.mark.parametrize("case", TABLES, ids=str)
def test_beta_by_hand(case):
    schedule, rounds, steps, end = case
    assert betas(schedule, rounds, steps, end) == pytest.approx(TABLES[case])
    table = beta_table(schedule, rounds=rounds, steps=steps, end=end)
    for row in table.rows:
        mine = TABLES[case][(row.round - 1) * steps : row.round * steps]
        assert (row.first, row.last, row.mean) == pytest.approx((mine[0], mine[-1], sum(mine) / steps))
    assert [row.round for row in table.rows] == list(range(1, rounds + 1))


def test_table_warns_where_the_teacher_term_has_no_weight():
    one = beta_table("paper", rounds=1, steps=10).warning
    assert "round 1: all of 10 steps" in one
    assert "weight 0" in one
    three = beta_table("paper", rounds=3, steps=6).warning
    assert "round 1: 3 of 6" in three
    assert "round 2: 5 of 6" in three
    assert "round 3: all of 6" in three
    for schedule in ("linear", "released", "constant"):
        assert beta_table(schedule, rounds=3, steps=6).warning is None


@pytest.mark.parametrize(("round", "step"), [(0, 0), (3, 0), (1, 4), (1, -1)])
def test_beta_outside_the_run_is_refused(round, step):
    with pytest.raises(ValueError, match="outside the run"):
        beta_at("linear", round=round, rounds=2, step=step, steps=4)


def test_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="choose linear, paper"):
        beta_at("cosine", round=1, rounds=1, step=0, steps=1)


def flags(*values):
    return torch.tensor(values, dtype=torch.bool)


def after_round_one(preset=FROZEN, teacher=0.2, student=0.1):
    """A curriculum in round 2 whose frozen anchors are these two."""
    curriculum = AlphaCurriculum(preset)
    curriculum.observe(torch.tensor([teacher, student]), flags(0, 1))
    curriculum.end_round()
    return curriculum


def expected_alpha(gap, anchor, preset):
    """Algorithm 1, line 11, with Python floats."""
    if gap <= 1e-6:
        return preset.alpha_high if preset.nonpositive_gap == "max" else preset.alpha_low
    return min(max(1 - (1 - preset.alpha) * anchor / gap, preset.alpha_low), preset.alpha_high)


def test_round_one_gives_alpha_0_to_all():
    curriculum = AlphaCurriculum(FROZEN)
    assert curriculum.rule() == curriculum.constant == 0.1
    assert curriculum.alpha(torch.tensor([0.5, -0.5]), flags(0, 1)).tolist() == pytest.approx([0.1, 0.1])


def test_frozen_anchor_is_the_mean_gap_of_round_one_per_side():
    curriculum = AlphaCurriculum(WIDE)
    for step in range(4):
        curriculum.observe(torch.tensor([0.1 * step, 0.4, 0.1]), flags(0, 0, 1))
        curriculum.end_step()
    curriculum.end_round()
    assert curriculum.anchors == pytest.approx([(0 + 0.1 + 0.2 + 0.3 + 4 * 0.4) / 8, 0.1])
    frozen = list(curriculum.anchors)
    curriculum.observe(torch.tensor([0.9, 0.9]), flags(0, 1))
    curriculum.end_step()
    curriculum.end_round()
    assert curriculum.anchors == frozen


@pytest.mark.parametrize("preset", [FROZEN, WIDE, replace(WIDE, nonpositive_gap="min")], ids=["paper", "wide", "min"])
def test_alpha_by_hand(preset):
    curriculum = after_round_one(preset, 0.2, 0.1)
    gaps = [0.19, 0.2, 0.21, 0.3, 0.9, 0.0, -0.3, 1e-9]
    assert curriculum.rule() is curriculum
    for side, anchor in ((0, 0.2), (1, 0.1)):
        found = curriculum.alpha(torch.tensor(gaps), flags(*[side] * len(gaps)))
        assert found.tolist() == pytest.approx([expected_alpha(gap, anchor, preset) for gap in gaps], abs=1e-6)
    assert found.dtype == torch.float32


def test_rule_turns_mean_log_probabilities_into_gaps_by_side():
    """exp of means; teacher - student on teacher responses, student - teacher on student responses."""
    curriculum = after_round_one(WIDE, 0.2, 0.1)
    teacher, student = torch.tensor([0.6, 0.3]).log().requires_grad_(), torch.tensor([0.35, 0.42]).log()
    found = curriculum(teacher, student, flags(0, 1))
    assert not found.requires_grad
    expected = [expected_alpha(0.25, 0.2, WIDE), expected_alpha(0.12, 0.1, WIDE)]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_almost_binary_when_the_upper_clip_is_alpha_0():
    """alpha is strictly inside the clips for gap/m in (0.909, 1) alone."""
    curriculum = after_round_one(FROZEN, 1.0, 1.0)
    ratio = torch.linspace(0.5, 1.5, 1001)
    found = curriculum.alpha(ratio, torch.zeros(1001, dtype=torch.bool))
    inside = ratio[(found > 0.01 + 1e-5) & (found < 0.1 - 1e-5)]
    assert inside.min() > 0.9 / 0.99 - 1e-3
    assert inside.max() < 1.0
    assert len(inside) == pytest.approx(91, abs=2)


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("mean", [-0.1, 0.0, None])
def test_unusable_anchor_means_alpha_0_and_a_warning(side, mean, caplog):
    curriculum = AlphaCurriculum(WIDE)
    curriculum.observe(torch.tensor([0.2]), flags(1 - side))
    if mean is not None:
        curriculum.observe(torch.tensor([mean]), flags(side))
    with caplog.at_level(logging.WARNING):
        curriculum.end_round()
    assert len(caplog.records) == 1
    assert ("teacher", "student")[side] + " responses" in caplog.text
    found = curriculum.alpha(torch.tensor([0.3, 0.3]), flags(side, 1 - side))
    assert found.tolist() == pytest.approx([0.1, expected_alpha(0.3, 0.2, WIDE)])


def test_off_is_constant_and_silent(caplog):
    curriculum = AlphaCurriculum(PRESETS["cald"])
    for _ in range(3):
        curriculum.observe(torch.tensor([-1.0]), flags(0))
        curriculum.end_step()
        curriculum.end_round()
        assert curriculum.rule() == 0.1
    assert not caplog.records


def test_batch_follows_the_last_finished_step_however_it_is_split():
    whole, split = (AlphaCurriculum(replace(WIDE, anchor="batch"), round=2) for _ in range(2))
    gaps, sides = torch.tensor([0.1, 0.3, 0.2, 0.5]), flags(0, 0, 1, 1)
    whole.observe(gaps, sides)
    for row in range(4):
        split.observe(gaps[row : row + 1], sides[row : row + 1])
        assert split.anchors == [None, None]  # unchanged within the step
    for curriculum in (whole, split):
        curriculum.end_step()
        assert curriculum.anchors == pytest.approx([0.2, 0.35])
        curriculum.observe(torch.tensor([0.4, 0.6]), flags(0, 1))
        curriculum.end_step()
        assert curriculum.anchors == pytest.approx([0.4, 0.6])


def test_ema_by_hand():
    curriculum = AlphaCurriculum(replace(WIDE, anchor="ema"), round=2)
    for mean in (0.2, 0.4, 0.1):
        curriculum.observe(torch.tensor([mean, mean / 2]), flags(0, 1))
        curriculum.end_step()
    expected = 0.9 * (0.9 * 0.2 + 0.1 * 0.4) + 0.1 * 0.1
    assert curriculum.anchors == pytest.approx([expected, expected / 2])


@pytest.mark.parametrize("anchor", ["frozen", "batch", "ema"])
def test_resume_in_the_middle_of_a_round(anchor):
    preset = replace(WIDE, anchor=anchor)
    draw = torch.Generator().manual_seed(0)
    micro = [(torch.rand(3, generator=draw), flags(0, 1, 0)) for _ in range(12)]

    def feed(curriculum, parts):
        for number, part in enumerate(parts):
            curriculum.observe(*part)
            if number % 2:
                curriculum.end_step()

    straight, first = AlphaCurriculum(preset), AlphaCurriculum(preset)
    feed(straight, micro)
    feed(first, micro[:6])
    state = json.loads(json.dumps(first.state_dict()))
    assert state == first.state_dict()  # taking it changes nothing
    resumed = AlphaCurriculum(preset)
    resumed.load_state_dict(state)
    feed(resumed, micro[6:])
    for curriculum in (straight, resumed):
        curriculum.end_round()
    assert resumed.anchors == pytest.approx(straight.anchors)
    assert resumed.round == straight.round == 2
    later = AlphaCurriculum(preset)
    later.load_state_dict(json.loads(json.dumps(straight.state_dict())))
    gaps = torch.rand(8, generator=draw)
    assert torch.equal(later.alpha(gaps, gaps > 0.5), straight.alpha(gaps, gaps > 0.5))


@pytest.mark.parametrize("anchor", ["frozen", "batch"])
def test_ranks_share_one_anchor(anchor):
    """Two ranks, unequal shares; a sum over ranks stands for the collective. Resume keeps the global sums once."""
    preset = replace(WIDE, anchor=anchor)
    gaps, sides = torch.tensor([0.1, 0.5, 0.3, 0.2, 0.6]), flags(0, 0, 1, 0, 1)
    single = AlphaCurriculum(preset)
    single.observe(gaps, sides)

    sums = []
    for part in (slice(0, 2), slice(2, 5)):
        rank = AlphaCurriculum(preset)
        rank.observe(gaps[part], sides[part])
        sums.append(rank._local)
    total = sums[0] + sums[1]
    ranks = []
    for part in (slice(0, 2), slice(2, 5)):
        rank = AlphaCurriculum(preset, reduce=lambda local: total)
        rank.observe(gaps[part], sides[part])
        ranks.append(rank)
    assert ranks[0].state_dict() == ranks[1].state_dict()
    resumed = AlphaCurriculum(preset, reduce=lambda local: 2 * local)
    resumed.load_state_dict(ranks[0].state_dict())
    for curriculum in (single, *ranks, resumed):
        curriculum.end_step()
        curriculum.end_round()
        assert curriculum.anchors == pytest.approx([0.8 / 3, 0.45])


def test_mean_probability_does_not_depend_on_length():
    """The raw product of 2000 tokens at probability 0.5 underflows; the geometric mean is 0.5."""
    curriculum = after_round_one(WIDE, 0.2, 0.1)
    teacher = torch.full((2000,), math.log(0.5)).mean()[None]
    found = curriculum(teacher, torch.tensor([0.25]).log(), flags(0))
    assert found.tolist() == pytest.approx([expected_alpha(0.25, 0.2, WIDE)], abs=1e-5)


def test_schedules_and_presets_import_without_torch():
    code = "import sys, hubdistill.losses.contrastive as c; c.resolve({}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
