"""The warm-up against a plain loop on the response tokens that shares no code with it."""

import json
import math

import pytest
import torch
from trl import SFTTrainer

from hubdistill.errors import TrainingError
from hubdistill.modalities.base import Reading, Row
from hubdistill.modalities.text import TEXT
from hubdistill.specs import TrainSpec, WarmupSpec
from hubdistill.training.warmup import WarmupFiles, warm_up
from tests.training.helpers import adapter_of, fresh_student

PEAK = 0.01


def make_rows(number: int = 6, seed: int = 0) -> list[Row]:
    """Random rows of unequal lengths: a mean over tokens is then no mean over rows."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda low, high: int(torch.randint(low, high, (1,), generator=generator))  # noqa: E731
    return [Row(tuple(draw(4, 34) for _ in range(draw(2, 7))), (*(draw(4, 34) for _ in range(draw(1, 9))), 3)) for _ in range(number)]


def run(folder, rows, tokenizer, *, model=None, progress=None, epochs=2.0, warmup_rate=None, micro_batch=2, **train):
    model = model or fresh_student()
    spec = TrainSpec(**({"pairs_per_step": 4, "micro_batch": micro_batch, "learning_rate": PEAK, "device": "cpu"} | train))
    files = WarmupFiles(folder / "checkpoints", folder / "metrics.jsonl")
    report = warm_up(model, tokenizer, rows, WarmupSpec(epochs=epochs, learning_rate=warmup_rate), spec, files,
                     reading=Reading(modality=TEXT, pad_id=0), accumulation=4 // micro_batch, progress=progress)  # fmt: skip
    metrics = [json.loads(line) for line in files.metrics.read_text().splitlines()]
    return model, report, metrics


def response_nlls(model, row: Row) -> torch.Tensor:
    ids = torch.tensor([[*row.prompt_ids, *row.response_ids]])
    logp = model(input_ids=ids).logits[0, len(row.prompt_ids) - 1 : -1].log_softmax(-1)
    return -logp.gather(-1, torch.tensor(row.response_ids)[:, None])[:, 0]


def cosine(step: int, steps: int, peak: float = PEAK) -> float:
    warm = math.ceil(0.1 * steps)
    return peak * (step / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm))))


def naive_warm_up(steps: list[list[Row]], peak: float = PEAK):
    """AdamW on the mean NLL of a step's response tokens, rows one by one; the losses before each step."""
    student = fresh_student()
    weights = [value for value in student.parameters() if value.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=peak, weight_decay=0.0)
    losses = []
    for number, rows in enumerate(steps):
        loss = torch.cat([response_nlls(student, row) for row in rows]).mean()
        loss.backward()
        losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.param_groups[0]["lr"] = cosine(number, len(steps), peak)
        optimiser.step()
        optimiser.zero_grad()
    return adapter_of(student), losses


def visited(monkeypatch, rows):
    """Record the rows in the order in which the trainer computes losses."""
    seen, places = [], {(*row.prompt_ids, *row.response_ids): row for row in rows}
    original = SFTTrainer.compute_loss

    def spy(self, model, inputs, *args, **kwargs):
        for ids, mask in zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True):
            seen.append(places[tuple(token for token, used in zip(ids, mask, strict=True) if used)])
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(SFTTrainer, "compute_loss", spy)
    return seen


def furthest(found, expected) -> float:
    assert found.keys() == expected.keys()
    return max((found[name] - expected[name]).abs().max().item() for name in expected)


def test_the_warm_up_is_adamw_on_the_mean_nll_of_response_tokens(tmp_path, monkeypatch, tokenizer):
    rows, told = make_rows(), []
    seen = visited(monkeypatch, rows)
    model, report, metrics = run(tmp_path, rows, tokenizer, progress=told.append)
    assert sorted(seen[:6], key=rows.index) == sorted(seen[6:], key=rows.index) == rows, "each epoch visits each row, untouched"
    steps = [seen[0:4], seen[4:6], seen[6:10], seen[10:12]]
    expected, losses = naive_warm_up(steps)
    assert [row["loss"] for row in metrics] == pytest.approx(losses, rel=2e-4)
    assert max(value.abs().max().item() for name, value in expected.items() if "lora_B" in name) > 0.005, "the adapter must have moved"
    assert furthest(adapter_of(model), expected) < 1e-4
    assert report["steps"] == len(told) == 4
    assert report["rows"] == 6
    assert report["loss"] == pytest.approx(sum(losses) / 4, rel=2e-4)


