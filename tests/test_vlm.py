"""The vlm target from the recipe to the Hub and back, over the toy LLaVA pair; and that it is the text target for text."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hubdistill import targets
from hubdistill.errors import InputError, RecipeError
from hubdistill.hub.reproduce import files_of_this_machine, pinned_recipe
from hubdistill.modalities.text import TEXT
from hubdistill.modalities.vision import VISION
from hubdistill.plan import make_plan
from hubdistill.publication import write_record
from hubdistill.recipe import load_recipe
from hubdistill.run import Run
from hubdistill.rundir import RunDirectory
from hubdistill.targets import int4
from tests import tiny, tiny_vlm
from tests.command import as_a_user, called, finished_run, here, hubdistill, pushed_and_pulled
from tests.hub_server import HubServer

ALICE = "hf_alice_write"
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The smoke recipe's run, through the command line."""
    return finished_run(tmp_path_factory.mktemp("vlm"), "smoke/vlm", "exact_match on smoke_vlm")


def test_the_smoke_recipe_leaves_a_whole_run(finished: Path):
    for name in ("recipe.yaml", "plan.json", "round_1", "round_2", "metrics.jsonl", "measurements.json", "README.md", "hub", "prompts/images"):
        assert (finished / name).exists(), name
    rows = json.loads((finished / "measurements.json").read_text())
    found = {(row["metric"], row["on"], row["subject"]) for row in rows}
    for subject in ("student", "warm-up", "distilled", "teacher"):
        assert {("exact_match", "smoke_vlm", subject), ("exact_match", "smoke_vlm, no image", subject), ("exact_match", "smoke_vlm / color", subject), ("exact_match", "smoke_vlm / text only", subject)} <= found
    assert ("kl", "own responses", "distilled") in found
    card = (finished / "README.md").read_text()
    assert "pipeline_tag: image-text-to-text" in card
    assert "AutoModelForImageTextToText" in card
    assert "exact match on smoke\\_vlm, no image" in card
    assert "| questions asked | shipped:smoke\\_vlm.jsonl (apache-2.0) |" in card
    assert "| asked of smoke\\_vlm | 6 questions (left out: 20 that are training prompts), answers of at most 8 tokens |" in card
    assert card.count("smoke\\_vlm: questions with and without their images, decoding greedy, at most 8 tokens, seed 0\n") == 1
    assert card.count("not listed, for too few prompts to tell") == 1
    assert {row["n"] for row in rows if row["on"] == "smoke_vlm"} == {6}  # of 26; the others are training prompts


def test_the_report_shows_images_and_everyone_s_words(finished: Path):
    page = (finished / "report.html").read_text()
    assert page.count("<article>") == 6
    assert 4 < page.count("src=\"data:image/png;base64,") < 9
    for subject in ("base", "after warm-up", "this adapter", "teacher"):
        assert page.count(f"<dt>{subject}</dt>") == 6
    assert "default-src 'none'" in page


def test_only_names_of_images_are_stored_beside_the_token_ids(finished: Path):
    import pyarrow.parquet as pq

    table = pq.read_table(finished / "prompts" / "train.parquet")
    assert table.schema.names == ["prompt_id", "messages", "prompt_ids", "response", "student_prompt_ids", "images", "answers", "group"]
    names = {name for row in table["images"].to_pylist() for name in row}
    assert names
    assert names <= {path.name for path in (finished / "prompts" / "images").iterdir()}
    for file in ("round_1/teacher", "round_1/student", "round_2/student"):
        assert pq.read_schema(finished / f"{file}.parquet").names == ["prompt_id", "prompt_ids", "response_ids", "finish_reason", "seed"]


def test_no_image_token_is_ever_sampled(finished: Path):
    import pyarrow.parquet as pq

    for path in [*finished.glob("round_*/*.parquet"), *finished.glob("evaluation/**/*.parquet")]:
        assert 3 not in {token for row in pq.read_table(path)["response_ids"].to_pylist() for token in row}, path


USER = """
import json, sys
code = open("snippet.py").read().replace(', device_map="auto"', "")
exec(code)
print(json.dumps({"answer": answer.tolist(), "processor": type(processor).__name__, "pixels": list(inputs["pixel_values"].shape)}))
"""


