"""Whole comparisons over tiny models: one store of responses, equal tokens, numbers that can be found again, any interruption."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from statistics import mean

import pytest

from hubdistill.compare.cells import Comparison, take_over
from hubdistill.compare.methods import parse_methods
from hubdistill.compare.pages import markdown, page, write_pages
from hubdistill.compare.results import by_subject, collected, collected_in, comparable, compared, curves, write_again
from hubdistill.errors import InputError, RecipeError
from hubdistill.examination import Examination
from hubdistill.hub.asked import Asked
from hubdistill.run import Run
from hubdistill.rundir import RunDirectory
from tests import tiny
from tests.command import called
from tests.conftest import Notes

KL = "kl, teacher responses"


def comparison(folder: Path, methods="distillm2,kd", seeds=1, output="compared", **changes) -> Comparison:
    recipe = tiny.write_recipe(folder, **({"train": {"rounds": 1, "pairs_per_step": 4, "micro_batch": 2, "learning_rate": 0.01, "device": "cpu"}} | changes))
    return Comparison(Asked(str(recipe)), parse_methods(methods), seeds, folder / output)


class Links(HTMLParser):
    """Everything that a page would load."""

    def __init__(self):
        super().__init__()
        self.loads, self.svgs = [], 0

    def handle_starttag(self, tag, attrs):
        self.svgs += tag == "svg"
        self.loads += [value for key, value in attrs if key in ("src", "href", "data", "action")] + [tag] * (tag in ("script", "link", "iframe", "img"))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A comparison of two methods, interrupted after the first and run again, made once; and what both runs were told."""
    folder, notes = tmp_path_factory.mktemp("compared"), (Notes(), Notes())
    found, finish = comparison(folder), Run.finish

    def interrupted(self):
        finish(self)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            found.run(notes[0])
    found.run(notes[1])
    return found, notes


def test_all_cells_of_a_seed_have_one_store_of_responses_and_equal_tokens(done):
    found, (before, after) = done
    result, cells = collected(found), [found.cell(method, 0) for method in found.settled]
    for file in ("round_1/teacher.parquet", "prompts/train.parquet", "warmup/adapter/adapter_model.safetensors", "evaluation/teacher.parquet"):
        assert cells[0].joinpath(file).read_bytes() == cells[1].joinpath(file).read_bytes()
    assert before.stages.count(("round_1-teacher", "started")) == 1  # for all cells
    wanted = 2 * json.loads((found.folder / "seed_0" / "shared" / "round_1" / "teacher.json").read_text())["tokens"]
    assert all(abs(method["tokens"][0] - wanted) <= 8 for method in result["methods"])  # half of the longest pair, which has 16 tokens
    assert [method["loss"]["fixed_responses"] for method in result["methods"]] == ["teacher", "data"]
    # The second run found the first method done, and began the other from what was shared.
    assert [stage for stage, what in after.stages if what == "started"] == ["card", "data-responses", "round_1-train", "evaluate", "card"]


def test_what_all_methods_start_from_is_measured_once_and_as_ever(done, tmp_path, notes):
    found, (before, after) = done
    assert (before.stages.count(("evaluate-before", "started")), [what for stage, what in after.stages if stage == "evaluate-before"]) == (1, ["skipped"])
    copy = shutil.copytree(found.cell(found.settled[0], 0), tmp_path / "copy")
    kept = json.loads((copy / "evaluation" / "values.json").read_text())
    (copy / "evaluation" / "before.json").unlink()
    with RunDirectory(copy).locked() as directory:
        Examination(Run(found.plan, directory, notes).shop, {"student": None, "warm-up": copy / "warmup" / "adapter"}).measure()
    again = json.loads((copy / "evaluation" / "values.json").read_text())
    for key, subjects in again.items():
        for name in ("student", "warm-up"):
            assert kept[key][name] == pytest.approx(subjects[name], rel=1e-6)
    assert {"kl, teacher responses", "rouge_l, own responses", "nll, ground-truth responses"} <= set(again)


