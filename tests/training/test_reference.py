"""DPO and MiniLLM in rounds: held against the student as it was before each of them, also after an interruption."""

from __future__ import annotations

import json
import math

import pytest
import torch

from tests.training.helpers import adapter_of, make_pairs, train

STILL = {"learning_rate": 1e-9}


def losses(files):
    return [row["loss"] for row in map(json.loads, (files.folder / "metrics.jsonl").read_text().splitlines()) if "loss" in row]


def test_every_round_begins_at_the_student_before_it(tmp_path):
    """Where student and reference are the same model, the margin is 0 and the loss log 2, whatever the responses."""
    pairs = make_pairs(tmp_path / "pairs", 12)
    _, first, _ = train(tmp_path / "1", pairs, loss={"preset": "dpo"}, rounds=2)
    _, second, _ = train(tmp_path / "2", pairs, loss={"preset": "dpo"}, round=2, rounds=2, previous=tmp_path / "1")
    for files in (first, second):
        assert losses(files)[0] == pytest.approx(math.log(2), abs=1e-4)
    assert losses(first)[-1] < math.log(2) - 1e-3


def test_dpkd_is_held_against_the_teacher(tmp_path):
    pairs = make_pairs(tmp_path / "pairs", 12)
    _, files, _ = train(tmp_path / "1", pairs, loss={"preset": "dpkd"}, rounds=1, **STILL)
    assert abs(losses(files)[0] - math.log(2)) > 0.05


def test_a_policy_gradient_begins_on_policy(tmp_path, monkeypatch):
    """Where student and reference are the same model, every token weighs what it is worth: no clip is reached."""
    from hubdistill.losses import policy_gradient

    pairs, policy = make_pairs(tmp_path / "pairs", 12), {"preset": "minillm", "student_responses": "round"}
    found = {}
    for name, clip in (("as it is", 0.2), ("no room", 1e-4)):
        with monkeypatch.context() as patch:
            patch.setattr(policy_gradient, "RATIO_CLIP", clip)
            _, first, _ = train(tmp_path / name / "1", pairs, loss=policy, shared=(), rounds=2, **STILL)
            _, second, _ = train(tmp_path / name / "2", pairs, loss=policy, shared=(), round=2, rounds=2, previous=tmp_path / name / "1", **STILL)
        found[name] = losses(first) + losses(second)
    assert found["as it is"] == pytest.approx(found["no room"], abs=1e-5)
    _, far, _ = train(tmp_path / "far", pairs, loss=policy, shared=(), rounds=1, learning_rate=0.03)
    assert abs(losses(far)[-1] - found["as it is"][-1]) > 1e-2


@pytest.mark.parametrize("preset", ["dpo", "minillm"])
def test_an_interrupted_round_keeps_its_reference(tmp_path, monkeypatch, preset):
    from hubdistill.training import rounds
    from hubdistill.training.trainer import ContrastiveTrainer

    pairs = make_pairs(tmp_path / "pairs", 12)
    settings = {"loss": {"preset": preset}, "rounds": 1, "save_every": 1, "pairs_per_step": 2, "micro_batch": 1, "shared": () if preset == "minillm" else ("teacher", "student")}
    whole, _, _ = train(tmp_path / "whole", pairs, **settings)
    compute = ContrastiveTrainer.compute_loss

    def cut(self, *args, **kwargs):
        if self.state.global_step == 2:
            raise KeyboardInterrupt
        return compute(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ContrastiveTrainer, "compute_loss", cut)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "cut", pairs, **settings)
    assert rounds.get_last_checkpoint(str(tmp_path / "cut" / "checkpoints"))
    resumed, _, _ = train(tmp_path / "cut", pairs, **settings)
    for (name, one), other in zip(adapter_of(whole).items(), adapter_of(resumed).values(), strict=True):
        assert torch.equal(one, other), name