@pytest.mark.parametrize("storage", [{}, pytest.param({"HF_HUB_DISABLE_XET": "1"}, marks=pytest.mark.slow)], ids=["xet", "lfs"])
def test_the_adapter_comes_back_from_the_hub_and_answers_as_the_card_says(finished: Path, tmp_path: Path, storage: dict[str, str]):
    from peft import PeftModel
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    env = {"HF_TOKEN": ALICE, **storage}
    with HubServer() as server:
        env |= {"HF_ENDPOINT": server.url}
        pulled = pushed_and_pulled(finished, tmp_path, **env)
        snippet = pulled.split("# merged")[0].split("# transformers and PEFT")[1].split("# vLLM")[0]
        (tmp_path / "snippet.py").write_text(snippet)
        picture = ROOT / "recipes" / "data" / "smoke_vlm" / "red_circle.png"
        (tmp_path / "picture.png").write_bytes(picture.read_bytes())
        said = as_a_user(USER, tmp_path, **env)
    assert (said["processor"], said["pixels"]) == ("LlavaProcessor", [1, 3, 24, 24])  # the student's, not the teacher's
    # The same by hand, from the files of the run.
    base = json.loads((finished / "location.json").read_text())["base"]
    model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), finished / "round_2" / "adapter")
    processor = AutoProcessor.from_pretrained(base)
    prompt = processor(text=["<s>USER: <image>\nWhat is in the picture? ASSISTANT:"], images=[[Image.open(picture)]], add_special_tokens=False, return_tensors="pt")
    torch.set_num_threads(1)
    expected = model.generate(**prompt, max_new_tokens=64)[0, prompt["input_ids"].shape[1] :]
    assert said["answer"] == expected.tolist()


def test_a_text_batch_through_the_vision_target_is_the_text_target(tmp_path: Path, notes):
    """The same prompts without images, the same models: the adapters of a `vlm` run and of one whose modality is text."""
    recipe = text_recipe(tmp_path)
    plan = make_plan(load_recipe(recipe))
    for name, modality in (("vision", VISION), ("text", replace(TEXT, encode_prompt=VISION.encode_prompt, load_reader=VISION.load_reader))):
        with RunDirectory(tmp_path / name, notes.stage).locked() as directory:
            Run(replace(plan, target=replace(plan.target, modality=modality)), directory, notes).distil()
    weights = [(tmp_path / name / "round_1" / "adapter" / "adapter_model.safetensors").read_bytes() for name in ("vision", "text")]
    assert weights[0] == weights[1]
    metrics = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("vision", "text")]
    assert len(metrics[0].splitlines()) > 3
    assert metrics[0] == metrics[1]


def text_recipe(folder: Path) -> Path:
    """A recipe of text prompts over a LLaVA pair."""
    for role, seed in (("teacher", 1), ("student", 2)):
        model, processor = tiny_vlm.llava(seed)
        tiny_vlm.save(folder / role, model, processor)
    rows = [{"prompt": f"tell me about {a} {b}", "answer": f"it was {a}"} for a in ("cat", "dog", "hill") for b in ("one", "two", "three", "four")]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tiny.write_recipe(folder, target={"kind": "vlm"}, train={"rounds": 1, "pairs_per_step": 4, "micro_batch": 2, "learning_rate": 0.01, "device": "cpu"},
                             evaluate=[], prompts={"dataset": "prompts.jsonl", "response_column": "answer", "heldout": 4, "max_tokens": 200})  # fmt: skip


def test_a_text_model_and_a_vision_model_are_told_apart(tmp_path: Path):
    tiny.write_recipe(tmp_path)
    model, processor = tiny_vlm.llava()
    tiny_vlm.save(tmp_path / "seeing", model, processor)
    with pytest.raises(RecipeError, match=r"teacher.model: ./teacher reads no images; .*kind: text"):
        make_plan(load_recipe(tmp_path / "tiny.yaml", ["target.kind=vlm", "student.model=./seeing"]))
    with pytest.raises(RecipeError, match=r"student.model: ./seeing is a vision-language model; write `target: {kind: vlm}`"):
        make_plan(load_recipe(tmp_path / "tiny.yaml", ["student.model=./seeing"]))


