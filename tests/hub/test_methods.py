"""Cards name the method, and claim no other."""

from __future__ import annotations

from dataclasses import replace

from hubdistill.hub.card import render_card
from hubdistill.hub.methods import OTHERS, OURS, method_of
from hubdistill.losses.contrastive import PRESETS
from tests.hub.example_card import FACTS


def test_every_preset_has_a_name():
    ours = {"distillm2", "paper", "released", "cald", "cald_beta", "cald_alpha", "off_policy"}
    assert set(PRESETS) == set(OTHERS) | ours
    assert {name for name in PRESETS if method_of({"name": name, "fixed_responses": "teacher"}) == OURS} == ours


def test_fine_tuning_is_not_called_distillation_unless_the_teacher_speaks():
    plain, by_teacher = (method_of({"name": "sft", "fixed_responses": one}) for one in ("data", "teacher"))
    card = render_card(replace(FACTS, method=plain))
    assert "trained by supervised fine-tuning on" in card
    assert "distilled from" not in card
    assert "- distillation\n" not in card
    assert "## Citation" not in card
    assert "with SeqKD" in render_card(replace(FACTS, method=by_teacher))
