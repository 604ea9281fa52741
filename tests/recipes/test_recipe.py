"""What a good recipe loads to: values, overrides, paths, and the canonical dump."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hubdistill.errors import RecipeError
from hubdistill.recipe import LoadedRecipe, Recipe, dump_resolved, load_recipe
from hubdistill.specs import EvaluationSpec, SamplingSpec

GOOD = """\
# A comment that must survive.
target: {kind: text}
teacher:
  model: org/teacher
  revision: no          # a branch called "no", not false
  dtype: bfloat16
student: {model: ./student, layers: [0, 2, 4]}
prompts:
  dataset: data/prompts.jsonl
  column: on
  response_column: 2026-11-24
  count: 50
warmup: {kind: none}
loss: {preset: distillm2, alpha: 1e-2, alpha_range: [1E-2, .1], beta_end: 1, anchor: off}
lora: {rank: 8, alpha: 16, modules: [q_proj, v_proj]}
train: {rounds: 2, learning_rate: 1e-5, seed: 0, gradient_checkpointing: True}
evaluate:
  - kind: divergence
  - {kind: overlap}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "student").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "prompts.jsonl").write_text("{}\n")
    file = tmp_path / "tiny.v2.yaml"
    file.write_text(GOOD.replace("alpha_range: [1E-2, .1], ", "").replace("anchor: off", "anchor: frozen"))
    return file


def test_values_are_those_of_yaml_1_2(path: Path) -> None:
    path.write_text(GOOD.replace("alpha_range: [1E-2, .1], ", ""))
    recipe = load_recipe(path).recipe
    assert recipe.teacher.revision == "no"
    assert recipe.prompts.column == "on"
    assert recipe.prompts.response_column == "2026-11-24"
    assert recipe.student.layers == (0, 2, 4)
    assert recipe.loss.anchor == "off"
    assert recipe.loss.alpha == pytest.approx(0.01)
    assert recipe.loss.beta_end == 1.0
    assert recipe.train.learning_rate == pytest.approx(1e-5)
    assert recipe.train.gradient_checkpointing is True
    assert recipe.evaluate == (EvaluationSpec(kind="divergence"), EvaluationSpec(kind="overlap"))
    assert recipe.sampling == SamplingSpec()
    assert recipe.publish is None


def test_what_is_loaded_besides_the_recipe(path: Path) -> None:
    loaded = load_recipe(str(path), ["train.rounds=1"])
    assert (loaded.path, loaded.name, loaded.origin, loaded.overrides) == (path, "tiny.v2", "file", ("train.rounds=1",))
    assert loaded.text == path.read_text()
    assert load_recipe(path, name="other").name == "other"
    with pytest.raises(AttributeError):
        loaded.name = "x"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["train.rounds=5"], "train.rounds", 5),
        (["train.rounds=5", "train.rounds=6"], "train.rounds", 6),
        (["lora.rank=32"], "lora.rank", 32),
        (["loss={preset: cald}"], "loss.preset", "cald"),
        (["student.layers=[1, 3]"], "student.layers", (1, 3)),
        (["student.layers=3"], "student.layers", 3),
        (["student.layers=null"], "student.layers", None),
        (["train.gradient_checkpointing=null"], "train.gradient_checkpointing", False),
        (["train.learning_rate=3e-4"], "train.learning_rate", 3e-4),
        (["sampling.temperature=0"], "sampling.temperature", 0.0),
        (["sampling={max_tokens: 7}"], "sampling.max_tokens", 7),
        (["evaluate=[{kind: overlap}]"], "evaluate", (EvaluationSpec(kind="overlap"),)),
        (["evaluate=[]"], "evaluate", ()),
        (["teacher.revision='1.0'"], "teacher.revision", "1.0"),
        (["teacher.revision=a=b"], "teacher.revision", "a=b"),
        (["lora.modules=[k_proj]"], "lora.modules", ("k_proj",)),
    ],
)
def test_overrides(path: Path, overrides: list[str], key: str, value: object) -> None:
    found: object = load_recipe(path, overrides).recipe
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


def test_an_override_repairs_the_file(path: Path) -> None:
    path.write_text(path.read_text().replace("rank: 8", "rank: x"))
    with pytest.raises(RecipeError):
        load_recipe(path)
    assert load_recipe(path, ["lora.rank=4"]).recipe.lora.rank == 4


def test_a_block_can_be_added_and_taken_out(path: Path) -> None:
    added = ["publish.repo=me/adapter", "publish.base_repo=me/base"]
    publish = load_recipe(path, added).recipe.publish
    assert publish is not None
    assert (publish.repo, publish.private) == ("me/adapter", True)
    assert load_recipe(path, [*added, "publish=null"]).recipe.publish is None


def test_an_item_of_a_list_can_be_replaced(path: Path) -> None:
    recipe = load_recipe(path, ["evaluate[0].kind=overlap", "evaluate[1].kind=divergence"]).recipe
    assert [one.kind for one in recipe.evaluate] == ["overlap", "divergence"]


def test_remote_code_of_a_hub_recipe_needs_the_flag(path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    path.write_text(path.read_text().replace("./student", "org/student").replace("data/prompts.jsonl", "org/data"))
    overrides = ["teacher.trust_remote_code=true", f"teacher.revision={commit}"]
    with pytest.raises(RecipeError, match="allow-remote-code"):
        load_recipe(path, overrides, origin="hub")
    assert load_recipe(path, overrides, origin="hub", allow_remote_code=True).recipe.teacher.trust_remote_code
    assert load_recipe(path, overrides).recipe.teacher.trust_remote_code


def test_the_dump_reads_back_to_the_same_recipe(path: Path) -> None:
    recipe = load_recipe(path, ["teacher.revision='off'"]).recipe
    path.write_text(dump_resolved(recipe))
    again = load_recipe(path).recipe
    assert again == recipe
    assert dump_resolved(again) == dump_resolved(recipe)


def test_json_reads_back_to_the_same_recipe(path: Path) -> None:
    recipe = load_recipe(path).recipe
    as_json = recipe.model_dump_json()
    assert json.loads(as_json)["target"] == {"kind": "text"}
    assert Recipe.model_validate_json(as_json) == recipe


def test_a_revision_of_forty_digits_is_text(path: Path) -> None:
    commit = "1234567890123456789012345678901234567890"
    assert load_recipe(path, [f"teacher.revision={commit}"]).recipe.teacher.revision == commit


def test_equal_text_loads_to_equal_recipes(path: Path) -> None:
    loaded: LoadedRecipe = load_recipe(path)
    assert load_recipe(path) == loaded
    assert load_recipe(path, ["train.seed=1"]).recipe != loaded.recipe


@pytest.mark.parametrize(
    "name",
    [
        "org/hf_instruction_tuning_dataset_v2",
        "org/sk-learn-20newsgroups-dataset-2",
        "org/risk-assessment-2024-long-name",
        "AKIRA/ghp_data",
    ],
)
def test_names_that_only_look_like_secrets_are_fine(path: Path, name: str) -> None:
    assert load_recipe(path, [f"prompts.dataset={name}"]).recipe.prompts.dataset == name