def test_the_numbers_are_those_of_the_runs(done):
    found, _ = done
    result = collected(found)
    values = {method.name: json.loads((found.cell(method, 0) / "evaluation" / "values.json").read_text())[KL] for method in found.settled}
    kl = next(one for one in result["metrics"] if (one["metric"], one["on"]) == ("kl", "teacher responses"))
    assert list(kl["rows"]) == ["student", "warm-up", "distillm2", "kd"]
    for name, row in kl["rows"].items():
        of_prompt = values[name]["distilled"] if name in values else values["kd"][name]
        assert row["value"] == pytest.approx(mean(of_prompt.values()))
        assert (row["n"], len(row["by_seed"])) == (len(of_prompt), 1)
    apart = [value - values["distillm2"]["distilled"][prompt] for prompt, value in values["kd"]["distilled"].items()]
    assert kl["rows"]["kd"]["difference"]["value"] == pytest.approx(mean(apart))
    assert "difference" not in kl["rows"]["distillm2"]
    assert json.loads((found.folder / "comparison.json").read_text()) == result


def test_a_prompt_keeps_its_seeds_together():
    """Two seeds that share one of their prompts, by hand."""
    ours = {0: {"a": 1.0, "b": 2.0}, 1: {"b": 4.0, "c": 6.0}}
    theirs = {0: {"a": 2.0, "b": 2.5}, 1: {"b": 4.5, "c": 5.0}}
    found = compared("kl", "teacher responses", {"ours": ours, "theirs": theirs}, ["ours", "theirs"])["rows"]
    assert found["ours"]["value"] == pytest.approx((1 + 3 + 6) / 3)
    assert found["ours"]["by_seed"] == [1.5, 5.0]
    assert found["theirs"]["difference"]["value"] == pytest.approx((1 + 0.5 - 1) / 3)
    assert found["theirs"]["difference"]["seeds_alike"] == 1  # +0.75 in the first, -0.25 in the second
    assert found["theirs"]["n"] == 3


def test_curves_are_means_over_seeds_of_what_training_logged(tmp_path):
    rows = [{"round": 0, "loss": 9.0}, *({"round": 1, "teacher/student_nll": float(step)} for step in range(4))]
    files = [tmp_path / "0.jsonl", tmp_path / "1.jsonl"]
    files[0].write_text("".join(json.dumps(row) + "\n" for row in rows))
    files[1].write_text("".join(json.dumps({**row, "teacher/student_nll": row.get("teacher/student_nll", 0) + 2}) + "\n" for row in rows[:-1]))
    assert curves(files) == {"teacher": [1.0, 2.0, 3.0]}


def test_a_mean_over_seeds_is_never_over_two_rounds(tmp_path):
    """One seed has two steps a round, the other three."""
    files = []
    for steps in (2, 3):
        rows = [{"round": number, "student/student_nll": 10.0 * number + step} for number in (1, 2) for step in range(steps)]
        files.append(tmp_path / f"{steps}.jsonl")
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert curves(files) == {"student": [10.0, 11.0, 20.0, 21.0]}


def test_a_seed_may_hold_out_no_prompt_with_a_response(done):
    """In the first seed one held-out prompt has a response in the data set, in the second none has."""
    key = "nll, ground-truth responses"
    values = {name: {0: {key: {"student": {"a": 3.0}, "distilled": {"a": value}}}, 1: {}} for name, value in (("ours", 1.0), ("theirs", 1.5))}
    found = by_subject(values, key)
    assert list(found) == ["student", "ours", "theirs"]  # no warm-up was measured
    nll = compared("nll", "ground-truth responses", found, ["ours", "theirs"])
    assert nll["rows"]["theirs"]["by_seed"] == [1.5, None]
    assert (nll["rows"]["theirs"]["difference"]["seeds_alike"], nll["rows"]["theirs"]["difference"]["seeds"]) == (1, 1)
    of_more = {name: {seed: {str(prompt): 1.0 + prompt for prompt in range(30)} for seed in (0, 1)} for name in ("ours", "theirs")}
    several = compared("kl", "teacher responses", of_more, ["ours", "theirs"])
    result = collected(done[0])
    methods = [one | {"name": name} for one, name in zip(result["methods"], ("ours", "theirs"), strict=True)]
    said = markdown(result | {"seeds": [0, 1], "metrics": [several, nll], "methods": methods, "reference": "ours", "enough": 20})
    assert "Means over 30 held-out prompts" in said
    assert "too narrow to judge by: negative log-likelihood on ground-truth responses." in said
    assert "nats/token (↓, n = 1)" in said
    assert "1.500 [1.500, 1.500] (1.500, –)" in said
    assert "1 of 1 seeds alike" in said


