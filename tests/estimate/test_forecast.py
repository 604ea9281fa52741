"""Sizes against files and PEFT, fits against machines, and `plan` and `run` as a user sees them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hubdistill.errors import DoesNotFit
from hubdistill.estimate import costs, memory
from hubdistill.estimate.fit import CHANGES, cheapest_fix, held, too_large
from hubdistill.estimate.forecast import forecast
from hubdistill.estimate.machines import GPUS, gpu_named
from hubdistill.estimate.memory import memory_of
from hubdistill.estimate.weights import adapter_count, count, model_bytes
from hubdistill.plan import make_plan
from hubdistill.recipe import load_recipe
from tests import tiny
from tests.command import called


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    return tiny.write_recipe(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def plan(recipe):
    return make_plan(load_recipe(recipe))


def test_weights_are_those_of_the_files_and_the_adapter_is_pefts(plan, recipe):
    from safetensors import safe_open

    from hubdistill.models.lora import attach_adapter

    with safe_open(recipe.parent / "student" / "model.safetensors", "pt") as file:
        numbers = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118  no dict
    assert count(plan.student).all == numbers
    assert model_bytes(count(plan.student), "bfloat16") == 2 * numbers
    adapted = attach_adapter(tiny.make_model(2), plan.recipe.lora, 0)
    assert adapter_count(plan.student, plan.recipe.lora) == sum(value.numel() for value in adapted.parameters() if value.requires_grad)


def changed(plan, **blocks):
    recipe = plan.recipe.model_copy(update={name: getattr(plan.recipe, name).model_copy(update=values) for name, values in blocks.items()})
    return replace(plan, loaded=replace(plan.loaded, recipe=recipe))


def test_memory_grows_with_batch_and_length_and_falls_with_every_change(plan):
    large = changed(plan, sampling={"batch_size": 64, "max_tokens": 120}, train={"micro_batch": 16, "pairs_per_step": 16})
    machine = gpu_named("T4")
    peaks = {stage.name: stage.total for stage in memory_of(large, machine)}
    assert peaks["training"] > {stage.name: stage.total for stage in memory_of(plan, machine)}["training"]
    for change in CHANGES:
        assert change.useful(large)
        saved = {stage.name: stage.total for stage in memory_of(replace(large, loaded=replace(large.loaded, recipe=change.apply(large.recipe))), machine)}
        assert any(saved[name] < peaks[name] for name in peaks), change.text


def test_a_change_is_written_as_a_user_writes_it(plan, recipe):
    for change in CHANGES:
        assert load_recipe(recipe, change.text.split()).recipe == change.apply(plan.recipe)


def test_the_cheapest_fix_fits_and_the_recipe_as_it_is_does_not(plan, recipe):
    large = changed(plan, sampling={"batch_size": 64})
    stages = memory_of(large, gpu_named("L4"))
    need = max(stage.total for stage in stages)
    small = replace(gpu_named("L4"), memory=need - 1)
    assert too_large(large, small, stages)
    fix = cheapest_fix(large, small)
    fixed = make_plan(load_recipe(recipe, ["sampling.batch_size=64", *fix.text.split()]))
    assert max(held(stage, fixed, small) for stage in memory_of(fixed, small)) <= small.memory
    assert fix.text == "sampling.batch_size=32"  # the first that is tried, and it is the sampling that was too large
    assert fix.plan.recipe == fixed.recipe
    assert cheapest_fix(large, replace(small, memory=1000)) is None


def test_no_part_of_a_fix_can_be_left_out_or_be_milder(plan):
    large = changed(plan, sampling={"batch_size": 64, "max_tokens": 120}, train={"micro_batch": 16, "pairs_per_step": 16})
    needs = sorted(stage.total for stage in memory_of(large, gpu_named("L4")))
    small = replace(gpu_named("L4"), memory=(needs[0] + needs[1]) // 2)  # several stages are too large
    fix = cheapest_fix(large, small)
    assert fix
    assert not too_large(fix.plan, small, memory_of(fix.plan, small))
    named = {change.key: change for change in CHANGES if change.text in fix.text.split()}
    for key, change in named.items():
        for milder in [None, *(one for one in CHANGES if one.key == key)]:
            if milder is change:
                break
            recipe = large.recipe
            for one in (*(other for other in named.values() if other is not change), *([milder] if milder else [])):
                recipe = one.apply(recipe)
            tried = replace(large, loaded=replace(large.loaded, recipe=recipe))
            assert too_large(tried, small, memory_of(tried, small)), (key, milder)


def test_the_smallest_gpu_is_of_the_smallest_class_and_has_a_price(plan, monkeypatch):
    from hubdistill.estimate import fit

    a100, h100 = gpu_named("A100-80GB"), gpu_named("H100-80GB")
    assert h100.memory < a100.memory
    monkeypatch.setattr(fit, "GPUS", (h100, a100))
    assert fit.smallest_gpu(plan) == a100


def test_what_does_not_fit_says_so_with_the_fix(plan, monkeypatch):
    from hubdistill.estimate import machines

    need = max(stage.total for stage in memory_of(plan, gpu_named("L4")))
    tight = replace(gpu_named("L4"), memory=need - 1000)
    monkeypatch.setattr(machines, "GPUS", (tight, *GPUS))
    monkeypatch.setattr("hubdistill.estimate.forecast.gpu_named", lambda name: tight)
    found = forecast(plan, "L4")
    assert not found.fits
    with pytest.raises(DoesNotFit, match=r"takes .* GiB at most, and L4 has .*cheapest change.*smallest GPU") as stop:
        found.require_fit()
    assert stop.value.exit_code == 3


def test_plan_forecasts_on_a_named_gpu(recipe, monkeypatch, capsys):
    code, out, _ = called(monkeypatch, capsys, "plan", recipe, "--gpu", "a100-80gb", "--usd-per-hour", "3", "--json")
    assert not code
    found = json.loads(out)["forecast"]
    assert (found["machine"]["name"], found["machine"]["usd_per_hour"], found["fits"]) == ("A100-80GB", 3, True)
    assert [stage["stage"] for stage in found["memory"]] == ["the teacher answers", "warm-up", "the student answers", "training", "evaluation"]
    assert all(stage["bytes"] == sum(stage["parts"].values()) for stage in found["memory"])
    assert found["usd"] == pytest.approx(3 / 60)  # a run of seconds is billed a minute
    assert {one["name"] for one in found["gpus"]} == {gpu.name for gpu in GPUS}


def test_what_both_write_takes_both_and_nothing_is_counted_that_is_not_sampled(recipe):
    from hubdistill.estimate.costs import Rates, seconds_of

    rates = Rates(pair=0, response={"teacher": 1.0, "student": 100.0}, row=0, scored=0)
    sampling = {}
    for name in ("distillm2", "seqkd", "kd", "imitkd", "off_policy", "skd", "loss.fixed_responses=interleaved"):
        plan = make_plan(load_recipe(recipe, [name if "=" in name else f"loss.preset={name}", "train.rounds=3"]))
        sampling[name] = seconds_of(plan, rates)["sampling"] / plan.most_prompts
    assert sampling == {"distillm2": 301, "seqkd": 1, "kd": 0, "imitkd": 300, "off_policy": 101, "skd": 303, "loss.fixed_responses=interleaved": 603}
    plan = make_plan(load_recipe(recipe, ["train.rounds=3", "train.prompts_per_round=2"]))
    assert seconds_of(plan, rates)["sampling"] == plan.most_prompts * 1 + 3 * 2 * 100
    assert seconds_of(plan, replace(rates, pair=1.0))["training"] == 3 * 2
    plan = make_plan(load_recipe(recipe, ["loss.preset=skd"]))
    stages = {stage.name: stage for stage in memory_of(plan, gpu_named("T4"))}
    together, alone = stages["both models answer together"].parts, [stages[f"the {who} answers"].parts for who in ("teacher", "student")]
    assert all(together[name] == sum(parts[name] for parts in alone) for name in ("weights", "keys and values", "activations"))
    apart = replace(plan, loaded=replace(plan.loaded, recipe=plan.recipe.model_copy(update={"teacher": plan.recipe.teacher.model_copy(update={"device": "cuda:1"})})))
    (split,) = (stage for stage in memory_of(apart, gpu_named("T4")) if stage.name == "both models answer together")
    assert (split.parts, split.other_device) == (alone[1], {name: size for name, size in alone[0].items() if name != "libraries"})


def test_an_unknown_gpu_and_a_probe_of_another_machine_are_refused(recipe, monkeypatch, capsys):
    code, _, said = called(monkeypatch, capsys, "plan", recipe, "--gpu", "RTX9000")
    assert (code, "choose from T4" in said) == (2, True)
    code, _, said = called(monkeypatch, capsys, "plan", recipe, "--gpu", "T4", "--probe")
    assert (code, "--probe runs on this machine" in said) == (2, True)


@pytest.mark.parametrize("override", ["teacher.placement=resident", "teacher.placement=cached", "loss.preset=minillm"])
def test_a_probe_runs_the_real_steps(recipe, override, notes):
    from hubdistill.probe import probe

    plan = make_plan(load_recipe(recipe, [override]))
    found = probe(plan, notes)
    assert set(found.memory) == {"the teacher answers", "the student answers", "training"}
    assert found.micro_batch > 0
    assert found.sampled == plan.recipe.sampling.max_tokens == 8
    measured = forecast(plan, found=found).measured
    if found.memory["training"].main is not None:  # Linux
        assert measured["training"] > 100 * 2**20  # Python and torch alone take more


def test_a_model_without_a_config_is_not_forecast(recipe, monkeypatch):
    from hubdistill.cli import _forecast

    plan = make_plan(load_recipe(recipe))
    assert _forecast(replace(plan, teacher=replace(plan.teacher, config={})), None, None, False) == (None, "a model's config is not in the cache; plan once without --offline")


def test_a_run_that_may_not_fit_says_so_before_it_starts(recipe, monkeypatch, capsys, tmp_path):
    from hubdistill.estimate.machines import this_machine

    arguments = ("prompts", recipe, "--output", tmp_path / "run")
    code, _, said = called(monkeypatch, capsys, *arguments)
    assert (code, "more memory" in said) == (0, False)
    tight = replace(this_machine("cpu"), memory=2**20)
    monkeypatch.setattr("hubdistill.estimate.forecast.this_machine", lambda device: tight)
    code, _, said = called(monkeypatch, capsys, *arguments)
    assert code == 0, "the forecast is of the longest prompts and responses"
    assert "warning: the run may need more memory than there is: " in said
    assert "no setting of the recipe changes that; the smallest GPU of the table that it fits as it is: T4" in " ".join(said.split())


def test_the_longest_response_is_held_whole_where_alpha_needs_it(plan, monkeypatch):
    monkeypatch.setattr(memory, "usual_budget", lambda kind: 1)  # a tile of one row

    def loss(of, main_memory):
        return memory._loss(memory.Sizes(of, "cpu", main_memory), 4)

    row, longest = 2 * plan.vocab * 4, plan.recipe.sampling.max_tokens
    assert loss(plan, 16 * longest * row) - loss(plan, 0) == (longest - 1) * row
    assert loss(plan, 16 * longest * row - 16) - loss(plan, 0) == (longest - 2) * row  # one token shorter, a response is still whole
    assert memory._loss(memory.Sizes(plan, "cuda", 10**12), 4) == memory._loss(memory.Sizes(plan, "cuda", 0), 4)
    off = replace(plan, preset=replace(plan.preset, anchor="off"))
    assert loss(off, 16 * longest * row) == loss(off, 0)


@pytest.mark.parametrize("once", [True, False])
def test_a_prompt_that_is_read_once_is_counted_once(plan, monkeypatch, once):
    """By hand: operations of a pair and of an evaluated prompt on a device with time for nothing but products."""
    machine = replace(gpu_named("T4"), kind="cpu", tflops=1e-6)
    recipe, student, teacher = plan.recipe, count(plan.student), count(plan.teacher)
    prompt, response = recipe.prompts.max_tokens, recipe.sampling.max_tokens
    head = 2 * response * plan.vocab * (2 * student.hidden + teacher.hidden)
    if not once:
        monkeypatch.setattr(memory.Sizes, "shared", lambda self, who: False)
    tokens, speed = prompt + 2 * response if once else 2 * (prompt + response), 1e6 * costs.REACHED
    rates = costs.guessed(plan, machine)
    assert rates.pair * speed == pytest.approx(2 * tokens * (2 * student.blocks + teacher.blocks) + 2 * head)
    assert rates.row * speed == pytest.approx(4 * student.blocks * (prompt + response))
    assert rates.scored * speed == pytest.approx(4 * (prompt + response) * (student.blocks + teacher.blocks) + 2 * head)
