"""What each baseline trains on, in whole runs over tiny models: whose responses, how many in a step, and nothing sampled in vain."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from hubdistill.console import plan_text
from hubdistill.errors import RecipeError
from hubdistill.plan import make_plan
from hubdistill.recipe import load_recipe
from hubdistill.run import Run
from hubdistill.rundir import RunDirectory
from hubdistill.training.trainer import PairCollator
from tests import tiny

TRAINED = {"prompts", "warmup", "round_1-train", "round_2-train"}
TEACHER, STUDENTS = {"round_1-teacher"}, {"round_1-student", "round_2-student"}
SAMPLED = {
    "sft": {"data-responses"}, "seqkd": TEACHER, "imitkd": STUDENTS,
    "off_policy": TEACHER | {"round_1-student"}, "distillm": TEACHER | STUDENTS,
}  # fmt: skip


@pytest.fixture
def seen(monkeypatch):
    """(prompt id, is it of the student, response ids) of every response that is trained on, by micro-batch."""
    batches = []
    call = PairCollator.__call__

    def spy(self, picked):
        found = call(self, picked)
        micro = found["micro"]
        flags, lengths = micro.batch.from_student_B.tolist(), micro.batch.lengths_B.tolist()
        names = micro.prompt_ids * (len(flags) // len(micro.prompt_ids))
        labels = iter(micro.batch.labels_N.split(lengths))
        batches.append([(name, flag, tuple(next(labels).tolist())) for name, flag in zip(names, flags, strict=True)])
        return found

    monkeypatch.setattr(PairCollator, "__call__", spy)
    return batches


def answers(path):
    return {row["prompt_id"]: tuple(row["response_ids"]) for row in pq.read_table(path).to_pylist()}


@pytest.mark.parametrize("name", SAMPLED)
def test_a_preset_trains_on_what_it_names(name, tmp_path, notes, seen):
    recipe = load_recipe(tiny.write_recipe(tmp_path), [f"loss.preset={name}"])
    with RunDirectory(tmp_path / "run", notes.stage).locked() as directory:
        run = Run(make_plan(recipe), directory, notes)
        run.distil(until="train")
    assert {stage for stage, _ in notes.stages} == TRAINED | SAMPLED[name]
    folder = tmp_path / "run"
    fixed = answers(folder / "data.parquet") if "data-responses" in SAMPLED[name] else answers(folder / "round_1" / "teacher.parquet") if name != "imitkd" else {}
    rounds = [answers(folder / f"round_{n}" / "student.parquet") for n in (1, 2) if f"round_{n}-student" in SAMPLED[name]]
    per_round = len(seen) // 2
    for number, batches in enumerate((seen[:per_round], seen[per_round:])):
        found = [one for batch in batches for one in batch]
        assert all(len(batch) == 4 for batch in batches[:-1])  # micro_batch 2 is four responses, of one side or of two
        allowed = {"distillm": rounds[: number + 1], "off_policy": rounds[:1]}.get(name, rounds[number : number + 1])
        of_data, of_student = ({key: ids for key, flag, ids in found if flag is side} for side in (False, True))
        assert len(found) == len(of_data) + len(of_student) > 0  # each once
        assert all(ids == fixed[key] for key, ids in of_data.items())
        assert all(ids in [one[key] for one in allowed] for key, ids in of_student.items())
        assert bool(of_data) == bool(fixed)
        assert bool(of_student) == bool(rounds)
        if name == "sft":  # no other has a response for every prompt that says something
            assert of_data == fixed


def test_the_data_sets_responses_are_those_of_the_file(tmp_path, notes, tokenizer):
    recipe = load_recipe(tiny.write_recipe(tmp_path), ["loss.preset=sft"])
    with RunDirectory(tmp_path / "run").locked() as directory:
        Run(make_plan(recipe), directory, notes).distil(until="train", round=1)
    texts = {row["answer"] for row in map(json.loads, (tmp_path / "prompts.jsonl").read_text().splitlines())}
    kept = answers(tmp_path / "run" / "data.parquet")
    assert len(kept) == 8
    assert all(ids[-1] == tokenizer.eos_token_id and tokenizer.decode(ids[:-1]) in texts for ids in kept.values())


def test_a_round_trains_on_as_many_tokens_as_asked_for(tmp_path, notes):
    recipe = load_recipe(tiny.write_recipe(tmp_path), ["loss.preset=seqkd", "train.tokens=200", "train.rounds=1"])
    with RunDirectory(tmp_path / "run").locked() as directory:
        run = Run(make_plan(recipe), directory, notes)
        run.distil(until="train")
        result = run.results()["round_1-train"]
    assert abs(result["tokens"] - 200) <= 4  # half of the longest response
    assert run.plan.steps is None


@pytest.mark.parametrize(("name", "size"), [("distillm2", "2 steps of 4 pairs"), ("kd", "1 step of 8 responses"), ("imitkd", "1 step of 8 responses")])
def test_plan_counts_what_a_step_holds(name, size, tmp_path):
    assert size in plan_text(make_plan(load_recipe(tiny.write_recipe(tmp_path), [f"loss.preset={name}"])).as_dict() | {"forecast": None})


def test_a_data_set_without_responses_is_refused_by_name(tmp_path):
    path = tiny.write_recipe(tmp_path, prompts={"dataset": "prompts.jsonl", "heldout": 4, "max_tokens": 64}, warmup={"kind": "none"})
    with pytest.raises(RecipeError, match=r"loss\.preset: kd trains on the data set's responses.*loss\.fixed_responses: teacher"):
        make_plan(load_recipe(path, ["loss.preset=kd"]))
    make_plan(load_recipe(path, ["loss.preset=kd", "loss.fixed_responses=teacher"]))