def test_unequal_steps_are_said(done):
    """Equal tokens in shorter responses are more responses, and so more steps."""
    result = collected(done[0])
    first, second = result["methods"]
    for steps, wanted in ((11, False), (13, True)):
        changed = result | {"methods": [first | {"steps": [5, 5]}, second | {"steps": [5, steps - 5]}]}
        for shown in (markdown(changed), page(changed)):
            assert (f"kd took {steps} optimiser steps and distillm2 10" in shown) is wanted


def test_no_name_ends_a_table_cell(done):
    result = collected(done[0])
    result["metrics"][0]["on"] = "a|b<i>.jsonl"
    assert r"a\|b&lt;i&gt;.jsonl" in markdown(result)
    assert "a|b<i>" not in markdown(result)
    assert "<i>" not in page(result)


def test_the_report_says_so_and_loads_nothing(done):
    found, _ = done
    result = collected(found)
    result["recipe"] = "<script>alert(1)</script> & co"
    write_pages(found.folder, result)
    shown = (found.folder / "comparison.html").read_text()
    links = Links()
    links.feed(shown)
    assert (links.loads, links.svgs) == ([], len(result["metrics"]) + len(result["methods"]))  # a legend; a curve wants more than one step
    assert "<script>" not in shown
    value = result["metrics"][0]["rows"]["kd"]["value"]
    for text in (shown, markdown(result)):
        assert f"{value:.3f} [" in text
    assert "the data set's" in markdown(result)


def test_a_cell_is_a_normal_run(done):
    found, _ = done
    cell = found.cell(found.settled[1], 0)
    assert all((cell / name).exists() for name in ("README.md", "hub", "measurements.json", "run.json"))


def test_a_cells_card_tells_what_it_was_trained_with(done):
    found, _ = done
    ours, theirs = ((found.cell(method, 0) / "README.md").read_text() for method in found.settled)
    assert "with DistiLLM-2 ([arXiv 2503.07067]" in ours
    assert "- distillm-2\n" in ours
    assert "with word-level distillation ([arXiv 1503.02531](https://arxiv.org/abs/1503.02531)) on" in theirs
    assert "distillm" not in theirs.lower().replace("hubdistill", "")
    tokens = 2 * json.loads((found.folder / "seed_0" / "shared" / "round_1" / "teacher.json").read_text())["tokens"]
    assert f"steps of 4 pairs, pairs repeated or left out for about {tokens} response tokens a round" in ours
    assert f"steps of 8 responses, responses repeated or left out for about {tokens} response tokens a round" in theirs
    assert "'loss={preset: kd}'" in theirs.split("## Reproduce")[1]  # as the cell was run, not as the recipe says


@pytest.mark.slow
def test_an_interruption_changes_nothing(done, notes, tmp_path):
    found, _ = done
    again = comparison(tmp_path)
    again.run(notes)
    for one, other in zip(again.settled, found.settled, strict=True):
        weights = [each.cell(method, 0) / "round_1" / "adapter" / "adapter_model.safetensors" for each, method in ((again, one), (found, other))]
        assert weights[0].read_bytes() == weights[1].read_bytes()


def test_the_command_checks_every_method_before_it_does_anything(tmp_path, monkeypatch, capsys):
    comparison(tmp_path)
    monkeypatch.chdir(tmp_path)
    code, out, _ = called(monkeypatch, capsys, "compare", "tiny.yaml", "--methods", "distillm2,kd", "--seeds", "3", "--dry-run", "--json")
    would = json.loads(out)
    assert (code, would["seeds"], len(would["runs"])) == (0, [0, 1, 2], 6)
    code, out, err = called(monkeypatch, capsys, "compare", "tiny.yaml", "--methods", "distillm2,kd:loss.beta_end=0.7")
    assert (code, out) == (2, "")
    assert "loss.beta_end" in err
    assert not (tmp_path / "runs").exists()