def test_the_first_loss_is_the_nll_of_the_response_tokens_alone(tmp_path, tokenizer):
    rows = make_rows(4)
    _, _, metrics = run(tmp_path, rows, tokenizer, epochs=1)
    with torch.no_grad():
        tokens = [response_nlls(fresh_student(), row) for row in rows]
        everything = [response_nlls(fresh_student(), Row(row.prompt_ids[:1], row.prompt_ids[1:] + row.response_ids)) for row in rows]
    assert metrics[0]["loss"] == pytest.approx(torch.cat(tokens).mean().item(), rel=1e-4)
    assert abs(metrics[0]["loss"] - torch.cat(everything).mean().item()) > 0.01
    assert abs(metrics[0]["loss"] - sum(part.mean().item() for part in tokens) / 4) > 0.01, "not a mean of the rows' means"


def test_the_micro_batch_does_not_change_the_result(tmp_path, tokenizer):
    rows = make_rows()
    by_one, by_two, by_four = (adapter_of(run(tmp_path / str(size), rows, tokenizer, micro_batch=size)[0]) for size in (1, 2, 4))
    assert furthest(by_one, by_two) < 1e-4
    assert furthest(by_four, by_two) < 1e-4


def test_the_warm_up_s_own_learning_rate_comes_before_that_of_the_rounds(tmp_path, monkeypatch, tokenizer):
    rows = make_rows(4)
    visited(monkeypatch, rows)
    model, _, metrics = run(tmp_path, rows, tokenizer, epochs=3, warmup_rate=0.003)
    assert [row["learning_rate"] for row in metrics] == pytest.approx([cosine(step, 3, 0.003) for step in range(3)])
    assert furthest(adapter_of(model), naive_warm_up([rows] * 3, 0.003)[0]) < 1e-4


def test_the_same_adapter_goes_on_and_the_base_stays(tmp_path, tokenizer):
    rows, given = make_rows(4), fresh_student()
    base = {name: value.clone() for name, value in given.named_parameters() if not value.requires_grad}
    names = adapter_of(given).keys()
    once, _, _ = run(tmp_path / "first", rows, tokenizer, model=given)
    after = adapter_of(once)
    assert once is given
    twice, _, metrics = run(tmp_path / "second", rows, tokenizer, model=once)
    assert twice is given
    assert adapter_of(twice).keys() == names
    assert furthest(adapter_of(twice), after) > 1e-3
    with torch.no_grad():
        fresh = torch.cat([response_nlls(fresh_student(), row) for row in rows]).mean().item()
    assert metrics[0]["loss"] < fresh - 0.1, "the second warm-up begins where the first ended"
    assert list(given.peft_config) == ["default"]
    assert all(torch.equal(value, base[name]) for name, value in given.named_parameters() if name in base)


def test_metrics_are_those_of_round_0_and_no_checkpoint_is_left(tmp_path, tokenizer):
    _, _, metrics = run(tmp_path, make_rows(4), tokenizer)
    assert [(row["round"], row["step"]) for row in metrics] == [(0, 1), (0, 2)]
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not list(tmp_path.rglob("README.md"))


def test_nothing_to_train_on_is_an_error_that_says_what_to_do(tmp_path, tokenizer):
    with pytest.raises(TrainingError, match=r"no prompt has a response; set warmup\.kind: none, or warmup\.responses: teacher"):
        run(tmp_path, [], tokenizer)


def test_an_adapter_that_is_not_finite_is_an_error_and_not_a_result(tmp_path, tokenizer):
    model = fresh_student()
    with torch.no_grad():
        next(value for value in model.parameters() if value.requires_grad).fill_(math.nan)
    with pytest.raises(TrainingError, match=r"the warm-up left \d+ adapter weights that are not finite .*; lower warmup\.learning_rate"):
        run(tmp_path, make_rows(4), tokenizer, model=model)
