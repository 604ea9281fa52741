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
TEACHER, STUDENTS, BOTH = {"round_1-teacher"}, {"round_1-student", "round_2-student"}, {"round_1-interleaved", "round_2-interleaved"}
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


def run_of(tmp_path, notes, *overrides, until="train", folder="run"):
    recipe = load_recipe(tiny.write_recipe(tmp_path), list(overrides))
    with RunDirectory(tmp_path / folder, notes.stage).locked() as directory:
        run = Run(make_plan(recipe), directory, notes)
        run.distil(until=until)
        if until == "evaluate":
            run.finish()
    return run


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
        steps = [sum(map(len, batches[start : start + 2])) for start in range(0, len(batches), 2)]
        assert all(size == 8 for size in steps[:-1])  # four pairs are eight responses, of one side or of two
        allowed = {"distillm": rounds[: number + 1], "off_policy": rounds[:1]}.get(name, rounds[number : number + 1])
        of_data, of_student = ({key: ids for key, flag, ids in found if flag is side} for side in (False, True))
        assert len(found) == len(of_data) + len(of_student) > 0  # each once
        assert all(ids == fixed[key] for key, ids in of_data.items())
        assert all(ids in [one[key] for one in allowed] for key, ids in of_student.items())
        assert bool(of_data) == bool(fixed)
        assert bool(of_student) == bool(rounds)
        if name == "sft":  # no other has a response for every prompt that says something
            assert of_data == fixed


TYPICAL = ("loss.acceptance=typical", "loss.epsilon=0.5")
INTERLEAVED = {
    "skd": (("loss.preset=skd",), BOTH),
    "minillm": (("loss.preset=minillm",), BOTH),
    "figure 2, y_s": (("loss.student_responses=interleaved", *TYPICAL), TEACHER | BOTH),
    "figure 2, y_t": (("loss.fixed_responses=interleaved", *TYPICAL), STUDENTS | BOTH),
}


@pytest.mark.parametrize(("name", "placement"), zip(INTERLEAVED, ("cached", "resident", "resident", "cached"), strict=True))
def test_interleaved_responses_are_written_anew_each_round_and_trained_on(name, placement, tmp_path, notes, seen):
    overrides, sampled = INTERLEAVED[name]
    results = run_of(tmp_path, notes, *overrides, f"teacher.placement={placement}").results()
    assert {stage for stage, _ in notes.stages} == TRAINED | sampled
    assert sum("of the tokens are the student's" in note for note in notes.notes) == 2
    rounds = [answers(tmp_path / "run" / f"round_{n}" / "interleaved.parquet") for n in (1, 2)]
    assert rounds[0] != rounds[1]
    found = [(key, ids) for batch in seen for key, flag, ids in batch if flag == (name != "figure 2, y_t")]
    times = 2 if name == "minillm" else 1  # once before the round, by the student as it is
    first, second = (times * results[f"round_{n}-train"]["pairs"] for n in (1, 2))
    assert len(found) == first + second
    assert min(first, second) > 0
    assert all(ids == rounds[number >= first][key] for number, (key, ids) in enumerate(found))
    assert not list((tmp_path / "run").glob("round_*/interleaved.states"))  # no later round reads them


def test_the_teacher_that_keeps_everything_leaves_what_the_student_says(tmp_path, notes):
    """Epsilon 0 of Figure 2 is the preset as it is, token for token, so an ablation differs by its threshold alone."""
    run_of(tmp_path, notes, "loss.preset=imitkd", "train.rounds=1", folder="plain")
    run_of(tmp_path, notes, "loss.preset=skd", "loss.acceptance=typical", "loss.epsilon=0", "train.rounds=1", folder="all")
    assert answers(tmp_path / "all" / "round_1" / "interleaved.parquet") == answers(tmp_path / "plain" / "round_1" / "student.parquet")
    first, second = ((tmp_path / name / "round_1" / "adapter" / "adapter_model.safetensors").read_bytes() for name in ("plain", "all"))
    assert first == second