def test_without_responses_in_the_data_the_teachers_take_their_place(tmp_path):
    prompts = {"dataset": "prompts.jsonl", "heldout": 4, "max_tokens": 64}
    found = comparison(tmp_path, "kd,gkd", prompts=prompts, warmup={"kind": "none"})
    assert [method.overrides[-1] for method in found.settled] == ["loss.fixed_responses=teacher", "loss={preset: gkd}"]
    assert found.changes() == ["the data set has no responses of its own: kd train on the teacher's"]
    with pytest.raises(InputError, match="'sft' is here the same as 'seqkd', since the data set has no responses"):
        comparison(tmp_path, "seqkd,sft", prompts=prompts, warmup={"kind": "none"}).check()


@pytest.mark.parametrize(
    ("changes", "why"), [({"evaluate": []}, "evaluate: is empty"), ({"train": {"tokens": 9, "pairs_per_step": 4, "micro_batch": 2, "device": "cpu"}}, "train.tokens: compare sets it")]
)
def test_recipes_that_cannot_be_compared(tmp_path, changes, why):
    with pytest.raises(RecipeError, match=why):
        comparison(tmp_path, **changes).check()


def test_files_are_linked_and_a_run_keeps_its_own(tmp_path):
    source, folder = tmp_path / "shared", tmp_path / "cell"
    for name in ("plan.json", "recipe.yaml", ".lock", "stages/a.json", "round_1/teacher.parquet"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(f"shared {name}")
    take_over(source, folder)
    (folder / "plan.json").write_text("own")
    take_over(source, folder)
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == ["plan.json", "round_1/teacher.parquet", "stages/a.json"]
    assert (folder / "plan.json").read_text() == "own"
    assert (source / "plan.json").read_text() == "shared plan.json"
    assert (folder / "stages" / "a.json").samefile(source / "stages" / "a.json")


def test_a_comparison_that_goes_on_shows_what_is_done(done, tmp_path, monkeypatch, capsys):
    found, _ = done
    folder = shutil.copytree(found.folder, tmp_path / "goes-on")
    whole = collected(found)
    code, out, _ = called(monkeypatch, capsys, "report", folder)
    assert (code, out.strip()) == (0, str(folder / "comparison.html"))
    assert json.loads((folder / "comparison.json").read_text()) == whole
    assert whole["unfinished"] == []
    (folder / "seed_0" / "kd" / "run.json").unlink()
    write_again(folder)
    part = json.loads((folder / "comparison.json").read_text())
    assert [method["name"] for method in part["methods"]] == ["distillm2"]
    assert part["metrics"][0]["rows"]["distillm2"] == whole["metrics"][0]["rows"]["distillm2"]
    assert "Not finished: kd with seed 0." in (folder / "comparison.html").read_text()
    assert "Not finished: kd with seed 0." in (folder / "comparison.md").read_text()
    (folder / "seed_0" / "distillm2" / "run.json").unlink()
    code, _, said = called(monkeypatch, capsys, "report", folder)
    assert code == 2
    assert "no method is done yet" in said


def test_a_metric_is_compared_where_every_method_shares_prompts_with_the_first():
    found = {"a": {0: {"x": 1.0}, 1: {}}, "b": {0: {"x": 0.5}, 1: {"z": 0.0}}, "c": {0: {"y": 0.5}, 1: {}}, "d": {0: {}, 1: {}}}
    assert comparable(found, ["a", "b"])
    assert not comparable(found, ["a", "b", "c"])
    assert not comparable(found, ["a", "d"]), "a judge gave it no verdict that could be read"


def test_all_methods_of_a_page_are_of_the_same_seeds(done, tmp_path):
    """Of the second seed one method is done: no mean may be over it alone."""
    found, _ = done
    folder = shutil.copytree(found.folder, tmp_path / "goes-on")
    shutil.copytree(folder / "seed_0" / "distillm2", folder / "seed_1" / "distillm2")
    part = collected_in(folder, {**found.record(), "seeds": [0, 1]})
    whole = collected(found)
    assert (part["seeds"], part["unfinished"]) == ([0], ["kd with seed 1"])
    assert part["metrics"] == whole["metrics"]
    assert [method["steps"] for method in part["methods"]] == [method["steps"] for method in whole["methods"]]
