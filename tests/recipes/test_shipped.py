"""Every shipped recipe loads, keeps the paper's hyper-parameters and names only models that are recorded."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubdistill import shipped
from hubdistill.errors import MissingError
from hubdistill.recipe import Recipe, load_recipe
from hubdistill.shipped import find_recipe, list_recipes, model_cards_root, recipes_root
from tests.recorded.seed import DATASETS, model_ids

REPO = Path(__file__).parents[2]
FILES = sorted((REPO / "recipes").rglob("*.yaml"))
TEXT = [file for file in FILES if file.parent.name == "text"]
VLM = [file for file in FILES if file.parent.name == "vlm"]
INT4 = [file for file in FILES if file.parent.name == "int4" and file.stem != "smollm2-135m"]  # which names a Python package
DRAFTER = [file for file in FILES if file.parent.name == "drafter" and file.stem != "smollm2-135m"]
PAPER = {  # recipe -> (student, teacher, data set, rounds): Tables 2-4, C.1 and Table 11
    "qwen2-1.5b_from_qwen2-7b": ("Qwen/Qwen2-1.5B", "Qwen/Qwen2-7B-Instruct", "HuggingFaceH4/ultrachat_200k", 3),
    "danube2-1.8b_from_mistral-7b": ("h2oai/h2o-danube2-1.8b-base", "mistralai/Mistral-7B-Instruct-v0.2", "HuggingFaceH4/ultrachat_200k", 3),
    "gemma-2-2b_from_gemma-2-9b": ("google/gemma-2-2b", "google/gemma-2-9b-it", "HuggingFaceH4/ultrachat_200k", 3),
    "qwen2-math-1.5b_from_qwen2-math-7b": ("Qwen/Qwen2-Math-1.5B", "Qwen/Qwen2-Math-7B-Instruct", "meta-math/MetaMathQA", 2),
    "qwen2.5-math-1.5b_from_qwen2.5-math-7b": ("Qwen/Qwen2.5-Math-1.5B", "Qwen/Qwen2.5-Math-7B-Instruct", "meta-math/MetaMathQA", 2),
    "qwen2.5-coder-1.5b_from_qwen2.5-coder-7b": ("Qwen/Qwen2.5-Coder-1.5B", "Qwen/Qwen2.5-Coder-7B-Instruct", "nickrosh/Evol-Instruct-Code-80k-v1", 2),
    "deepseek-coder-1.3b_from_deepseek-coder-6.7b": ("deepseek-ai/deepseek-coder-1.3b-base", "deepseek-ai/deepseek-coder-6.7b-instruct", "nickrosh/Evol-Instruct-Code-80k-v1", 2),
}  # fmt: skip


def recipe_of(file: Path) -> Recipe:
    return load_recipe(file, origin="shipped").recipe


def test_the_list_is_the_folder() -> None:
    assert [recipe.path.resolve() for recipe in list_recipes()] == FILES
    assert {file.stem for file in TEXT} == set(PAPER)
    assert recipes_root().resolve() == REPO / "recipes"
    assert model_cards_root().resolve() == REPO / "model_cards"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_loads_and_opens_with_what_it_does_and_the_command(file: Path) -> None:
    assert recipe_of(file)
    head = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    name = file.relative_to(REPO / "recipes").with_name(file.name.removesuffix(".yaml")).as_posix()
    assert any(f"hubdistill run {name}" in line for line in head)
    assert len(head[0]) > 20
    assert find_recipe(name) == file


@pytest.mark.parametrize("file", TEXT, ids=lambda file: file.stem)
def test_text_recipes_keep_the_hyper_parameters_of_the_paper(file: Path) -> None:
    recipe = recipe_of(file)
    found = (recipe.student.model, recipe.teacher.model, recipe.prompts.dataset, recipe.train.rounds)
    assert found == PAPER[file.stem]
    assert (recipe.lora.rank, recipe.train.learning_rate, recipe.train.pairs_per_step) == (16, 5e-5, 128)
    assert (recipe.sampling.temperature, recipe.sampling.top_p, recipe.prompts.count) == (0.8, 0.95, 50_000)
    assert (recipe.loss.alpha, recipe.warmup.kind, recipe.publish) == (0.1, "sft", None)
    assert recipe.lora.modules is None  # all linear layers of attention and MLP


@pytest.mark.parametrize("file", [*TEXT, *VLM, *INT4, *DRAFTER], ids=lambda file: file.stem)
def test_the_publish_block_shown_in_the_comment_works(file: Path) -> None:
    line = next(line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("# publish:"))
    value = line.removeprefix("# publish:").strip().replace("YOUR-NAME", "me")
    publish = load_recipe(file, [f"publish={value}"]).recipe.publish
    assert publish is not None
    assert publish.repo.startswith("me/")
    assert publish.private


def test_every_model_and_data_set_is_recorded() -> None:
    recipes = [recipe_of(file) for file in [*TEXT, *VLM, *INT4, *DRAFTER]]
    assert {spec.model for recipe in recipes for spec in (recipe.teacher, recipe.student)} == set(model_ids())
    sources = [recipe.prompts for recipe in recipes] + [one.questions for recipe in recipes for one in recipe.evaluate if one.questions]
    assert {source.dataset for source in sources} == set(DATASETS)
    assert all(DATASETS[source.dataset][0] == source.split for source in sources)


def test_the_paper_s_vision_pair_keeps_its_hyper_parameters() -> None:
    recipe = recipe_of(REPO / "recipes" / "vlm" / "tinyllava_from_llava-1.5-7b.yaml")
    assert (recipe.student.model, recipe.teacher.model, recipe.prompts.dataset) == ("bczhou/tiny-llava-v1-hf", "llava-hf/llava-1.5-7b-hf", "openbmb/RLAIF-V-Dataset")
    assert (recipe.lora.rank, recipe.train.learning_rate, recipe.train.pairs_per_step, recipe.loss.alpha) == (16, 5e-5, 128, 0.1)
    assert (recipe.sampling.temperature, recipe.sampling.top_p) == (0.8, 0.95)
    assert recipe.prompts.count is not None
    assert recipe.prompts.count + recipe.prompts.heldout == 83_132  # all of them
    assert recipe.prompts.max_tokens + recipe.sampling.max_tokens <= 2048  # TinyLlama's positions, which its config does not state
    assert [one.questions.dataset for one in recipe.evaluate if one.questions] == ["lmms-lab/OK-VQA", "lmms-lab/textvqa"]


def test_a_wheel_has_them_inside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "hubdistill"
    (package / "recipes" / "text").mkdir(parents=True)
    (package / "recipes" / "text" / "a-1.5b.yaml").write_text("# About it.\n")
    monkeypatch.setattr(shipped, "__file__", str(package / "shipped.py"))
    assert [(recipe.name, recipe.about) for recipe in list_recipes()] == [("text/a-1.5b", "About it.")]
    assert find_recipe("text/a-1.5b.yaml") == package / "recipes" / "text" / "a-1.5b.yaml"
    assert find_recipe("text/a-1") is None
    with pytest.raises(MissingError, match="reinstall"):
        model_cards_root()
