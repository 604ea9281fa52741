"""A whole run with `sampling.engine: vllm`, against a process that speaks as vLLM's would: who samples what, with which adapter, and how it resumes."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import pytest

from hubdistill.errors import SamplingError
from hubdistill.pairs import vllm_sampling
from hubdistill.pairs.store import read_responses
from hubdistill.pairs.vllm_sampling import VllmSampler
from hubdistill.plan import make_plan
from hubdistill.recipe import load_recipe
from hubdistill.run import Run
from hubdistill.rundir import RunDirectory
from tests import tiny

ROOT = Path(__file__).parents[1]
FAKE = ROOT / "tests" / "pairs" / "fake_vllm.py"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return tiny.write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture
def distil(recipe, tmp_path, notes, monkeypatch):
    """(folder, how the process behaves, overrides) -> the jobs that it was given."""
    monkeypatch.setattr("hubdistill.plan_checks.vllm_version", lambda: "0.32.0")

    def run(folder, how="well", *overrides):
        started = tmp_path / f"{folder}-{how}-started"
        command = (sys.executable, str(FAKE), how, str(started))
        monkeypatch.setattr("hubdistill.stages.VllmSampler", functools.partial(VllmSampler, command=command, version="0.32.0"))
        plan = make_plan(load_recipe(recipe, ["sampling.engine=vllm", *overrides]))
        try:
            with RunDirectory(tmp_path / folder, notes.stage).locked() as directory:
                Run(plan, directory, notes).distil()
        finally:
            jobs = [json.loads(line) for line in started.read_text().splitlines()] if started.exists() else []
        return jobs

    return run


def test_rounds_are_sampled_by_vllm_with_the_adapter_before(recipe, distil, tmp_path, notes):
    teacher, first, second = distil("run")
    assert sum(note.startswith("vLLM is ready, after ") for note in notes.notes) == 3
    student = recipe.parent / "student"
    assert [job["engine"]["model"] for job in (teacher, first, second)] == [str(recipe.parent / "teacher"), str(student), str(student)]
    assert [job["adapter"] for job in (teacher, first, second)] == [None, str(tmp_path / "run" / "warmup" / "adapter"), str(tmp_path / "run" / "round_1" / "adapter")]
    assert "enable_lora" not in teacher["engine"]
    assert (second["engine"]["enable_lora"], second["engine"]["max_lora_rank"]) == (True, 8)
    assert (teacher["engine"]["dtype"], teacher["engine"]["max_model_len"], teacher["engine"]["generation_config"]) == ("float32", 64 + 8, "vllm")
    assert teacher["params"] == {"temperature": 0.8, "top_p": 0.95, "max_tokens": 8, "stop_token_ids": [3]}
    found = read_responses(tmp_path / "run" / "round_2", "student").manifest
    assert (found["engine"], found["engine_version"], found["sampling"]["engine"]) == ("vllm", "0.32.0", "vllm")
    held_out = read_responses(tmp_path / "run" / "evaluation", "teacher").manifest
    assert held_out["engine"] == held_out["sampling"]["engine"] == "transformers"
    assert json.loads((tmp_path / "run" / "measurements.json").read_text())


def test_a_death_in_the_middle_changes_nothing(distil, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_sampling, "BATCH", 2)
    distil("whole")
    with pytest.raises(SamplingError, match="after 3 of 8 responses, which are kept"):
        distil("cut", "killed-after-3")
    jobs = distil("cut")
    assert [job["questions"] for job in jobs] == [5, 8, 8]
    for name in ("round_1/teacher.parquet", "round_2/student.parquet", "round_2/adapter/adapter_model.safetensors", "measurements.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_another_engine_samples_anew_and_other_memory_does_not(distil, tmp_path, notes):
    distil("run")
    notes.stages.clear()
    assert distil("run", "wrong-id", "sampling.vllm.gpu_memory_utilization=0.5") == []
    assert {what for name, what in notes.stages if "round" in name} == {"skipped"}
    notes.stages.clear()
    distil("run", "well", "sampling.engine=transformers")
    assert ("round_1-teacher", "started") in notes.stages
    assert read_responses(tmp_path / "run" / "round_1", "teacher").manifest["engine"] == "transformers"


def test_ids_of_one_model_alone_are_held_back(distil, recipe, tmp_path):
    wide = tiny.save(tmp_path / "wide", tiny.make_model(5, vocab=40), tiny.make_tokenizer())
    teacher, *_ = distil("run", "well", f"teacher.model={wide}", "train.rounds=1", "evaluate=[]")
    assert teacher["never"] == list(range(34, 40))


def test_each_vision_model_is_asked_with_its_own_processor_s_prompts_and_the_images(tmp_path, notes, monkeypatch):
    monkeypatch.setattr("hubdistill.plan_checks.vllm_version", lambda: "0.32.0")
    monkeypatch.setattr("hubdistill.plan_checks.torchvision_installed", lambda: True)
    command = (sys.executable, str(FAKE), "well", str(tmp_path / "started"))
    monkeypatch.setattr("hubdistill.stages.VllmSampler", functools.partial(VllmSampler, command=command, version="0.32.0"))
    plan = make_plan(load_recipe(ROOT / "recipes" / "smoke" / "vlm.yaml", ["sampling.engine=vllm", "train.rounds=1", "evaluate=[]"]))
    with RunDirectory(tmp_path / "run", notes.stage).locked() as directory:
        Run(plan, directory, notes).distil()
    teacher, student = (json.loads(line) for line in (tmp_path / "started").read_text().splitlines())
    for job, tokens in ((teacher, 16), (student, 9)):  # of an image
        assert 3 in job["never"]
        assert job["engine"]["skip_tokenizer_init"] is False
        seen = [question for question in job["asked"] if "images" in question]
        assert len(seen) == job["questions"]
        for question in seen:
            assert question["ids"].count(3) == tokens * len(question["images"])
            assert question["short_ids"].count(3) == len(question["images"])
            assert [i for i in question["ids"] if i != 3] == [i for i in question["short_ids"] if i != 3]
            assert all((Path(job["images"]) / name).is_file() for name in question["images"])
    assert (tmp_path / "run" / "round_1" / "adapter" / "adapter_model.safetensors").is_file()
