"""A whole run whose answers a judge compares: who is judged on what, what is recorded and published, and what is not."""

from __future__ import annotations

import json

import pytest
import yaml

from hubdistill.console import plan_text
from hubdistill.errors import RecipeError, SamplingError
from hubdistill.estimate.costs import guessed, seconds_of
from hubdistill.estimate.machines import gpu_named
from hubdistill.estimate.memory import memory_of
from hubdistill.evaluation.statistics import mean_and_interval
from hubdistill.finished import load_run
from hubdistill.pairs.prompts import read_prompts
from hubdistill.pairs.store import read_responses
from hubdistill.plan import make_plan
from hubdistill.publication import build_local
from hubdistill.recipe import load_recipe
from hubdistill.summary import summary
from tests import tiny
from tests.command import called, run
from tests.completions_server import CompletionsServer

KEY = "wq8-not-shown-2f61"
HELD, ASKED = "held-out prompts, against reference answers", "hard, against the student's before training"


def likes_words(messages, body):
    """Prefers the answer with more words; says something else about one with three words as A."""
    a, b = (len(part.split("---")[0].split()) for part in messages[1]["content"].split("answer A ---")[1].split("--- answer B ---"))
    return "Hm." if a == 3 else f"A has {a} and B {b}.\n[[{'A' if a > b else 'B' if b > a else 'C'}]]"


