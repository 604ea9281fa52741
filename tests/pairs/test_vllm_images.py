"""Prompts with images for vLLM: what it is told of them; and where vLLM is installed with torchvision, the tokens of transformers."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from hubdistill.errors import InputError, SamplingError
from hubdistill.modalities.base import TokenRow, image_id, media_ids
from hubdistill.modalities.vision import arguments, encode_prompt, inputs
from hubdistill.models.lora import attach_adapter
from hubdistill.models.sources import find_model
from hubdistill.models.vllm_model import engine_settings
from hubdistill.pairs.images import ImageStore
from hubdistill.pairs.sampling import TransformersSampler
from hubdistill.pairs.store import Question
from hubdistill.pairs.vllm_images import FAMILIES, Pictures
from hubdistill.pairs.vllm_sampling import VllmSampler
from hubdistill.pairs.vllm_settings import vllm_version
from hubdistill.specs import LoraSpec, ModelSpec, SamplingSpec, VllmSpec
from tests import tiny_vlm

FAKE = Path(__file__).with_name("fake_vllm.py")
IMAGE = 3
GREEDY = SamplingSpec(engine="vllm", temperature=0, max_tokens=12, vllm=VllmSpec(gpu_memory_utilization=0.1))
installed = pytest.mark.skipif(vllm_version() is None or importlib.util.find_spec("torchvision") is None, reason="vLLM or torchvision, which it wants for images, is not installed")


def short(ids, *images):
    return Pictures(Path("images"), IMAGE).of(Question("p", tuple(ids), images)).get("short_ids")


def test_an_image_becomes_one_placeholder():
    assert short([1, 3, 3, 3, 9, 3, 3, 8], "a", "b") == [1, 3, 9, 3, 8]
    assert short([1, 3, 3, 3, 3, 9, 3, 3], "a", "b", "c") == [1, 3, 3, 9, 3]  # without a gap: images of one size
    assert short([1, 2, 3], "a") == [1, 2, 3]
    assert short([1, 2]) is None
    with pytest.raises(InputError, match=r"in prompt p, 2 images stand in 3 places and differ in size.*write `sampling.engine: transformers`"):
        short([3, 3, 3, 1, 3, 1, 3, 3], "a", "b")


def test_what_is_told_of_images(tmp_path):
    questions = [Question("a", (1, 3, 3, 4), ("x.png",)), Question("b", (1, 5)), Question("c", (3, 1, 3), ("x.png", "y.png"))]
    engine = VllmSampler({"model": "m", "skip_tokenizer_init": True}, None, (2,), (40,), "cpu", tmp_path / "log", pictures=Pictures(tmp_path, IMAGE), version="0.32.0",
                         command=(sys.executable, str(FAKE), "well", str(tmp_path / "started")))  # fmt: skip
    assert sum(map(len, engine.sample(questions, SamplingSpec(engine="vllm", max_tokens=4), lambda _: 1))) == 3
    task = json.loads((tmp_path / "started").read_text())
    assert task["engine"] == {"model": "m", "skip_tokenizer_init": False, "limit_mm_per_prompt": {"image": 2}}
    assert task["images"] == str(tmp_path)
    assert task["asked"] == [{"id": "a", "ids": [1, 3, 3, 4], "seed": 1, "images": ["x.png"], "short_ids": [1, 3, 4]}, {"id": "b", "ids": [1, 5], "seed": 1},
                             {"id": "c", "ids": [3, 1, 3], "seed": 1, "images": ["x.png", "y.png"], "short_ids": [3, 1, 3]}]  # fmt: skip


@pytest.fixture
def case(request, tmp_path, monkeypatch):
    """A tiny model of a family with its processor, on disk; questions with one image, another, two, and none."""
    monkeypatch.setitem(tiny_vlm.TEXT, "hidden_size", 128)  # vLLM's attention on a CPU takes heads of 32 and more
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    model, processor = tiny_vlm.FAMILIES[request.param]()
    tiny_vlm.save(tmp_path / "model", model, processor)
    _as_on_the_hub(tmp_path / "model" / "model.safetensors")
    store = ImageStore(tmp_path / "images", 10**6)
    store.folder.mkdir()
    for number in range(3):
        tiny_vlm.picture(number).save(store.folder / f"{number}.png")
    questions = []
    for number, (words, names) in enumerate([("what?", "0"), ("and this?", "1"), ("which of them?", "12"), ("no image", "")]):
        images = tuple(f"{name}.png" for name in names)
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": words}]
        questions.append(Question(f"p{number}", tuple(encode_prompt(processor, [{"role": "user", "content": content}], [store.open(name) for name in images])), images))
    return model, processor, store, questions


def _as_on_the_hub(file):
    """The names that published checkpoints give a tower's weights; transformers 5.19 writes others, which vLLM 0.32 cannot read."""
    from safetensors.torch import load_file, save_file

    found = {name.replace("vision_tower.", "vision_tower.vision_model.", 1): value for name, value in load_file(file).items()}
    save_file(found, file, metadata={"format": "pt"})


