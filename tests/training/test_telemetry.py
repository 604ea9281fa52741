"""Telemetry against means taken one by one, and the files that a round's bookkeeping leaves."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from hubdistill.losses.chunked import Responses, Tokens
from hubdistill.losses.contrastive import resolve
from hubdistill.losses.schedules import AlphaCurriculum
from hubdistill.training import rounds as rounds_module
from hubdistill.training.telemetry import RoundBookkeeping, Telemetry, metrics_lines
from tests.training.helpers import make_pairs, train

PRESET = resolve({})
ALONE = SimpleNamespace(reduce=lambda sums, reduction: sums)
PER_TOKEN = ("divergence", "teacher_nll", "student_nll", "agreement")
PER_RESPONSE = ("gap", "alpha", "alpha_at_low", "alpha_at_high")


def response(generator, from_student: bool) -> dict:
    """What is known of one response, as plain numbers."""
    number = int(torch.randint(1, 7, (1,), generator=generator))
    draw = lambda: torch.rand(number, generator=generator).tolist()  # noqa: E731
    alpha = (0.01, 0.05, 0.1)[int(torch.randint(0, 3, (1,), generator=generator))]
    return {"from_student": from_student, "divergence": draw(), "teacher_nll": draw(), "student_nll": draw(), "alpha": alpha,
            "agreement": [value > 0.5 for value in draw()]}  # fmt: skip


def micro_batch(rows: list[dict]) -> tuple[Tokens, Responses]:
    flat = lambda key: torch.tensor([value for row in rows for value in row[key]])  # noqa: E731
    total = sum(len(row["divergence"]) for row in rows)
    tokens = Tokens(flat("divergence"), -flat("teacher_nll"), -flat("student_nll"), torch.tensor([row["alpha"] for row in rows]), flat("agreement"))
    responses = Responses(torch.zeros(total, 2), torch.zeros(total, 2), torch.zeros(total, dtype=torch.long),
                          torch.tensor([len(row["divergence"]) for row in rows]), torch.tensor([row["from_student"] for row in rows]))  # fmt: skip
    return tokens, responses


def naive(rows: list[dict]) -> dict[str, float]:
    """Means over all tokens, or all responses, of a side."""
    found = {}
    for side in ("teacher", "student"):
        own = [row for row in rows if row["from_student"] == (side == "student")]
        for key in PER_TOKEN:
            values = [float(value) for row in own for value in row[key]]
            found[f"{side}/{key}"] = sum(values) / len(values)
        probability = [[math.exp(-sum(row[key]) / len(row[key])) for key in ("teacher_nll", "student_nll")] for row in own]
        found[f"{side}/gap"] = sum(p - q if side == "teacher" else q - p for p, q in probability) / len(own)
        found[f"{side}/alpha"] = sum(row["alpha"] for row in own) / len(own)
        found[f"{side}/alpha_at_low"] = sum(row["alpha"] == 0.01 for row in own) / len(own)
        found[f"{side}/alpha_at_high"] = sum(row["alpha"] == 0.1 for row in own) / len(own)
        tenths = {0.01: 0, 0.05: 4, 0.1: 9}  # of [0.01, 0.1]
        found |= {f"{side}/alpha_in_{number}": sum(tenths[row["alpha"]] == number for row in own) / len(own) for number in range(10)}
        found[f"{side}/length"] = sum(len(row["divergence"]) for row in own) / len(own)
    return found


def unequal_batches(seed: int) -> list[list[dict]]:
    generator = torch.Generator().manual_seed(seed)
    return [[response(generator, from_student) for from_student in (False, True) for _ in range(size)] for size in (1, 3, 2)]


def test_a_log_line_has_means_over_all_its_tokens_and_not_means_of_means():
    telemetry, batches = Telemetry(), unequal_batches(0)
    for batch in batches:
        telemetry.add(*micro_batch(batch), PRESET, 0.75)
    found = telemetry.take(ALONE)
    assert found == pytest.approx({"beta": 0.75, "padding": 0.0} | naive([row for batch in batches for row in batch]), rel=1e-5)
    halves = [naive(batch)["teacher/divergence"] for batch in batches]
    assert abs(found["teacher/divergence"] - sum(halves) / 3) > 1e-3, "the batches must differ for this to mean something"


def test_taking_begins_anew():
    telemetry, first, second = Telemetry(), unequal_batches(1)[1], unequal_batches(2)[2]
    assert telemetry.take(ALONE) == {}
    telemetry.add(*micro_batch(first), PRESET, 0.5)
    telemetry.take(ALONE)
    assert telemetry.take(ALONE) == {}
    telemetry.add(*micro_batch(second), PRESET, 0.625, padding=(3, 12))
    assert telemetry.take(ALONE) == pytest.approx({"beta": 0.625, "padding": 0.25} | naive(second), rel=1e-5)


def test_sums_of_other_processes_are_in_the_means():
    here, there = unequal_batches(3)[1:]
    sums = []
    other = Telemetry()
    other.add(*micro_batch(there), PRESET, 0.5)
    other.take(SimpleNamespace(reduce=lambda values, reduction: sums.append(values) or values))
    telemetry = Telemetry()
    telemetry.add(*micro_batch(here), PRESET, 0.5)

    def reduce(values, reduction):
        assert reduction == "sum"
        return values + sums[0]

    assert telemetry.take(SimpleNamespace(reduce=reduce)) == pytest.approx({"beta": 0.5, "padding": 0.0} | naive(here + there), rel=1e-5)


def test_a_side_without_responses_is_left_out():
    telemetry = Telemetry()
    telemetry.add(*micro_batch([row for row in unequal_batches(4)[1] if not row["from_student"]]), PRESET, 0.5)
    found = telemetry.take(ALONE)
    assert {key.split("/")[0] for key in found} == {"beta", "padding", "teacher"}
    assert all(math.isfinite(value) for value in found.values())


def state_of(history, *, step=0, main=True):
    return SimpleNamespace(log_history=history, global_step=step, is_world_process_zero=main)


def read_metrics(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_metrics_file_is_the_trainer_s_history_with_the_round(tmp_path):
    path = tmp_path / "metrics.jsonl"
    bookkeeping = RoundBookkeeping(AlphaCurriculum(PRESET), path, 2)
    history = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}, {"step": 2, "train_runtime": 9.0}]
    bookkeeping.on_log(None, state_of(history), None)
    assert read_metrics(path) == [{"round": 2, "step": 1, "loss": 0.5}, {"round": 2, "step": 2, "loss": 0.25}]


def test_steps_after_the_checkpoint_are_replaced_when_a_round_goes_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    before = RoundBookkeeping(AlphaCurriculum(PRESET), path, 1)
    before.on_log(None, state_of([{"step": step, "loss": 1.0} for step in range(1, 6)]), None)
    after = RoundBookkeeping(AlphaCurriculum(PRESET), path, 1)
    after.on_log(None, state_of([{"step": step, "loss": 1.0} for step in (1, 2)] + [{"step": 3, "loss": 2.0}]), None)
    assert [(row["step"], row["loss"]) for row in read_metrics(path)] == [(1, 1.0), (2, 1.0), (3, 2.0)]


def test_a_resumed_round_holds_every_step_once(tmp_path, monkeypatch):
    pairs = make_pairs(tmp_path / "pairs", 20)
    original = rounds_module.RoundBookkeeping.on_log

    def dies(self, args, state, control, **kwargs):
        original(self, args, state, control, **kwargs)
        if state.global_step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rounds_module.RoundBookkeeping, "on_log", dies)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "cut", pairs, save_every=3)
    assert [row["step"] for row in read_metrics(tmp_path / "cut" / "metrics.jsonl")] == [1, 2, 3, 4]
    train(tmp_path / "cut", pairs, save_every=3)
    assert [row["step"] for row in read_metrics(tmp_path / "cut" / "metrics.jsonl")] == [1, 2, 3, 4, 5]


def test_only_the_main_process_writes(tmp_path):
    bookkeeping = RoundBookkeeping(AlphaCurriculum(PRESET), tmp_path / "metrics.jsonl", 1)
    state = state_of([{"step": 1}], step=1, main=False)
    bookkeeping.on_log(None, state, None)
    bookkeeping.on_save(SimpleNamespace(output_dir=str(tmp_path)), state, None)
    assert list(tmp_path.iterdir()) == []


def test_every_process_takes_part_in_the_curriculum_s_sums_when_saving(tmp_path):
    asked = []
    curriculum = AlphaCurriculum(PRESET, reduce=lambda sums: asked.append(1) or sums)
    bookkeeping = RoundBookkeeping(curriculum, tmp_path / "metrics.jsonl", 1)
    bookkeeping.on_save(SimpleNamespace(output_dir=str(tmp_path)), state_of([], step=1, main=False), None)
    assert asked, "a process that skips the reduction would leave the others waiting"


def test_a_checkpoint_holds_the_curriculum_as_it_is(tmp_path):
    curriculum = AlphaCurriculum(PRESET)
    curriculum.observe(torch.tensor([0.25, 0.5]), torch.tensor([False, True]))
    (tmp_path / "checkpoint-7").mkdir()
    RoundBookkeeping(curriculum, tmp_path / "metrics.jsonl", 1).on_save(SimpleNamespace(output_dir=str(tmp_path)), state_of([], step=7), None)
    assert json.loads((tmp_path / "checkpoint-7" / "curriculum.json").read_text()) == {"round": 1, "anchors": [None, None], "sums": [[0.25, 1.0], [0.5, 1.0]]}


def test_a_step_moves_the_anchor_and_the_progress(tmp_path):
    curriculum, told = AlphaCurriculum(resolve({"anchor": "batch"})), []
    curriculum.observe(torch.tensor([0.25, 0.75, 0.5]), torch.tensor([False, False, True]))
    RoundBookkeeping(curriculum, tmp_path / "metrics.jsonl", 1, told.append).on_step_end(None, None, None)
    assert curriculum.anchors == [0.5, 0.5]
    assert told == [1]


def test_metrics_lines_are_json_with_sorted_keys():
    assert metrics_lines([{"step": 1, "loss": 0.5}, {"step": 2}]) == b'{"loss": 0.5, "step": 1}\n{"step": 2}\n'
    assert metrics_lines([]) == b""