def test_minillm_without_the_teachers_share_trains_on_what_the_student_says(tmp_path, notes, seen):
    run_of(tmp_path, notes, "loss.preset=minillm", "loss.student_responses=round", "train.rounds=1", until="evaluate")
    assert {stage for stage, _ in notes.stages} == {"prompts", "warmup", "round_1-student", "round_1-train", "evaluate", "card"}
    said = answers(tmp_path / "run" / "round_1" / "student.parquet")
    assert all(ids == said[key] for batch in seen for key, _, ids in batch)
    card = (tmp_path / "run" / "README.md").read_text()
    assert "with MiniLLM" in card
    assert "reverse KL on student responses and by policy gradient what each token leads to" in card


def test_a_card_says_how_interleaved_responses_came_about(tmp_path, notes):
    run_of(tmp_path, notes, "loss.preset=skd", "train.rounds=1", "loss.top_k=3", until="evaluate")
    card = (tmp_path / "run" / "README.md").read_text()
    assert "with Speculative KD" in card
    assert "2410.11325" in card
    assert "KL on interleaved responses" in card
    assert "the student's token where it is among the teacher's 3 most likely, else the teacher's" in card
    page = (tmp_path / "run" / "report.html").read_text()
    assert "with skd: KL on interleaved responses" in page
    assert "round 1, interleaved" in page
    memory = json.loads((tmp_path / "run" / "run.json").read_text())["memory"]
    assert "both models answer together" in [row["stage"] for row in memory]


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["loss.epsilon=0.2"], r"loss\.epsilon: has no effect: no responses are interleaved"),
        (["loss.preset=skd", "loss.epsilon=0.2"], r"loss\.epsilon: has no effect with acceptance: top_k; remove it, or write acceptance: typical"),
        (["loss.preset=skd", "loss.acceptance=typical", "loss.top_k=2"], r"loss\.top_k: has no effect with acceptance: typical"),
        (["loss.student_responses=interleaved", "loss.fixed_responses=interleaved"], r"loss\.fixed_responses: both responses of a pair would be the same"),
        (["loss.preset=skd", "sampling.engine=vllm"], r"sampling\.engine: student and teacher write .*write transformers"),
        (["loss.preset=skd", "sampling.server={url: 'http://127.0.0.1:1/v1', model: m}"], r"sampling\.server: student and teacher write .*remove it"),
        (["loss.preset=skd", "loss.teacher_share=0.5"], r"loss\.teacher_share: has no effect with acceptance: top_k; remove it, or write acceptance: mixed"),
        (["loss.preset=minillm", "loss.acceptance=typical"], r"loss\.acceptance: the preset 'minillm' weighs tokens .*write mixed"),
        (["loss.preset=minillm", "loss.student_responses=replay"], r"loss\.student_responses: the preset 'minillm' weighs .*write round or interleaved"),
        (["loss.preset=minillm", "loss.beta=constant"], r"loss\.beta: the preset 'minillm' weighs tokens .*remove it"),
        (["loss.preset=minillm", "loss.alpha=0.2"], r"loss\.alpha: has no effect with the preset 'minillm', whose divergence is rkl"),
        (["loss.preset=skd", "target.kind=vlm"], r"the target 'vlm' cannot.*student_responses: round"),
    ],
)
def test_what_cannot_be_interleaved_is_refused(overrides, why, tmp_path):
    with pytest.raises(RecipeError, match=why):
        load_recipe(tiny.write_recipe(tmp_path), overrides)


def test_responses_of_a_third_model_stand_beside_the_students(tmp_path, notes, seen, tokenizer):
    """Figure 2 (b): a stronger model's responses are a column of the data."""
    run_of(tmp_path, notes, "loss.preset=distillm2", "loss.fixed_responses=data", "train.rounds=1")
    kept = answers(tmp_path / "run" / "data.parquet")
    texts = {row["answer"] for row in map(json.loads, (tmp_path / "prompts.jsonl").read_text().splitlines())}
    of_data = {key: ids for batch in seen for key, flag, ids in batch if not flag}
    assert of_data
    assert all(ids == kept[key] and tokenizer.decode(ids[:-1]) in texts for key, ids in of_data.items())
    assert {stage for stage, _ in notes.stages} == {"prompts", "warmup", "data-responses", "round_1-student", "round_1-train"}


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


ROUNDS = ("train.rounds=4", "train.prompts_per_round=3", "train.learning_rate=0.00001", "sampling.temperature=3")  # of 8 prompts, and few empty answers
ALL_OF, OWN_OF = {"round_1-teacher": 8}, {f"round_{n}-student": 3 for n in (1, 2, 3, 4)}


