"""A round of training against a plain loop that shares no code with it, and against itself in other shapes."""

import itertools
import json
import math
from functools import cached_property

import pytest
import torch
from transformers import TrainingArguments

from hubdistill.errors import TrainingError
from hubdistill.training import rounds as rounds_module
from hubdistill.training.trainer import ContrastiveTrainer, learning_rate_factor
from tests import tiny
from tests.training.helpers import adapter_of, fresh_student, make_pairs, train


def naive_divergence(student, teacher, prompt, response, side, alpha):
    """Eq. 3 and 4 of the paper, one sequence, no padding, full logits; gap by the definition of method.md."""
    ids = torch.tensor([[*prompt, *response]])
    log_q = student(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    with torch.no_grad():
        log_p = teacher(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    label = torch.tensor(response)[:, None]
    mean_p, mean_q = log_p.gather(-1, label).mean().exp(), log_q.gather(-1, label).mean().exp()
    if side == "teacher":
        a = alpha((mean_p - mean_q).item(), side)
        value = (log_p.exp() * (log_p - (a * log_p.exp() + (1 - a) * log_q.exp()).log())).sum(-1)
    else:
        a = alpha((mean_q - mean_p).item(), side)
        value = (log_q.exp() * (log_q - ((1 - a) * log_p.exp() + a * log_q.exp()).log())).sum(-1)
    return value, ((mean_p - mean_q) if side == "teacher" else (mean_q - mean_p)).item()


def naive_alpha(anchors):
    """Algorithm 1, line 11, with alpha_0 0.1 and the clip of B.3; constant while there is no anchor."""

    def alpha(gap, side):
        if not anchors or anchors[side] <= 0:
            return 0.1
        return 0.1 if gap <= 1e-6 else min(max(1 - 0.9 * anchors[side] / gap, 0.01), 0.1)

    return alpha


def naive_rounds(rounds_of_pairs, orders, *, per_step=4, peak=0.01, beta_end=1.0, reduction="sequence"):
    """The whole method written plainly: pairs one by one, beta linear over all steps, frozen anchor, AdamW, clipping."""
    student, teacher = fresh_student(), tiny.make_model(1, layers=3)
    weights = [value for value in student.parameters() if value.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=peak, weight_decay=0.0)
    total, done, anchors, gaps = len(rounds_of_pairs), 0, {}, {"teacher": [], "student": []}
    steps = [math.ceil(len(pairs) / per_step) for pairs in rounds_of_pairs]
    for number, (pairs, order) in enumerate(zip(rounds_of_pairs, orders, strict=True)):
        alpha = naive_alpha(anchors)
        for step in range(steps[number]):
            chosen = [pairs[i] for i in order[step * per_step : (step + 1) * per_step]]
            beta = 0.5 + (beta_end - 0.5) * done / (sum(steps) - 1)
            tokens = [sum(len(ids) for ids in side) for side in zip(*((pair.teacher_ids, pair.student_ids) for pair in chosen), strict=True)]
            loss = 0.0
            for pair in chosen:
                up, gap_t = naive_divergence(student, teacher, pair.prompt_ids, pair.teacher_ids, "teacher", alpha)
                down, gap_s = naive_divergence(student, teacher, pair.prompt_ids, pair.student_ids, "student", alpha)
                gaps["teacher"].append(gap_t)
                gaps["student"].append(gap_s)
                if reduction == "token":
                    loss = loss + 0.5 * ((1 - beta) * up.sum() / tokens[0] + beta * down.sum() / tokens[1])
                else:
                    loss = loss + 0.5 * ((1 - beta) * up.mean() + beta * down.mean()) / len(chosen)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            progress = (number + (step + 0.5) / steps[number]) / total
            warm = 0.1
            factor = progress / warm if progress < warm else 0.5 * (1 + math.cos(math.pi * (progress - warm) / (1 - warm)))
            optimiser.param_groups[0]["lr"] = peak * factor
            optimiser.step()
            optimiser.zero_grad()
            done += 1
        if number == 0:
            anchors = {side: sum(values) / len(values) for side, values in gaps.items()}
    return adapter_of(student), anchors


def visited(monkeypatch):
    """Record the prompt ids in the order in which the trainer computes losses."""
    seen = []
    original = ContrastiveTrainer.compute_loss

    def spy(self, model, inputs, *args, **kwargs):
        seen.extend(inputs["micro"].prompt_ids)
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(ContrastiveTrainer, "compute_loss", spy)
    return seen


@pytest.mark.parametrize("loss", [{}, {"beta_end": 0.8, "reduction": "token"}], ids=["default", "other"])
def test_two_rounds_equal_the_method_written_plainly(tmp_path, monkeypatch, loss):
    seen = visited(monkeypatch)
    first, second = make_pairs(tmp_path / "p1", 10, seed=11), make_pairs(tmp_path / "p2", 11, seed=12)
    train(tmp_path / "r1", first, round=1, loss=loss)
    model, files, _ = train(tmp_path / "r2", second, round=2, previous=tmp_path / "r1", loss=loss)
    places = [{pairs[i].prompt_id: i for i in range(len(pairs))} for pairs in (first, second)]
    assert math.ceil(len(first) / 4) == math.ceil(len(second) / 4) == 3, "the plain loop counts on equal rounds"
    orders = [[places[0][key] for key in seen[: len(first)]], [places[1][key] for key in seen[len(first) :]]]
    assert sorted(orders[0]) == list(range(len(first)))
    assert orders[0] != sorted(orders[0]), "pairs are shuffled"
    expected, anchors = naive_rounds([first, second], orders, **loss)
    assert min(anchors.values()) > 0, "the curriculum must be at work in the second round"
    state = json.loads((files.folder / "curriculum.json").read_text())
    assert state["anchors"] == pytest.approx([anchors["teacher"], anchors["student"]], rel=1e-3)
    found = adapter_of(model)
    worst = max((found[name] - expected[name]).abs().max().item() for name in expected)
    moved = max(value.abs().max().item() for name, value in expected.items() if "lora_B" in name)
    assert moved > 0.01, "the adapter must have moved for the comparison to mean something"
    assert worst < 2e-4


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_the_micro_batch_does_not_change_the_result(tmp_path, micro_batch):
    pairs = make_pairs(tmp_path / "pairs", 10)
    expected = adapter_of(train(tmp_path / "a", pairs, micro_batch=2)[0])
    found = adapter_of(train(tmp_path / "b", pairs, micro_batch=micro_batch)[0])
    assert max((found[name] - expected[name]).abs().max().item() for name in expected) < 3e-5


def test_a_machine_with_several_gpus_trains_in_the_same_steps(tmp_path, monkeypatch):
    pairs = make_pairs(tmp_path / "pairs", 10)
    expected = adapter_of(train(tmp_path / "a", pairs)[0])
    inner = TrainingArguments._setup_devices.func

    def sees_two(self):
        device = inner(self)
        self._n_gpu = 2
        return device

    seen = cached_property(sees_two)
    seen.__set_name__(TrainingArguments, "_setup_devices")
    monkeypatch.setattr(TrainingArguments, "_setup_devices", seen)
    found = adapter_of(train(tmp_path / "b", pairs)[0])
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_token_reduction_does_not_depend_on_the_micro_batch_either(tmp_path):
    pairs = make_pairs(tmp_path / "pairs", 10)
    loss = {"reduction": "token"}
    by_two, by_four = (adapter_of(train(tmp_path / str(size), pairs, micro_batch=size, loss=loss)[0]) for size in (2, 4))
    assert max((by_two[name] - by_four[name]).abs().max().item() for name in by_two) < 1e-5
    by_sequence = adapter_of(train(tmp_path / "s", pairs)[0])
    assert max((by_two[name] - by_sequence[name]).abs().max().item() for name in by_two) > 1e-4


def test_gradient_checkpointing_changes_nothing(tmp_path):
    pairs = make_pairs(tmp_path / "pairs", 8)
    plain = adapter_of(train(tmp_path / "a", pairs)[0])
    saved = adapter_of(train(tmp_path / "b", pairs, gradient_checkpointing=True)[0])
    assert max((plain[name] - saved[name]).abs().max().item() for name in plain) < 1e-5


def interrupted(monkeypatch, folder, pairs, at, **settings):
    original = rounds_module.RoundBookkeeping.on_step_end

    def dies(self, args, state, control, **kwargs):
        original(self, args, state, control, **kwargs)
        if state.global_step == at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rounds_module.RoundBookkeeping, "on_step_end", dies)
        with pytest.raises(KeyboardInterrupt):
            train(folder, pairs, save_every=1, **settings)


@pytest.mark.parametrize("loss", [{}, {"anchor": "ema"}])
def test_an_interrupted_round_goes_on_to_the_same_bits(tmp_path, monkeypatch, loss):
    pairs = make_pairs(tmp_path / "pairs", 20)
    whole, files, _ = train(tmp_path / "whole", pairs, save_every=1, loss=loss)
    interrupted(monkeypatch, tmp_path / "cut", pairs, at=4, loss=loss)
    assert not (tmp_path / "cut" / "adapter").exists()
    resumed, cut_files, _ = train(tmp_path / "cut", pairs, save_every=1, loss=loss)
    expected, found = adapter_of(whole), adapter_of(resumed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    for name in ("curriculum.json", "metrics.jsonl"):
        assert (cut_files.folder / name).read_text() == (files.folder / name).read_text()


def test_a_checkpoint_that_was_cut_off_is_passed_over(tmp_path, monkeypatch):
    pairs = make_pairs(tmp_path / "pairs", 20)
    whole = adapter_of(train(tmp_path / "whole", pairs, save_every=1)[0])
    interrupted(monkeypatch, tmp_path / "cut", pairs, at=4)
    (tmp_path / "cut" / "checkpoints" / "checkpoint-3" / "curriculum.json").unlink()
    (tmp_path / "cut" / "checkpoints" / "checkpoint-3" / "trainer_state.json").write_text("{")
    resumed = adapter_of(train(tmp_path / "cut", pairs, save_every=1)[0])
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_checkpoint_of_other_settings_is_not_gone_on_from(tmp_path, monkeypatch):
    pairs = make_pairs(tmp_path / "pairs", 20)
    whole = adapter_of(train(tmp_path / "whole", pairs, inputs="new", learning_rate=0.002)[0])
    interrupted(monkeypatch, tmp_path / "cut", pairs, at=4, inputs="old")
    again = adapter_of(train(tmp_path / "cut", pairs, inputs="new", learning_rate=0.002)[0])
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_metrics_tell_the_method_s_quantities(tmp_path):
    _, files, report = train(tmp_path / "r", make_pairs(tmp_path / "pairs", 10))
    rows = [json.loads(line) for line in (files.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert report["steps"] == 3
    for row in rows:
        assert row["round"] == 1
        assert row["loss"] == pytest.approx(0.5 * ((1 - row["beta"]) * row["teacher/divergence"] + row["beta"] * row["student/divergence"]), rel=0.2)
        for side in ("teacher", "student"):
            assert {f"{side}/{key}" for key in ("divergence", "gap", "alpha", "alpha_at_low", "alpha_at_high", "teacher_nll", "student_nll", "length")} <= row.keys()
            assert row[f"{side}/alpha"] == pytest.approx(0.1)
    assert rows[0]["beta"] == 0.5
    assert rows[0]["teacher/teacher_nll"] > 0


def test_a_loss_that_is_not_finite_names_the_prompts_and_leaves_no_adapter(tmp_path):
    model = fresh_student()
    with torch.no_grad():
        next(value for value in model.parameters() if value.requires_grad).fill_(math.nan)
    with pytest.raises(TrainingError, match=r"the loss is nan at step 1 of round 1, on prompts \d\d, \d\d"):
        train(tmp_path / "r", make_pairs(tmp_path / "pairs", 4), model=model)
    assert not (tmp_path / "r" / "adapter").exists()


def test_learning_rate_is_one_schedule_over_all_rounds():
    values = [learning_rate_factor(i / 1000) for i in range(1001)]
    assert values[0] == 0
    assert max(values) == values[100] == 1
    assert values[-1] == pytest.approx(0, abs=1e-12)
    assert all(a >= b for a, b in itertools.pairwise(values[100:]))


def test_the_same_adapter_is_the_same_files_in_every_process_and_on_every_machine(tmp_path):
    model = fresh_student()
    model.get_base_model().config.save_pretrained(tmp_path / "cache" / "1234")
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "cache" / "1234")
    rounds_module.save_adapter(model, tmp_path / "adapter")
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    names = saved["target_modules"]
    assert len(names) > 2
    assert names == sorted(names)  # not the order of a set, which hangs on the process
    assert saved["base_model_name_or_path"] == "1234"  # nor the place of the base
    assert saved["r"] == model.peft_config["default"].r