def by_vllm(case, tmp_path, adapter=None):
    _, processor, store, questions = case
    facts = find_model(ModelSpec(model=str(tmp_path / "model")), tmp_path)
    settings = engine_settings(facts, "float32", "cpu", GREEDY, 200, 4 if adapter else None, trained=False)
    engine = VllmSampler(settings, adapter, (2,), tuple(media_ids(processor)), "cpu", tmp_path / "vllm.log", pictures=Pictures(store.folder, image_id(processor)))
    return tokens(engine, questions)


def by_transformers(model, case):
    _, processor, store, questions = case

    def prepare(model, questions):
        rows = [TokenRow(question.prompt_ids, question.images) for question in questions]
        return arguments(model, inputs(processor, rows, 0, "left", store.open))

    return tokens(TransformersSampler(model, (2,), 0, 10**6, None, tuple(media_ids(processor)), prepare), questions)


def tokens(engine, questions):
    return {answer.prompt_id: (answer.response_ids, answer.finish_reason) for batch in engine.sample(questions, GREEDY, lambda _: 1) for answer in batch}


@installed
@pytest.mark.vllm
@pytest.mark.parametrize("case", FAMILIES, indirect=True)
def test_greedy_tokens_after_images_are_those_of_transformers(case, tmp_path):
    assert by_vllm(case, tmp_path) == by_transformers(case[0], case)


@installed
@pytest.mark.vllm
@pytest.mark.parametrize("case", ["llava"], indirect=True)
def test_the_adapter_reads_images_as_peft_does(case, tmp_path):
    without = by_transformers(case[0], case)
    adapted = attach_adapter(case[0], LoraSpec(rank=4, alpha=8), 0)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))) * 0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    found = by_vllm(case, tmp_path, tmp_path / "adapter")
    assert found == by_transformers(adapted.eval(), case)
    assert found != without


@installed
@pytest.mark.vllm
@pytest.mark.parametrize("case", ["llava"], indirect=True)
def test_a_prompt_that_vllm_reads_otherwise_is_refused_before_anything_is_sampled(case, tmp_path):
    model, processor, store, questions = case
    ids = questions[0].prompt_ids
    first = ids.index(IMAGE)
    longer = [Question("long", (*ids[:first], IMAGE, *ids[first:]), questions[0].images)]
    with pytest.raises(SamplingError, match=rf"after 0 of 1 responses.*vLLM reads prompt long as {len(ids)} tokens, and transformers as {len(ids) + 1}.*sampling.engine: transformers"):
        by_vllm((model, processor, store, longer), tmp_path)


def test_the_families_are_tiny_models_too():
    assert set(FAMILIES) <= set(tiny_vlm.FAMILIES)
