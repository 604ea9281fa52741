"""The vision modality against each family's own processor and a plain call of the model, one row at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hubdistill.errors import InputError
from hubdistill.modalities.base import Reading, Row, TokenRow, media_ids
from hubdistill.modalities.text import TEXT
from hubdistill.modalities.vision import VISION, encode_prompt, rendered
from hubdistill.models.load import check_head, head_of, last_hidden
from hubdistill.models.lora import attach_adapter
from hubdistill.pairs.sampling import TransformersSampler
from hubdistill.pairs.store import Question
from hubdistill.specs import LoraSpec, SamplingSpec
from tests import tiny_vlm

IMAGES = {"a.png": tiny_vlm.picture(1), "b.png": tiny_vlm.picture(2, 30, 70), "c.png": tiny_vlm.picture(3, 33, 33)}
PROMPTS = {
    "one": (("a.png",), [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it?"}]}]),
    "two": (("b.png", "c.png"), [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "or"}, {"type": "image"}, {"type": "text", "text": "?"}]}]),
    "none": ((), [{"role": "system", "content": "be short"}, {"role": "user", "content": "hello"}]),
    "other": (("c.png",), [{"role": "user", "content": [{"type": "text", "text": "look: "}, {"type": "image"}]}]),
}
RESPONSES = [(60, 70, 80, 2), (61, 2), (62, 63, 64, 65, 66)]


@pytest.fixture(scope="module", params=tiny_vlm.FAMILIES)
def family(request) -> tuple[Any, Any]:
    return tiny_vlm.FAMILIES[request.param]()


def reading(processor: Any, student: Any = None) -> Reading:
    return Reading(modality=VISION, teacher=processor, student=student or processor, pad_id=0, open_image=IMAGES.__getitem__)


def rows_of(processor: Any, names: tuple[str, ...] = tuple(PROMPTS), student: Any = None) -> list[Row]:
    """Two responses to each prompt, one of either model."""
    found = []
    for number, name in enumerate(names):
        images, messages = PROMPTS[name]
        ids = [tuple(encode_prompt(one, messages, [IMAGES[i] for i in images])) for one in (processor, student or processor)]
        found += [Row(ids[0], RESPONSES[(number + side) % 3], bool(side), ids[1], images) for side in (0, 1)]
    return found


def has_projector(model: Any) -> bool:
    return "Gemma3" not in type(model).__name__  # its projector is a bare matrix


def plain_hidden(model: Any, processor: Any, name: str, response: tuple[int, ...]) -> torch.Tensor:
    """What the family's own processor and model make of a prompt and a response: no code of the modality."""
    images, messages = PROMPTS[name]
    text = rendered(processor, messages)
    inputs = processor(text=[text], images=[[IMAGES[i] for i in images]] if images else None, add_special_tokens=False, return_tensors="pt")
    width = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([response])], dim=1)
    for key, fill in (("attention_mask", 1), ("mm_token_type_ids", 0), ("token_type_ids", 0)):
        if key in inputs:
            inputs[key] = torch.cat([inputs[key], torch.full((1, len(response)), fill)], dim=1)
    return model(**inputs, output_hidden_states=True).hidden_states[-1][0, width - 1 : width - 1 + len(response)]