def test_each_round_takes_the_next_prompts(tmp_path, notes, seen):
    """Four rounds of three of eight prompts: the third takes the last two and begins again."""
    run = run_of(tmp_path, notes, *ROUNDS)
    first, second, third, fourth = asked = [set(answers(tmp_path / "run" / f"round_{n}" / "student.parquet")) for n in (1, 2, 3, 4)]
    assert first | second | third == set(answers(tmp_path / "run" / "round_1" / "teacher.parquet"))
    assert [len(one) for one in (*asked, first & second, third & first, fourth & first, fourth & second)] == [3, 3, 3, 3, 0, 1, 2, 1]
    rows, trained = [run.results()[f"round_{n}-train"] for n in (1, 2, 3, 4)], iter([key for batch in seen for key, flag, _ in batch if flag])
    for row, share in zip(rows, asked, strict=True):
        assert (row["steps"], row["pairs"] + row["empty"], row["unmatched"]) == (1, 3, 0)
        assert {next(trained) for _ in range(row["pairs"])} <= share
    assert next(trained, None) is None
    assert run.plan.steps == 1
    notes.stages.clear()
    run_of(tmp_path, notes, *ROUNDS)
    assert {what for _, what in notes.stages} == {"skipped"}


@pytest.mark.parametrize(
    ("overrides", "sampled"),
    [
        pytest.param(["loss.preset=off_policy"], ALL_OF | {"round_1-student": 8}, marks=pytest.mark.slow),  # what serves other rounds is of all prompts
        pytest.param(["loss.preset=skd"], {f"round_{n}-interleaved": 3 for n in (1, 2, 3, 4)}, marks=pytest.mark.slow),
        pytest.param(["loss.preset=kd"], {}, marks=pytest.mark.slow),
        pytest.param(["sampling.resample_teacher=true"], OWN_OF | {f"round_{n}-teacher": 3 for n in (1, 2, 3, 4)}, marks=pytest.mark.slow),
        (["sampling.resample_teacher=true", "warmup.responses=teacher"], OWN_OF | ALL_OF | {f"round_{n}-teacher": 3 for n in (2, 3, 4)}),
    ],
)  # fmt: skip
def test_only_what_serves_other_rounds_is_asked_of_all_prompts(overrides, sampled, tmp_path, notes):
    results = run_of(tmp_path, notes, *ROUNDS, *overrides).results()
    assert {name: row["rows"] for name, row in results.items() if name.endswith(("-teacher", "-student", "-interleaved"))} == sampled
    assert all(results[f"round_{n}-train"]["pairs"] + results[f"round_{n}-train"]["empty"] == 3 for n in (1, 2, 3, 4))


@pytest.mark.parametrize(("name", "size"), [("distillm2", "2 steps of 4 pairs"), ("kd", "1 step of 8 responses"), ("imitkd", "1 step of 8 responses")])
def test_plan_counts_what_a_step_holds(name, size, tmp_path):
    assert size in plan_text(make_plan(load_recipe(tiny.write_recipe(tmp_path), [f"loss.preset={name}"])).as_dict() | {"forecast": None})


def test_plan_shows_the_first_and_the_last_of_many_rounds(tmp_path):
    text = plan_text(make_plan(load_recipe(tiny.write_recipe(tmp_path), ["train.rounds=300", "train.prompts_per_round=4"])).as_dict() | {"forecast": None})
    assert "300 of at most 1 step of 4 pairs" in text
    assert [int(line.split()[0]) for line in text.splitlines() if line.endswith(("anchor)", "for all"))] == [1, 2, 3, 4, 5, 296, 297, 298, 299, 300]


def test_a_data_set_without_responses_is_refused_by_name(tmp_path):
    path = tiny.write_recipe(tmp_path, prompts={"dataset": "prompts.jsonl", "heldout": 4, "max_tokens": 64}, warmup={"kind": "none"})
    with pytest.raises(RecipeError, match=r"loss\.preset: kd trains on the data set's responses.*loss\.fixed_responses: teacher"):
        make_plan(load_recipe(path, ["loss.preset=kd"]))
    make_plan(load_recipe(path, ["loss.preset=kd", "loss.fixed_responses=teacher"]))
