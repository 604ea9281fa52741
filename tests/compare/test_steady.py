"""All methods of a comparison have the same settings, models and data, also where someone changes them while it runs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hubdistill.compare.steady import pinned
from hubdistill.errors import InputError, RecipeError, RunDirectoryError
from hubdistill.models.sources import NOT_RESOLVED
from hubdistill.run import Run
from tests.compare.test_compare import comparison


@pytest.mark.parametrize(("old", "new", "key"), [('"learning_rate": 0.01', '"learning_rate": 0.02', "train"), ("it was cat", "it was a cat", "the data set")])
def test_what_changes_while_methods_are_compared_is_refused_before_the_next_one_trains(tmp_path, notes, monkeypatch, old, new, key):
    found, finish = comparison(tmp_path), Run.finish

    def edited(self):
        finish(self)
        for file in ("tiny.yaml", "prompts.jsonl"):
            (tmp_path / file).write_text((tmp_path / file).read_text().replace(old, new))

    monkeypatch.setattr(Run, "finish", edited)
    with pytest.raises(InputError, match=f"{key} changed while methods were compared"):
        found.run(notes)
    assert [method.name for method in found.settled if (found.cell(method, 0) / "run.json").exists()] == ["distillm2"]


def test_what_comes_from_the_hub_is_held_at_the_commit_of_the_first_plan(tmp_path):
    plan = comparison(tmp_path).plan
    assert pinned(plan) == []  # all local
    on_hub = {name: replace(getattr(plan, name), kind="hub", commit=letter * 40) for name, letter in (("teacher", "a"), ("student_source", "b"), ("prompts", "c"))}
    assert pinned(replace(plan, **on_hub)) == [f"{block}.revision={letter * 40}" for block, letter in (("teacher", "a"), ("student", "b"), ("prompts", "c"))]
    offline = replace(on_hub["teacher"], commit=NOT_RESOLVED)
    assert not any("teacher" in one for one in pinned(replace(plan, **(on_hub | {"teacher": offline}))))


def test_the_last_seed_is_checked_before_the_first_one_runs(tmp_path):
    changes = {"train": {"seed": 2**31 - 2, "pairs_per_step": 4, "micro_batch": 2, "device": "cpu"}}
    comparison(tmp_path, seeds=2, **changes).check()
    with pytest.raises(RecipeError, match=r"train\.seed: must be less than 2147483648"):
        comparison(tmp_path, seeds=3, **changes).check()


def test_two_methods_are_the_same_for_the_reason_that_is_given(tmp_path):
    prompts = {"dataset": "prompts.jsonl", "heldout": 4, "max_tokens": 64}
    with pytest.raises(InputError, match=r"'gkd:loss\.alpha=0\.5' is here the same as 'gkd'; leave one out"):
        comparison(tmp_path, "gkd,gkd:loss.alpha=0.5", prompts=prompts, warmup={"kind": "none"}).check()


def test_a_folder_of_something_else_is_refused_before_anything_runs(tmp_path):
    found = comparison(tmp_path)
    found.check()  # not there yet
    found.folder.mkdir()
    found.check()
    (found.folder / "plan.json").write_text("{}")  # as in a run directory
    with pytest.raises(RunDirectoryError, match=r"holds other files \(plan\.json\) and no comparison"):
        found.check()
    (found.folder / "seed_0").mkdir()
    found.check()
    with pytest.raises(RunDirectoryError, match="is a file"):
        comparison(tmp_path, output="tiny.yaml").check()