def test_a_batch_of_images_texts_and_both_is_what_each_row_is_alone(family):
    model, processor = family
    rows = rows_of(processor)
    batch = reading(processor).collate(rows)
    assert len(batch.student.images) == 3  # "one", "two" and "other": each once, for two responses
    with torch.no_grad():
        hidden = reading(processor).hidden(model, batch.student, batch.student_rows_N, batch.student_columns_N)
        expected = torch.cat([plain_hidden(model, processor, list(PROMPTS)[i // 2], row.response_ids) for i, row in enumerate(rows)])
    assert expected.std() > 0.1
    torch.testing.assert_close(hidden, expected, atol=2e-4, rtol=1e-3)
    assert batch.labels_N.tolist() == [token for row in rows for token in row.response_ids]


def test_the_order_of_the_rows_changes_nothing(family):
    model, processor = family
    rows, read = rows_of(processor), reading(processor)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()

    def states(chosen: list[Row]) -> list[torch.Tensor]:
        batch = read.collate(chosen)
        return list(read.hidden(model, batch.student, batch.student_rows_N, batch.student_columns_N).split(batch.lengths_B.tolist()))

    with torch.no_grad():
        one, other = states(rows), states([rows[i] for i in order])
    for place, i in enumerate(order):
        torch.testing.assert_close(other[place], one[i], atol=1e-4, rtol=1e-3)


def test_features_of_an_image_serve_both_responses_with_equal_gradients(family):
    """Encoded once for two rows, or anew in a batch for each row: the same loss and gradients of the adapter."""
    import copy

    model, processor = family
    adapted = attach_adapter(copy.deepcopy(model), LoraSpec(rank=4, alpha=8, vision_tower=True, projector=has_projector(model)), seed=0)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1)
    read, rows = reading(processor), rows_of(processor, ("one", "two"))

    def gradients(batches: list[list[Row]]) -> dict[str, torch.Tensor]:
        adapted.zero_grad()
        for batch in map(read.collate, batches):
            hidden = read.hidden(adapted, batch.student, batch.student_rows_N, batch.student_columns_N)
            (hidden * torch.linspace(-1, 1, hidden.shape[1])).square().sum().backward()
        return {name: weight.grad.clone() for name, weight in adapted.named_parameters() if weight.requires_grad and weight.grad is not None}

    together, apart = gradients([rows]), gradients([[row] for row in rows])
    trained = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert together.keys() == apart.keys() == trained  # every adapted layer gets a gradient: DDP waits for none in vain
    assert any("lora_A" in name and together[name].abs().max() > 0 for name in trained if "language_model" not in name and "text_model" not in name)
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, apart[name], atol=1e-3 * float(apart[name].abs().max()) + 1e-6, rtol=1e-3)


def test_only_the_language_model_is_adapted_unless_the_recipe_says_more(family):
    import copy

    model, _ = family

    def places(**more: bool) -> set[str]:
        adapted = attach_adapter(copy.deepcopy(model), LoraSpec(rank=4, alpha=8, **more), seed=0)
        names = {name.removeprefix("base_model.model.").split(".lora_")[0] for name, weight in adapted.named_parameters() if weight.requires_grad}
        inner = adapted.get_base_model()
        tower, decoder = (next(n for n, module in inner.named_modules() if module is one) for one in (inner.get_encoder(modality="image"), inner.get_decoder()))
        return {"language" if name.startswith(decoder) else "tower" if name.startswith(tower) and "merger" not in name else "projector" for name in names}

    assert places() == {"language"}
    assert places(vision_tower=True) == {"language", "tower"}
    if has_projector(model):
        assert places(projector=True) == {"language", "projector"}
    else:
        with pytest.raises(InputError, match=r"lora.projector: Gemma3ForConditionalGeneration has no linear layer"):
            places(projector=True)


def test_the_loss_may_compute_logits_from_hidden_states(family):
    check_head(family[0], "tiny")


def test_batches_are_sampled_as_single_prompts_are(family):
    """Left-padded, images of all kinds in one batch, against `generate` on the processor's own tensors."""
    model, processor = family
    read = reading(processor)

    def prepare(model: Any, questions: Any) -> dict[str, Any]:
        return VISION.arguments(model, read.inputs("teacher", [TokenRow(question.prompt_ids, question.images) for question in questions], "left"))

    sampler = TransformersSampler(model, (2,), 0, head_of(model).weight.shape[0], forbidden=tuple(processor.image_token_ids), prepare=prepare)
    questions = [Question(name, tuple(encode_prompt(processor, messages, [IMAGES[i] for i in images])), images) for name, (images, messages) in PROMPTS.items()]
    found = {answer.prompt_id: answer for batch in sampler.sample(questions, SamplingSpec(temperature=0, max_tokens=6), lambda _: 0) for answer in batch}
    for name, (images, messages) in PROMPTS.items():
        inputs = processor(text=[rendered(processor, messages)], images=[[IMAGES[i] for i in images]] if images else None, add_special_tokens=False, return_tensors="pt")
        width = inputs["input_ids"].shape[1]
        expected = model.generate(**inputs, max_new_tokens=6, do_sample=False, suppress_tokens=list(processor.image_token_ids), eos_token_id=2, pad_token_id=0)
        ids = expected[0, width:].tolist()
        assert found[name].response_ids == tuple(ids[: ids.index(2) + 1] if 2 in ids else ids)
    # Without images after images: Qwen-VL keeps what it knew of the positions of the last ones.
    (alone,) = (answer for batch in sampler.sample([one for one in questions if not one.images], SamplingSpec(temperature=0, max_tokens=6), lambda _: 0) for answer in batch)
    assert alone == found["none"]


def test_two_processors_with_unlike_image_tokens_meet_on_the_response():
    (teacher, teachers), (student, students) = tiny_vlm.llava_next(1), tiny_vlm.llava(2)
    rows = rows_of(teachers, student=students)
    read = reading(teachers, students)
    batch = read.collate(rows)
    assert len(rows[0].prompt_ids) > len(rows[0].as_student) + 30
    with torch.no_grad():
        found = [read.hidden(model, inputs, batch.student_rows_N, columns) for model, inputs, columns in
                 ((teacher, batch.teacher, batch.teacher_columns_N), (student, batch.student, batch.student_columns_N))]  # fmt: skip
        for hidden, model, processor in zip(found, (teacher, student), (teachers, students), strict=True):
            expected = torch.cat([plain_hidden(model, processor, list(PROMPTS)[i // 2], row.response_ids) for i, row in enumerate(rows)])
            torch.testing.assert_close(hidden, expected, atol=2e-4, rtol=1e-3)


def test_text_rows_are_what_the_text_modality_makes_of_them(family):
    model, processor = family
    rows = rows_of(processor, ("none",))
    both = [Reading(modality=modality, teacher=processor, student=processor, pad_id=0) for modality in (VISION, TEXT)]
    vision, text = (one.collate(rows) for one in both)
    assert torch.equal(vision.student.tokens["input_ids"], text.student.tokens["input_ids"])
    with torch.no_grad():
        expected = last_hidden(model, **{k: v for k, v in text.student.tokens.items()})[text.student_rows_N, text.student_columns_N]
        found = both[0].hidden(model, vision.student, vision.student_rows_N, vision.student_columns_N)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("content", "images"), [
    ([{"type": "text", "text": "a literal <image> in the text"}], 0),
    ([{"type": "image"}, {"type": "text", "text": "two"}], 2),
    ([{"type": "text", "text": "none"}], 1),
])  # fmt: skip
def test_placeholders_and_images_must_agree(content, images):
    processor = tiny_vlm.llava()[1]
    with pytest.raises(InputError, match="image placeholders"):
        encode_prompt(processor, [{"role": "user", "content": content}], list(IMAGES.values())[:images])


def test_a_tokenizer_that_names_an_image_token_forbids_nothing():
    processor = tiny_vlm.llava()[1]
    assert media_ids(processor) == [3]
    assert media_ids(processor.tokenizer) == []


@pytest.mark.parametrize(("family", "written"), [("qwen2_vl", "<|video_pad|>"), ("gemma3", "<image_soft_token>")])
def test_tokens_of_other_media_in_a_text_are_refused(family: str, written: str):
    processor = tiny_vlm.FAMILIES[family]()[1]
    with pytest.raises(InputError, match="which stands for an image, a video or a sound"):
        encode_prompt(processor, [{"role": "user", "content": f"what is {written}?"}], [])


def test_a_model_that_mixes_the_images_of_a_batch_is_refused(family, monkeypatch):
    from hubdistill.modalities import vision

    model, processor = family
    rows = [TokenRow(row.prompt_ids, row.images) for row in rows_of(processor, ("one", "other"))[::2]]
    reading(processor).check("student", model, rows, "org/model")
    joined = vision._joined
    monkeypatch.setattr(vision, "_joined", lambda outputs: joined(outputs[::-1]))
    with pytest.raises(InputError, match="org/model: reads prompts with images in a batch otherwise than one by one"):
        reading(processor).check("student", model, rows, "org/model")
