"""Memory and time of a model: against sums by hand, and with a clock that a test winds."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hubdistill.evaluation import cost
from hubdistill.evaluation.cost import Costs, decode_seconds, weight_bytes
from hubdistill.models.lora import attach_adapter
from hubdistill.models.quantized import load_4bit
from hubdistill.models.sources import find_model
from hubdistill.specs import LoraSpec, ModelSpec
from hubdistill.targets.int4 import Int4Options, quantization
from tests import tiny

CPU = torch.device("cpu")


def in_4_bit(folder, double: bool):
    return load_4bit(find_model(ModelSpec(model="toy:llama"), folder), "auto", CPU, quantization(Int4Options(double_quant=double)))


@pytest.mark.parametrize("double", [False, True])
def test_the_bytes_of_a_4_bit_model_are_its_halves_of_bytes_its_scales_and_what_stays_floating(tmp_path, double):
    model = in_4_bit(tmp_path, double)
    quantised = [module.weight.quant_state for module in model.modules() if type(module).__name__ == "Linear4bit"]
    weights = sum(state.shape.numel() for state in quantised)
    scales = sum(-(-state.shape.numel() // 64) for state in quantised)
    floating = 4 * (2 * 260 * 64 + 7 * 64)  # embedding, head, norms
    found = weight_bytes(model) - floating - weights // 2
    if not double:
        assert scales * 4 < found < scales * 4 + len(quantised) * 128  # and 16 code values a layer
    else:
        assert scales < found < scales + len(quantised) * (1024 + 256)  # and 256 code values of the scales
    assert weights // 2 < weight_bytes(model)


def test_what_is_tied_counts_once_and_an_adapter_counts():
    untied, tied = tiny.make_model(1), tiny.make_model(1)
    tied.lm_head.weight = tied.model.embed_tokens.weight
    assert weight_bytes(untied) - weight_bytes(tied) == untied.lm_head.weight.nbytes
    before = weight_bytes(untied)
    adapted = attach_adapter(untied, LoraSpec(rank=4, alpha=8), 0)
    assert weight_bytes(adapted) - before == sum(p.nbytes for name, p in adapted.named_parameters() if "lora_" in name) > 0


@pytest.fixture
def calls(monkeypatch):
    """Every call of a model: (which, tokens read, tokens in its cache); a second passes with each."""
    made: list[tuple[int, int, int]] = []
    monkeypatch.setattr(cost.time, "perf_counter", lambda: float(len(made)))

    def watch(model):
        def note(module, args, kwargs):
            cache = kwargs.get("past_key_values")
            made.append((id(model), kwargs["input_ids"].shape[1], cache.get_seq_length() if cache is not None else 0))

        model.register_forward_pre_hook(note, with_kwargs=True)
        return model

    return made, watch


def test_a_token_is_decoded_with_the_cache_and_without_the_time_of_the_prompt(calls):
    made, watch = calls
    model = watch(tiny.make_model(1))
    model.generation_config.eos_token_id = list(range(34))  # every token would end the answer
    assert decode_seconds(model, [[5, 6, 7], [8, 9]], 4) == [1.0, 1.0]
    reads = [(tokens, cached) for _, tokens, cached in made]
    long, short = ([(n, 0), *((1, n + i) for i in range(4))] for n in (3, 2))
    assert reads == [*long, *long, *short]  # the first is not counted


def test_the_models_own_settings_are_put_aside_and_come_back(calls):
    _, watch = calls
    model = watch(tiny.make_model(1))
    before = model.generation_config
    decode_seconds(model, [[5]], 2)
    assert model.generation_config is before


@dataclass
class Scenery:
    """As much of `HeldOut` as costs are taken on."""

    teacher: Any
    prompts: int
    seed: int = 0
    scorer: Any = field(init=False)
    teacher_responses: Any = field(init=False)

    def __post_init__(self):
        self.scorer = SimpleNamespace(teacher=self.teacher)
        self.teacher_responses = SimpleNamespace(rows=lambda: (SimpleNamespace(prompt_id=f"p{i}", prompt_ids=(5, 6 + i)) for i in range(self.prompts)))


def test_each_student_is_timed_in_turn_with_the_teacher_on_the_same_prompts(monkeypatch):
    teacher, student, distilled = (tiny.make_model(seed) for seed in (1, 2, 3))
    took: dict[int, Any] = {id(teacher): itertools.count(1), id(student): itertools.repeat(5), id(distilled): itertools.repeat(7)}
    asked = []

    def seconds(model, prompt, new_tokens):
        asked.append((id(model), tuple(prompt)))
        return float(next(took[id(model)]))

    monkeypatch.setattr(cost, "_seconds", seconds)
    costs = Costs(Scenery(teacher, 3))
    for name, model in (("teacher", teacher), ("student", student), ("distilled", distilled)):
        costs(name, model)
    first = [(id(model), (5, number)) for number in (6, 6, 7, 8) for model in (student, teacher)]
    assert asked[: len(first)] == first
    rows = {(row.metric, row.subject): row for row in costs.measurements()}
    assert [rows["latency", name].value for name in ("teacher", "student", "distilled")] == [5000, 5000, 7000]  # of 2 3 4 and 6 7 8
    assert [rows["latency", name].differences[0].value for name in ("student", "distilled")] == [2000, 0]
    assert rows["latency", "teacher"].differences == ()
    assert {row.n for key, row in rows.items() if key[0] == "latency"} == {3}
    counted = rows["memory", "student"]
    assert (counted.value, counted.low, counted.high, counted.n) == (*[weight_bytes(student) / 2**20] * 3, 0)


def test_without_held_out_prompts_only_memory_is_said():
    teacher, student = tiny.make_model(1), tiny.make_model(2)
    costs = Costs(Scenery(teacher, 0))
    costs("teacher", teacher)
    costs("student", student)
    assert [(row.metric, row.subject) for row in costs.measurements()] == [("memory", "teacher"), ("memory", "student")]
