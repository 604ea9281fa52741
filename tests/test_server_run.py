"""A whole run whose teacher is served elsewhere: who is asked what, what is recorded, and what is not."""

from __future__ import annotations

import json

import pytest
import yaml

from hubdistill.errors import RecipeError, SamplingError
from hubdistill.finished import load_run
from hubdistill.pairs.store import read_responses
from hubdistill.plan import make_plan
from hubdistill.publication import build_local
from hubdistill.recipe import load_recipe
from tests import tiny
from tests.command import run
from tests.completions_server import CompletionsServer

KEY = "wq8-not-shown-2f61"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return tiny.write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def server(teacher, tokenizer):
    with CompletionsServer(teacher, tokenizer, key=KEY) as running:
        yield running


@pytest.fixture
def planned(recipe, server, monkeypatch):
    """Overrides -> the plan of the recipe with the server."""
    monkeypatch.setenv("SERVER_KEY", KEY)
    server.asked.clear()
    server.fail = {}

    def made(*overrides, **how):
        block = {"url": server.url + "/", "model": "org/teacher", "api_key_env": "SERVER_KEY", "concurrency": 2}
        return make_plan(load_recipe(recipe, [f"sampling.server={json.dumps(block)}", *overrides]), **how)

    return made


def test_the_teacher_is_asked_and_the_student_is_not(planned, server, tmp_path, notes):
    path = run(planned(), tmp_path / "run", notes)
    assert len(server.asked) == 8, "the training prompts, once: evaluations sample with the model that is loaded"
    teacher, student = (read_responses(path / "round_1", who).manifest for who in ("teacher", "student"))
    assert (teacher["engine"], teacher["server"], teacher["sampling"]["server"]) == ("server", f"127.0.0.1:{server.port}", "org/teacher")
    assert (student["engine"], student["server"], student["sampling"].get("server")) == ("transformers", None, None)
    assert read_responses(path / "evaluation", "teacher").manifest["engine"] == "transformers"
    local = run(make_plan(load_recipe(planned().loaded.path, [])), tmp_path / "local", notes)
    for name in ("round_1/teacher.parquet", "round_2/adapter/adapter_model.safetensors"):  # the server has the same model, and the seeds are the prompts' own
        assert (path / name).read_bytes() == (local / name).read_bytes()
    public = build_local(path)
    assert "by a server (as org/teacher)" in (public / "README.md").read_text()
    published = (public / "hubdistill" / "recipe.yaml").read_text()
    assert "# The teacher's responses came from a server, as org/teacher; here sampling.engine samples them." in published
    assert yaml.safe_load(published)["sampling"].get("server") is None
    for file in [*public.rglob("*"), *path.rglob("*")]:
        words = file.read_bytes() if file.is_file() else b""
        assert KEY.encode() not in words
        assert not file.is_relative_to(public) or f":{server.port}".encode() not in words, f"{file} names the server"


def test_a_rerun_needs_no_server_and_another_address_samples_nothing_anew(planned, server, tmp_path, notes):
    path = run(planned("train.rounds=1"), tmp_path / "run", notes)
    server.asked.clear()
    notes.stages.clear()
    run(planned("train.rounds=1", "sampling.server.url=http://127.0.0.1:9/v1"), path, notes)
    assert ("round_1-teacher", "skipped") in notes.stages
    assert server.asked == []
    with pytest.raises(SamplingError, match=r"nothing answers at http://127\.0\.0\.1:9/v1"):
        run(planned("train.rounds=1", "sampling.server.url=http://127.0.0.1:9/v1", "sampling.temperature=0.5"), path, notes)


def test_answers_that_are_left_out_are_counted_where_people_look(planned, server, tmp_path, notes):
    server.fail = {4: {"choices": [{"text": "the \ufffd", "finish_reason": "stop"}]}}
    path = run(planned("train.rounds=1", "evaluate=[]", "teacher.placement=cached"), tmp_path / "run", notes)
    assert any("1 of 8 answers of 127.0.0.1" in note and "are left out" in note for note in notes.notes)
    record, _ = load_run(path)
    trained = record["stages"]["round_1-train"]
    assert (record["stages"]["round_1-teacher"]["unusable"], trained["pairs"] + trained["empty"]) == (1, 8)
    assert trained["empty"] >= 1
    assert "(1 answer of the server could not be read as tokens)" in (build_local(path) / "README.md").read_text()


def test_a_plan_asks_the_server_only_where_it_is_told_to(planned, server):
    assert planned().served("teacher") is not None
    assert planned(ask_server=True).resolved
    server.fail = {}
    expected = r"sampling\.server\.url: nothing answers at http://127\.0\.0\.1:9/v1"
    with pytest.raises(RecipeError, match=expected):
        planned("sampling.server.url=http://127.0.0.1:9/v1", ask_server=True)
    assert planned("sampling.server.url=http://127.0.0.1:9/v1").resolved
    with pytest.raises(RecipeError, match=r"sampling\.server\.model: 127\S+ has no model 'org/techer'"):
        planned("sampling.server.model=org/techer", ask_server=True)


def test_a_key_that_is_not_there_is_a_problem_of_the_plan(planned, monkeypatch):
    monkeypatch.delenv("SERVER_KEY", raising=False)
    with pytest.raises(RecipeError, match=r"sampling\.server\.api_key_env: the environment variable OTHER_KEY is not set; export the key"):
        planned("sampling.server.api_key_env=OTHER_KEY")


def test_no_server_goes_to_another_machine(planned):
    with pytest.raises(RecipeError, match=r"sampling\.server: another machine will run the recipe"):
        planned(elsewhere=True)


def test_vllm_is_asked_about_the_student_alone(planned, recipe, monkeypatch):
    monkeypatch.setattr("hubdistill.plan_checks.vllm_version", lambda: "0.32.0")
    with pytest.raises(RecipeError) as caught:
        planned("sampling.engine=vllm", "sampling.vllm.tensor_parallel_size=3")
    assert [problem.split(": ")[1:3] for problem in caught.value.problems] == [["sampling.vllm.tensor_parallel_size", "./student has 4 attention heads, which 3 devices cannot share evenly; choose a number that divides 4"]]


def test_offline_the_command_line_asks_nobody(recipe, server, capsys):
    from hubdistill.cli import app

    block = {"url": "http://127.0.0.1:9/v1", "model": "org/teacher"}
    with pytest.raises(SystemExit) as ended:
        app(["plan", str(recipe), f"sampling.server={json.dumps(block)}", "--offline"])
    assert ended.value.code == 0
    assert "answers   of the teacher come from http://127.0.0.1:9/v1, as org/teacher" in capsys.readouterr().out