def test_a_pruned_vision_student_keeps_its_processor(tmp_path: Path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from hubdistill.models.pruned import build_pruned

    recipe = tmp_path / "a.yaml"
    recipe.write_text((ROOT / "recipes" / "smoke" / "vlm.yaml").read_text())
    plan = make_plan(load_recipe(recipe, ["student.model=toy:llava", "student.layers=2"]))
    folder = build_pruned(plan.student_source, plan.student, 2)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert len(model.get_decoder().layers) == plan.student.text_config["num_hidden_layers"] == 2
    assert AutoProcessor.from_pretrained(folder).chat_template == AutoProcessor.from_pretrained(plan.student_source.location).chat_template


def test_what_is_published_of_question_sets_is_pinned_and_names_no_path(tmp_path: Path):
    (tmp_path / "secret_place").mkdir()
    (tmp_path / "secret_place" / "asked.jsonl").write_text('{"question": "what?", "answer": "this", "image": null}\n')
    recipe = tmp_path / "a.yaml"
    recipe.write_text((ROOT / "recipes" / "smoke" / "vlm.yaml").read_text())
    asked = str(tmp_path / "secret_place" / "asked.jsonl")
    plan = make_plan(load_recipe(recipe, [f"evaluate=[{{kind: vqa, questions: {{dataset: {asked}, column: question, image_column: image, response_column: answer}}}}]"]))
    assert "secret_place" not in pinned_recipe(plan)
    assert "dataset: asked.jsonl" in pinned_recipe(plan)
    write_record(tmp_path, plan, {}, {}, None)
    assert "secret_place" not in (tmp_path / "run.json").read_text()
    assert asked in files_of_this_machine(plan)


def test_questions_alone_need_no_held_out_prompts(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HUBDISTILL_CACHE", str(tmp_path / "cache"))
    asked = "{kind: vqa, questions: {dataset: 'shipped:smoke_vlm.jsonl', column: question, image_column: image, response_column: answer, instruction: One word.}}"
    changes = ("prompts.heldout=0", "prompts.count=8", "train.rounds=1", "warmup.kind=none", "sampling.max_tokens=4")
    code, _, said = called(monkeypatch, capsys, "run", "smoke/vlm", *changes, f"evaluate=[{asked}, {{kind: vqa}}]")
    assert code == 2
    assert "prompts.heldout: is 0 and evaluate needs held-out prompts (only `benchmark`, and `vqa` and `judge` with `questions`, do without)" in said
    code, out, said = called(monkeypatch, capsys, "run", "smoke/vlm", *changes, f"evaluate=[{asked}]")
    assert code == 0, said
    assert re.search(r"\. Results \(mean and 95 % interval\):\n  exact_match on smoke_vlm, share, higher is better: student .*\(n = 18\)\n", out)
    run = tmp_path / "runs" / "smoke-vlm"
    rows = json.loads((run / "measurements.json").read_text())
    assert {(row["metric"], row["split"], row["n"]) for row in rows if row["on"] in ("smoke_vlm", "smoke_vlm, no image")} == {("exact_match", "questions", 18)}
    assert "<h2>Examples</h2>" not in (run / "report.html").read_text()
    assert "answers of at most 16 tokens, after each question: “One word.”" in (run / "README.md").read_text()


def test_an_image_that_was_replaced_is_read_again(tmp_path: Path, notes):
    (tmp_path / "smoke_vlm").mkdir()
    for image in (ROOT / "recipes" / "data" / "smoke_vlm").iterdir():
        (tmp_path / "smoke_vlm" / image.name).write_bytes(image.read_bytes())
    (tmp_path / "rows.jsonl").write_text((ROOT / "recipes" / "data" / "smoke_vlm.jsonl").read_text())
    (tmp_path / "a.yaml").write_text((ROOT / "recipes" / "smoke" / "vlm.yaml").read_text())
    loaded = load_recipe(tmp_path / "a.yaml", ["prompts.dataset=rows.jsonl", "evaluate=[{kind: overlap}]"])

    def images() -> set[str]:
        with RunDirectory(tmp_path / "run", notes.stage).locked() as directory:
            Run(make_plan(loaded), directory, notes).distil(until="prompts")
        return {path.name for path in (tmp_path / "run" / "prompts" / "images").iterdir()}

    first = images()
    assert images() == first
    tiny_vlm.picture(5).save(tmp_path / "smoke_vlm" / "red_circle.png")
    second = images()
    assert len(second - first) == len(first - second) == 1
    assert "rows.jsonl: the image file smoke_vlm/red_circle.png changed since it was read" in notes.notes
    said = len(notes.notes)
    for name in ("red", "green", "blue", "yellow"):
        tiny_vlm.picture(6).save(tmp_path / "smoke_vlm" / f"{name}_square.png")
    (tmp_path / "rows.jsonl").write_text((tmp_path / "rows.jsonl").read_text() + "\n")
    images()
    assert notes.notes[said] == "rows.jsonl changed since it was read"
    assert re.fullmatch(r"rows.jsonl: smoke_vlm/\w+.png, smoke_vlm/\w+.png, smoke_vlm/\w+.png and 1 more image file changed since they were read", notes.notes[said + 1])


def test_plan_says_what_will_be_asked(tmp_path: Path):
    (tmp_path / "q.jsonl").write_text('{"question": "what?", "answer": "this", "image": null}\n' * 3)
    (tmp_path / "a.yaml").write_text((ROOT / "recipes" / "smoke" / "vlm.yaml").read_text())
    asked = "evaluate=[{kind: vqa, max_tokens: %d, questions: {dataset: q.jsonl, column: question, image_column: image, response_column: answer, count: %d}}]"
    done = hubdistill("plan", tmp_path / "a.yaml", asked % (8, 2), folder=tmp_path)
    assert re.search(r"questions q.jsonl  sha256 [0-9a-f]{64}, at most 2 questions\n", done.out), done.err
    assert re.search(r"teacher   toy:llava  digest [0-9a-f]{40}\n", done.out)
    assert re.search(r"prompts   shipped:smoke_vlm.jsonl  sha256 [0-9a-f]{64}\n", done.out)
    assert done.err == ""  # no progress bar of the toys' making
    one = here("plan", tmp_path / "a.yaml", asked % (8, 1), folder=tmp_path)
    assert ", at most 1 question\n" in one.out
    refused = here("plan", tmp_path / "a.yaml", asked % (100_000, 2), folder=tmp_path)
    assert refused.code == 2
    assert "evaluate[0]: questions.max_tokens + max_tokens = 100512, and toy:llava reads" in refused.err
    blind = here("plan", tmp_path / "a.yaml", "prompts.image_column=null", "evaluate=[{kind: overlap}]", folder=tmp_path)
    assert "warning: prompts.image_column is not given: no prompt has an image" in blind.out, blind.err


def test_plan_names_the_key_of_a_column_and_several_bad_rows(tmp_path: Path):
    rows = [{"question": "what?", "answer": "this", "image": None}, {"question": "what?", "answer": "", "image": None}, {"question": "", "answer": None, "image": None}]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.yaml").write_text((ROOT / "recipes" / "smoke" / "vlm.yaml").read_text())
    asked = "evaluate=[{kind: overlap}, {kind: vqa, questions: {dataset: q.jsonl, column: question, image_column: %s, response_column: answer}}]"
    with pytest.raises(RecipeError) as caught:
        make_plan(load_recipe(tmp_path / "a.yaml", [asked % "picture", "prompts.column=questions"]))
    found = [problem.removeprefix(f"{tmp_path / 'a.yaml'}: ") for problem in caught.value.problems]
    assert found[0] == "prompts.column: shipped:smoke_vlm.jsonl:row 1: no column 'questions'; did you mean 'question'?"
    assert found[1].startswith("evaluate[1].questions.image_column: q.jsonl:row 1: no column 'picture'; set `evaluate[1].questions.image_column` to one of:")
    with pytest.raises(RecipeError) as caught:
        make_plan(load_recipe(tmp_path / "a.yaml", [asked % "image"]))
    found = [problem.removeprefix(f"{tmp_path / 'a.yaml'}: ") for problem in caught.value.problems]
    assert [problem.partition(" (")[0] for problem in found] == ["evaluate[1].questions.dataset: q.jsonl:row 2", "evaluate[1].questions.dataset: q.jsonl:row 3"]


def test_a_family_that_cannot_share_features_is_refused_in_the_plan(tmp_path: Path):
    recipe = tmp_path / "a.yaml"
    recipe.write_text((ROOT / "recipes" / "smoke" / "vlm.yaml").read_text())
    (tmp_path / "mllama").mkdir()  # the images of Llama-3.2-Vision come in by cross-attention
    text_config = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 260, "cross_attention_layers": [1], "pad_token_id": 0}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_global_layers": 1, "attention_heads": 2, "image_size": 16, "patch_size": 8,
              "vision_output_dim": 32, "intermediate_layers_indices": [0]}  # fmt: skip
    (tmp_path / "mllama" / "config.json").write_text(json.dumps({"model_type": "mllama", "text_config": text_config, "vision_config": vision}))
    (tmp_path / "mllama" / "model.safetensors").write_bytes(b"")
    with pytest.raises(RecipeError, match=r"teacher.model: MllamaForConditionalGeneration takes no image features that were computed before"):
        make_plan(load_recipe(recipe, ["teacher.model=./mllama"]))


