"""`hubdistill benchmark`: models, adapters and runs by what a person calls them, asked without a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hubdistill import candidates
from hubdistill.errors import InputError, RecipeError
from hubdistill.recipe import load_recipe
from hubdistill.tasks import code
from tests import tiny
from tests.command import called, here

QUESTIONS = [
    {"task_id": f"Test/{i}", "prompt": f'def add_{i}(x):\n    """ Add {i}. """\n', "test": f"def check(f):\n    assert f(1) == {1 + i}\n", "entry_point": f"add_{i}"} for i in range(3)
]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS), encoding="utf-8")
    return path


def adapter_of(folder: Path) -> Path:
    """A random adapter for the toy model, as PEFT saves it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = candidates.find("toy:llama").facts.location
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM"))
    adapted.save_pretrained(folder)
    return folder


def test_an_adapter_is_asked_beside_its_base_and_nobody_twice(tmp_path, questions, monkeypatch):
    pytest.importorskip("evalplus", reason=f"EvalPlus is not installed: {code.INSTALL}")
    monkeypatch.setenv("HUBDISTILL_CACHE", str(tmp_path / "home" / "hubdistill"))
    adapter = adapter_of(tmp_path / "adapter")
    ask = ("benchmark", adapter, "--against", "base", "--task", "humaneval", "--data", questions, "--limit", 2, "--max-tokens", 4, "--allow-code-execution", "-o", tmp_path / "out")
    done = here(*ask, "--json", folder=tmp_path)
    if "no program of a model is run here" in done.err:
        pytest.skip(done.err)
    assert done.code == 0, done.err
    assert "isolation of programs: Landlock" in " ".join(done.err.split())
    found = json.loads(done.out)
    first, base = found["measurements"]
    assert (first["subject"], first["n"], first["value"], first["on"]) == (str(adapter), 2, 0.0, "HumanEval (questions.jsonl) / pass@1")
    assert [one["against"] for one in first["differences"]] == [base["subject"]]
    assert base["subject"].endswith(Path(candidates.find("toy:llama").facts.location).name)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("scores.json")}
    assert len(kept) == 2
    again = here(*ask, folder=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert "HumanEval (questions.jsonl), 2 questions, greedy, at most 4 tokens" in again.out
    assert f"{adapter} minus {base['subject']}: +0.000 (+0.000 to +0.000): too few questions to tell" in again.out
    assert "2 failed" in again.out
    assert "answers," not in again.err  # nobody was asked


def test_what_cannot_be_asked_is_one_message_and_leaves_no_folder(tmp_path, questions, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HUBDISTILL_CACHE", str(tmp_path / "home"))
    data = ("--data", questions)
    for arguments, words in (
        (("toy:llama", "--task", "humaneval", *data), "Nothing is run unless you say so: --allow-code-execution"),
        (("toy:llama", "--task", "poetry"), "choose one of gsm8k, math"),
        (("toy:llava", "--task", "gsm8k", *data), "benchmarks ask text"),
        (("./nothing", "--task", "gsm8k", *data), "no model at ./nothing"),
        (("toy:llama", "--task", "gsm8k", *data, "--against", "base"), "is a model and no adapter"),
    ):
        code_, out, err = called(monkeypatch, capsys, "benchmark", *arguments)
        assert (code_, out) == (2, ""), arguments
        assert words in err
    assert not (tmp_path / "runs").exists()


def test_an_adapter_without_its_base_says_so_and_a_folder_of_other_files_is_left_alone(tmp_path, questions, monkeypatch, capsys):
    monkeypatch.setenv("HUBDISTILL_CACHE", str(tmp_path / "home"))
    adapter = adapter_of(tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(InputError, match=r"gone' is not a model on the Hub[^$]*named by its run directory"):
        candidates.find(str(adapter))
    pytest.importorskip("evalplus", reason=f"EvalPlus is not installed: {code.INSTALL}")
    _, _, err = called(monkeypatch, capsys, "benchmark", "toy:llama", "--task", "humaneval", "--data", questions, "--allow-code-execution", "-o", adapter)
    assert "holds other files and no benchmark" in err or "no program of a model is run here" in err


def test_a_missing_base_of_a_model_is_refused():
    with pytest.raises(InputError, match="so it has no base here"):
        candidates.against("base", candidates.find("toy:llama"))


@pytest.mark.slow
def test_a_recipe_asks_everyone_keeps_the_questions_and_publishes_what_others_can_ask(tmp_path, questions):
    """evaluate: [{kind: benchmark}] from plan to card, on a run that is benchmarked afterwards by its directory."""
    pytest.importorskip("evalplus", reason=f"EvalPlus is not installed: {code.INSTALL}")
    benchmark = {"kind": "benchmark", "task": "humaneval", "dataset": "questions.jsonl", "limit": 2, "max_tokens": 4}
    tiny.write_recipe(tmp_path, evaluate=[benchmark], train={"rounds": 1, "pairs_per_step": 8, "micro_batch": 4, "learning_rate": 0.01, "device": "cpu"})
    refused = here("plan", "tiny.yaml", folder=tmp_path)
    assert refused.code == 2
    assert "evaluate[0].allow_code_execution: is false, and 'humaneval' runs programs that the models write" in refused.err
    tiny.write_recipe(tmp_path, evaluate=[{"kind": "overlap"}, benchmark | {"allow_code_execution": True}], train={"rounds": 1, "pairs_per_step": 8, "micro_batch": 4, "learning_rate": 0.01, "device": "cpu"})
    done = here("run", "tiny.yaml", folder=tmp_path)
    if "no program of a model is run here" in done.err:
        pytest.skip(done.err)
    assert done.code == 0, done.err
    run = tmp_path / "runs" / "tiny"
    rows = [one for one in json.loads((run / "measurements.json").read_text()) if one["metric"] == "score"]
    assert [(one["subject"], one["on"], one["n"]) for one in rows] == [(who, "HumanEval (questions.jsonl) / pass@1", 2) for who in ("teacher", "student", "warm-up", "distilled")]
    assert [one["against"] for one in rows[-1]["differences"]] == ["student", "warm-up"]
    assert "score on HumanEval (questions.jsonl) / pass@1" in done.out
    card = (run / "README.md").read_text()
    assert "2 questions by EvalPlus's prompt and sanitiser, greedy, at most 4 tokens" in card
    assert str(tmp_path) not in (run / "run.json").read_text()
    reproduce = (run / "reproduce.yaml").read_text()
    assert "# An evaluation is left out: humaneval, which runs programs that models write." in reproduce
    assert "kind: benchmark" not in reproduce
    asked = {path: path.stat().st_mtime_ns for path in run.rglob("scores.json")}
    assert len(asked) == 4
    (run / "measurements.json").unlink()
    assert here("run", "tiny.yaml", folder=tmp_path).code == 0
    assert {path: path.stat().st_mtime_ns for path in asked} == asked  # evaluated again, and nobody was asked
    alone = here("benchmark", run, "--against", "base", "--task", "humaneval", "--data", questions, "--max-tokens", 4, "--allow-code-execution", "--json", folder=tmp_path)
    assert alone.code == 0, alone.err
    assert [one["n"] for one in json.loads(alone.out)["measurements"]] == [3, 3]


@pytest.mark.parametrize(
    ("evaluation", "words"),
    [
        ({"kind": "benchmark"}, "kind: benchmark needs `task`"),
        ({"kind": "benchmark", "task": "gsm8k", "questions": {"dataset": "prompts.jsonl"}}, "questions belong to kind: vqa or judge"),
        ({"kind": "overlap", "task": "gsm8k"}, "task and dataset and limit and allow_code_execution belong to kind: benchmark"),
        ({"kind": "benchmark", "task": "gsm8k", "dataset": "gone.jsonl"}, "evaluate[0].dataset: 'gone.jsonl' is not there"),
    ],
)
def test_mistakes_of_a_recipe_are_told_by_plan(tmp_path, evaluation, words):
    tiny.write_recipe(tmp_path, evaluate=[evaluation])
    done = here("plan", "tiny.yaml", folder=tmp_path)
    assert done.code == 2
    assert words in done.err


def test_a_recipe_from_the_hub_may_not_have_programs_run(tmp_path):
    """Whether code of a model runs is for who owns the machine to say, and not for who wrote the recipe."""
    path = tiny.write_recipe(tmp_path, evaluate=[{"kind": "benchmark", "task": "humaneval", "allow_code_execution": True}])
    with pytest.raises(RecipeError, match="refused in a recipe from the Hub: whether programs"):
        load_recipe(path, origin="hub")