def points(own, other):
    """The oracle: the mean of both orders, or None where a verdict cannot be read."""
    if own == other:
        return 0.5
    a, b = len(own.split()), len(other.split())
    return None if 3 in (a, b) else 1.0 if a > b else 0.0 if b > a else 0.5


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    rows = [{"question": f"who ran {where} the {what}", "kind": where} for where in ("on", "under") for what in ("mat", "hill", "cat")]
    (folder / "hard.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tiny.write_recipe(folder)


@pytest.fixture(scope="module")
def server():
    with CompletionsServer(None, None, name="org/judge", key=KEY) as running:
        running.chat = likes_words
        yield running


@pytest.fixture
def planned(recipe, server, monkeypatch, tmp_path):
    """Overrides -> the plan of the recipe with two judges."""
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setenv("HUBDISTILL_CACHE", str(tmp_path / "cache"))
    server.asked.clear()
    server.fail = {}

    def made(*overrides, **how):
        judge = {"url": server.url + "/", "model": "org/judge", "api_key_env": "JUDGE_KEY", "concurrency": 2}
        held = {"kind": "judge", "max_tokens": 8, "judge": judge | {"input_price": 2, "output_price": 10}}
        asked = {"kind": "judge", "max_tokens": 6, "questions": {"dataset": "hard.jsonl", "column": "question", "max_tokens": 64, "response_column": None, "type_column": "kind"}, "judge": judge | {"against": "student"}}
        return make_plan(load_recipe(recipe, [f"evaluate={json.dumps([held, asked])}", "train.rounds=1", *overrides]), **how)

    return made


def texts(folder, who, tokenizer):
    return {row.prompt_id: tokenizer.decode(list(row.response_ids), skip_special_tokens=True) for row in read_responses(folder, who).rows()}


def test_everyone_is_judged_and_the_numbers_are_those_of_the_verdicts(planned, server, tmp_path, notes, tokenizer):
    plan = planned()
    path = run(plan, tmp_path / "run", notes)
    record, rows = load_run(path)
    found = {(row.subject, row.on): row for row in rows}
    kinds = {f"{ASKED} / {kind}" for kind in ("on", "under")}
    assert {on for subject, on in found if subject == "distilled"} <= {HELD, ASKED, *kinds}
    assert {subject for subject, on in found if on == ASKED} == {"teacher", "warm-up", "distilled"}
    held = {prompt.id: prompt.response for prompt in read_prompts(path / "prompts" / "heldout.parquet")}
    evaluation = path / "evaluation"
    for subject, who in (("teacher", "teacher"), ("student", "student"), ("warm-up", "student"), ("distilled", "student")):
        own = texts(evaluation if who == "teacher" else evaluation / subject, who, tokenizer)
        check(found.get((subject, HELD)), {name: points(own[name], held[name]) for name in held})
        if subject != "student":
            own, other = (texts(evaluation / "hard" / name, side, tokenizer) for name, side in ((subject, who), ("student", "student")))
            check(found.get((subject, ASKED)), {name: points(own[name], other[name]) for name in own})
    assert not (evaluation / "held-out_prompts" / "teacher").exists(), "the held-out prompts were answered once, for all evaluations"
    judged = found["distilled", HELD].judged
    assert judged["cost"] == pytest.approx((judged["tokens_in"] * 2 + judged["tokens_out"] * 10) / 1e6)
    assert found["distilled", ASKED].decoding == "temperature 0.8, top-p 0.95, at most 6 tokens"
    assert (found["distilled", ASKED].split, found["distilled", HELD].split) == ("questions", "held-out")
    kept = json.loads((evaluation / "hard" / "verdicts.json").read_text())
    assert (kept["judge"], set(kept["subjects"]), len(kept["subjects"]["distilled"])) == ("org/judge", {"teacher", "warm-up", "distilled"}, 6)
    assert any("org/judge judges" in label for label in notes.notes)
    told = summary(path, record, rows, None)
    assert any(line.startswith("win_rate on hard, against the student's before training, share, higher is better: warm-up 0.") for line in told["results"])
    assert any(line.startswith(f"distilled {HELD}: {judged['wins'] + judged['ties'] + judged['losses']} verdicts (") and "$0.0" in line for line in told["judged"])
    published(path, server)
    asked = len(server.asked)
    notes.stages.clear()
    run(planned("evaluate[0].judge.max_requests=900"), path, notes)
    assert ("evaluate", "skipped") not in notes.stages
    assert len(server.asked) == asked, "the same answers are not judged again"


def check(row, expected):
    values = [value for _, value in sorted(expected.items()) if value is not None]
    if 2 * len(values) < len(expected):
        assert row is None
        return
    assert (row.value, row.low, row.high) == mean_and_interval(values, 0)
    assert (row.n, row.unit, row.better) == (len(values), "share", "higher")
    assert (row.judged["unparsed"] > 0) == (len(values) < len(expected))


def published(path, server):
    """What a card says of it; and no address and no key in what is published, nor a key in any file."""
    public = build_local(path)
    card = (public / "README.md").read_text()
    assert "| win rate on hard, against the student's before training (share) |" in card
    assert "compared by the judge org/judge (temperature 0.7) in both orders" in card
    assert "more that could not be read" in card
    text = (public / "hubdistill" / "recipe.yaml").read_text()
    assert "# An evaluation is left out, for it needs a server: org/judge judged answers against the student." in text
    assert yaml.safe_load(text)["evaluate"] == []
    assert "hard.jsonl" not in json.loads((public / "hubdistill" / "run.json").read_text())["files_of_this_machine"]
    for file in [*public.rglob("*"), *path.rglob("*"), *path.parent.joinpath("cache").rglob("*")]:
        words = file.read_bytes() if file.is_file() else b""
        assert KEY.encode() not in words
        assert not file.is_relative_to(public) or f":{server.port}".encode() not in words, f"{file} names the server"


def test_a_judge_that_is_down_ends_the_run_and_the_rerun_goes_on_there(planned, server, tmp_path, notes):
    dead = "evaluate[0].judge.url=http://127.0.0.1:9/v1"
    with pytest.raises(SamplingError, match=r"evaluate\[0\]\.judge\.url: nothing answers at http://127\.0\.0\.1:9/v1"):
        run(planned(dead), tmp_path / "run", notes)
    server.fail = {7: 404}
    notes.stages.clear()
    with pytest.raises(Exception, match="is not there"):
        run(planned(), tmp_path / "run", notes)
    server.fail = {}
    run(planned(), tmp_path / "run", notes)
    assert ("round_1-train", "skipped") in notes.stages


def test_a_plan_says_what_there_is_to_judge_and_asks_the_judge(planned, server):
    plan = planned(ask_server=True).as_dict()
    assert [one["verdicts_at_most"] for one in plan["judges"]] == [2 * 4 * 4, 2 * 6 * 3]
    assert "judge     org/judge, at most 36 verdicts: teacher, warm-up, distilled against the student, in both orders" in plan_text(plan)
    assert server.asked == []
    with pytest.raises(RecipeError, match=r"evaluate\[1\]\.judge\.model: \S+ has no model 'org/jude'; write the name that it gives the judge"):
        planned("evaluate[1].judge.model=org/jude", ask_server=True)
    with pytest.raises(RecipeError, match=r"evaluate\[0\]\.judge\.url: nothing answers at http://127\.0\.0\.1:9/v1"):
        planned("evaluate[0].judge.url=http://127.0.0.1:9/v1", ask_server=True)


@pytest.mark.parametrize(("override", "problem"), [
    ("evaluate[0].judge.api_key_env=OTHER_KEY", r"evaluate\[0\]\.judge\.api_key_env: the environment variable OTHER_KEY is not set; export the key"),
    ("evaluate[0].judge.max_requests=31", r"evaluate\[0\]\.judge\.max_requests: 31, and judging takes up to 32 \(in both orders, for teacher, student, warm-up, distilled\)"),
    ("evaluate[1].judge.max_requests=35", r"evaluate\[1\]\.judge\.max_requests: 35, and judging takes up to 36"),
    ("prompts.response_column=null", r"prompts\.response_column: the first prompts have no ground-truth response, and a judge"),
    ("evaluate[1].questions.column=prompt", r"evaluate\[1\]\.questions\.column: hard\.jsonl:row 1: no column 'prompt'"),
    ("evaluate[1].judge.against=reference", r"evaluate\[1\]\.questions\.response_column: is null, and the judge holds answers against the data's own"),
    ("evaluate[0].judge.max_cost=3", None),
    ("evaluate[1].judge.max_cost=3", r"max_cost needs input_price and output_price"),
    ("evaluate[0].judge.output_price=null", r"input_price and output_price go together"),
    ("evaluate[0].judge=null", r"kind: judge needs `judge`"),
    ("evaluate[0].kind=overlap", r"max_tokens belong to kind: vqa or judge.*; remove them from kind: overlap"),
    ("evaluate[0].judge.url=http://user:word@host/v1", r"holds a user name, a password or a query \(not shown\)"),
    ("evaluate[0].max_tokens=300", r"evaluate\[0\]: prompts\.max_tokens \+ max_tokens = 364, and \./teacher reads 256 positions"),
])  # fmt: skip
def test_what_cannot_be_judged_is_a_problem_of_the_plan(planned, override, problem):
    if problem is None:
        assert planned(override).resolved
        return
    with pytest.raises(RecipeError, match=problem):
        planned(override, "warmup.responses=teacher")


def test_no_judge_goes_to_another_machine_and_none_comes_from_the_hub(planned, recipe):
    with pytest.raises(RecipeError, match=r"evaluate\[0\]\.judge: another machine will run the recipe"):
        planned(elsewhere=True)
    text = recipe.read_text().replace('[{"kind": "divergence"}', '[{"kind": "judge", "judge": {"url": "http://a/v1", "model": "m"}}')
    theirs = recipe.with_name("theirs.yaml")
    theirs.write_text(text)
    with pytest.raises(RecipeError, match=r"evaluate\[0\]\.judge: refused in a recipe from the Hub"):
        load_recipe(theirs, [], origin="hub")


def test_on_the_command_line_it_is_one_line_and_an_exit_code(recipe, planned, monkeypatch, capsys):
    judge = json.dumps([{"kind": "judge", "judge": {"url": "http://127.0.0.1:9/v1", "model": "org/judge"}, "max_tokens": 8}])
    code, out, err = called(monkeypatch, capsys, "plan", recipe, f"evaluate={judge}")
    assert (code, out) == (2, "")
    assert "evaluate[0].judge.url: nothing answers at http://127.0.0.1:9/v1" in err
    assert "Traceback" not in err
    code, out, err = called(monkeypatch, capsys, "plan", recipe, f"evaluate={judge}", "--offline")
    assert code == 0, err
    assert "judge     org/judge, at most 32 verdicts: teacher, student, warm-up, distilled against the reference, in both orders" in out


def test_a_forecast_knows_that_judged_answers_are_long(planned):
    machine, judged, before = gpu_named("T4"), planned("evaluate[1].max_tokens=128", "sampling.batch_size=512"), planned("evaluate=[]")
    with_short = planned("sampling.batch_size=512")

    def evaluation(plan):
        return {stage.name: stage.total for stage in memory_of(plan, machine)}["evaluation"], seconds_of(plan, guessed(plan, machine))["evaluation"]

    assert all(long > short for long, short in zip(evaluation(judged), evaluation(with_short), strict=True))
    assert seconds_of(before, guessed(before, machine))["evaluation"] == 0