def test_a_model_without_a_chat_template_or_a_processor_is_refused_in_the_plan(tmp_path: Path):
    recipe = tmp_path / "a.yaml"
    recipe.write_text((ROOT / "recipes" / "smoke" / "vlm.yaml").read_text())
    model, processor = tiny_vlm.llava()
    tiny_vlm.save(tmp_path / "teaching", tiny_vlm.llava(1)[0], processor)
    processor.chat_template = None
    tiny_vlm.save(tmp_path / "base", model, processor)
    with pytest.raises(RecipeError, match=r"teacher.model: ./base: its processor has no chat template that writes images, .*; choose an instruction-tuned model"):
        make_plan(load_recipe(recipe, ["teacher.model=./base"]))
    assert make_plan(load_recipe(recipe, ["teacher.model=./teaching", "student.model=./base"])).student.reference == "./base"
    (tmp_path / "base" / "processor_config.json").unlink()
    with pytest.raises(RecipeError, match=r"student.model: ./base: its .*; ch"):
        make_plan(load_recipe(recipe, ["student.model=./base"]))


def test_an_old_llava_repository_is_read_with_what_its_config_says(tmp_path: Path):
    """TinyLLaVA's: no processor_config.json, and the chat template of its language model, which knows no images."""
    from hubdistill.models.sources import find_model
    from hubdistill.specs import ModelSpec

    model, processor = tiny_vlm.llava()
    tiny_vlm.save(tmp_path / "teacher", model, processor)
    words = "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + eos_token }}{% endfor %}"
    old = tiny_vlm.save(tmp_path / "old", model, processor)
    settings = json.loads((old / "processor_config.json").read_text())
    (old / "preprocessor_config.json").write_text(json.dumps(settings["image_processor"]))
    (old / "processor_config.json").unlink()
    (old / "chat_template.jinja").write_text(words)
    facts = {name: find_model(ModelSpec(model=f"./{name}"), tmp_path) for name in ("teacher", "old")}
    teacher = VISION.load_reader(facts["teacher"])
    student = VISION.load_reader(facts["old"], teacher)
    assert student.chat_template == teacher.chat_template != words
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]
    ids = [VISION.encode_prompt(one, messages, [tiny_vlm.picture(0)]) for one in (teacher, student)]
    assert ids[0] == ids[1]
    assert ids[1].count(3) == 16
    with pytest.raises(InputError, match="no chat template that writes images"):
        VISION.load_reader(facts["old"])


@pytest.mark.parametrize(("override", "what"), [
    ("lora.vision_tower=true", r"lora.vision_tower: has no effect, the target 'text' has none"),
    ("prompts.image_column=image", r"prompts.image_column: has no effect, the target 'text' reads no images"),
    ("prompts.damaged_images=skip", r"prompts.damaged_images: has no effect without image_column"),
    ("evaluate=[{kind: vqa}]", r"evaluate\[0\]: 'vqa' asks about images"),
])  # fmt: skip
def test_keys_of_images_are_refused_in_a_text_recipe(tmp_path: Path, override: str, what: str):
    tiny.write_recipe(tmp_path)
    with pytest.raises(RecipeError, match=what):
        load_recipe(tmp_path / "tiny.yaml", [override])


def test_a_4_bit_vision_target_is_one_replace(tmp_path: Path, notes, monkeypatch):
    """All that int4 changes holds for images as it is."""
    monkeypatch.setattr(targets, "TARGETS", (*targets.TARGETS, replace(int4.TARGET, name="int4_vlm", modality=VISION)))
    recipe = tmp_path / "a.yaml"
    recipe.write_text((ROOT / "recipes" / "smoke" / "vlm.yaml").read_text().replace("kind: vlm", "kind: int4_vlm").replace("toy:llava", "toy:tinyllava"))
    plan = make_plan(load_recipe(recipe, ["train.rounds=1", "evaluate=[{kind: divergence}]", "warmup.kind=none", "sampling.max_tokens=4"]))
    with RunDirectory(tmp_path / "run", notes.stage).locked() as directory:
        run = Run(plan, directory, notes)
        run.distil()
        quantised = [name for name, module in run.shop.load_student().named_modules() if type(module).__name__ == "Linear4bit"]
    assert len(quantised) == 2 * 7  # of the language model: neither the tower, nor the projector, nor the head
    assert all("language_model.layers" in name for name in quantised)
    found = {(row["metric"], row["subject"]): row["n"] for row in json.loads((tmp_path / "run" / "measurements.json").read_text())}
    assert found["gap_closed", "distilled"] == 6
