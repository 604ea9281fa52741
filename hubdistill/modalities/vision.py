"""Images and text: each model reads prompts through its own processor, template, image size and number of image tokens.

Only response tokens are shared. An image goes through a model's vision tower once for each prompt of a batch, and its
features serve every response to that prompt (`mm_encoder_outputs` of transformers).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hubdistill.errors import InputError
from hubdistill.modalities.base import Inputs, Modality, Side, TokenRow, media_ids, tokenizer_of
from hubdistill.pairs.padding import padded

if TYPE_CHECKING:
    import torch

    from hubdistill.models.pair_attention import PairTree
    from hubdistill.models.sources import ModelFacts

TOKEN_TYPES = ("mm_token_type_ids", "token_type_ids")  # Qwen-VL's and Gemma-3's marks of image tokens
TEXT_KEYS = ("input_ids", "attention_mask", *TOKEN_TYPES)


def load_reader(facts: ModelFacts, teacher: Any = None) -> Any:
    """The model's processor. A student's without a chat template that writes images (TinyLLaVA has its language model's)
    gets the teacher's. Raises InputError."""
    from hubdistill.models.load import load_processor

    processor = load_processor(facts)
    if not writes_images(processor) and teacher is not None:
        processor.chat_template = teacher.chat_template
    if not writes_images(processor):
        raise InputError(f"{facts.reference}: its processor has no chat template that writes images, so prompts cannot be written for it (PaliGemma and other base models); choose an instruction-tuned model")
    return processor


def writes_images(processor: Any) -> bool:
    """Whether the chat template puts one placeholder for one image."""
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]
    try:
        return processor.chat_template is not None and rendered(processor, asked).count(processor.image_token) == 1
    except (InputError, TypeError, ValueError):  # what a template for text makes of parts
        return False


def encode_prompt(processor: Any, messages: Sequence[Mapping[str, Any]], images: Sequence[Any]) -> list[int]:
    """Render the conversation up to where the assistant speaks, as token ids, image tokens in full number.

    Raises InputError where the template refuses the messages, or writes another number of images than there are.
    """
    text, placeholder = rendered(processor, messages), processor.image_token
    if (found := text.count(placeholder)) != len(images):
        raise InputError(f"the rendered prompt has {found} image placeholders ({placeholder!r}) for {len(images)} images; take the placeholder out of the text, or choose a model whose template writes images")
    others = {tokenizer_of(processor).convert_ids_to_tokens(i) for i in media_ids(processor)} - {placeholder, None}
    if written := sorted(token for token in others if token in text):
        raise InputError(f"the prompt's text holds {written[0]!r}, which stands for an image, a video or a sound; take it out of the text")
    try:
        return list(processor(text=[text], images=[list(images)] if images else None, add_special_tokens=not _has_bos(processor, text))["input_ids"][0])
    except (ValueError, TypeError, IndexError, KeyError) as problem:
        raise InputError(f"{type(processor).__name__} refuses the prompt ({problem}); remove the row") from problem


def rendered(processor: Any, messages: Sequence[Mapping[str, Any]]) -> str:
    """The conversation in the processor's chat template; every content as parts, which is all that some templates read."""
    from jinja2.exceptions import TemplateError

    parts = [dict(turn, content=[{"type": "text", "text": turn["content"]}] if isinstance(turn["content"], str) else turn["content"]) for turn in messages]
    try:
        return str(processor.apply_chat_template(parts, add_generation_prompt=True, tokenize=False))
    except TemplateError as problem:
        roles = ", ".join(turn["role"] for turn in messages)
        raise InputError(f"the chat template of {type(processor).__name__} refuses a prompt with the roles {roles} ({problem}); use prompts that it accepts") from problem


def _has_bos(processor: Any, text: str) -> bool:
    bos = tokenizer_of(processor).bos_token
    return bool(bos) and text.startswith(bos)


def inputs(processor: Any, rows: Sequence[TokenRow], pad_id: int, side: Side, open_image: Callable[[str], Any]) -> Inputs:
    """Padded ids, mask and marks of image tokens; and what the vision tower takes, once for each set of images."""
    import torch

    ids, mask = padded([row.ids for row in rows], pad_id, side)
    tokens = {"input_ids": ids, "attention_mask": mask}
    for name in TOKEN_TYPES:
        if name in processor.model_input_names:
            types = torch.tensor(processor.create_mm_token_type_ids(ids.tolist()))
            tokens[name] = types * mask
    sets = list(dict.fromkeys(row.images for row in rows if row.images))
    pixels = tuple(pixels_of(processor, [open_image(name) for name in images]) for images in sets)
    return Inputs(tokens, pixels, tuple(sets.index(row.images) if row.images else None for row in rows))


def pixels_of(processor: Any, images: Sequence[Any]) -> dict[str, torch.Tensor]:
    """What the vision tower takes for the images of one prompt. The text that goes with them is only their placeholders."""
    found = processor(text=[processor.image_token * len(images)], images=[list(images)], return_tensors="pt")
    return {name: value for name, value in found.items() if name not in TEXT_KEYS}


def arguments(model: Any, inputs: Inputs) -> dict[str, Any]:
    """Arguments of the model's forward or `generate`, with the images' features instead of their pixels.

    Features stand in the order of the rows, as the image tokens do; a prompt with several rows has them several times.
    """
    from hubdistill.models.load import base_of

    inner = base_of(model)
    accepted = inspect.signature(inner.forward).parameters
    found: dict[str, Any] = {name: value for name, value in inputs.tokens.items() if name in accepted or name not in TOKEN_TYPES}
    if inputs.tree is not None and hasattr(inner.base_model, "get_rope_index"):
        found["position_ids"] = _grid_positions(inner.base_model, inputs, inputs.tree)
    rows = [i for i in inputs.image_of_row if i is not None]
    if not rows:
        return found
    takes = inspect.signature(inner.get_image_features).parameters
    features = [inner.get_image_features(**{k: v for k, v in image.items() if k in takes}, return_dict=True) for image in inputs.images]
    found["mm_encoder_outputs"] = {"image": _joined([features[i] for i in rows])}
    if "image_grid_thw" in accepted:  # Qwen-VL makes the positions of image tokens of it
        found["image_grid_thw"] = _concatenated([inputs.images[i]["image_grid_thw"] for i in rows])
    return found


def _grid_positions(model: Any, inputs: Inputs, tree: PairTree) -> torch.Tensor:
    """Qwen-VL's position ids (3, 1, T) of a row of pairs: those of each prompt, in time, height and width of its images, as
    the model numbers them; both responses count on from there."""
    import torch

    parts, types = [inputs.tokens["position_ids"][None, :, : tree.common].expand(3, 1, -1)], inputs.tokens.get("mm_token_type_ids")
    for start, span, image in zip(tree.starts, tree.spans, inputs.image_of_row, strict=True):
        place = slice(start, start + span.prompt)
        prompt = inputs.tokens["position_ids"][None, :, place].expand(3, 1, -1)
        if image is not None and types is not None:
            prompt, _ = model.get_rope_index(inputs.tokens["input_ids"][:, place], mm_token_type_ids=types[:, place], image_grid_thw=inputs.images[image]["image_grid_thw"])
        after = [torch.arange(length, device=prompt.device).expand(3, 1, -1) + prompt.max() + 1 for length in (span.teacher, span.student)]
        parts += [prompt, *after]
    return torch.cat(parts, dim=2)


def plain_arguments(model: Any, inputs: Inputs) -> dict[str, Any]:
    """Arguments of one row with the pixels of its images, for the model to encode within its forward."""
    pixels = inputs.images[0] if inputs.images else {}
    return {**arguments(model, replace(inputs, images=(), image_of_row=())), **pixels}


def _joined(outputs: Sequence[Any]) -> Any:
    """The encoder outputs of several prompts as those of one batch: what the language model takes of them, in order."""
    fields = {"pooler_output": _concatenated([output["pooler_output"] for output in outputs])}
    if "deepstack_features" in outputs[0]:  # Qwen3-VL: a list of layers, each with all tokens
        fields["deepstack_features"] = [_concatenated(layer) for layer in zip(*(output["deepstack_features"] for output in outputs), strict=True)]
    return type(outputs[0])(**fields)


def _concatenated(values: Sequence[Any]) -> Any:
    import torch

    first = values[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(list(values))
    return [part for value in values for part in value]


VISION = Modality(name="vision", own_view=True, pipeline_tag="image-text-to-text", load_reader=load_reader, encode_prompt=encode_prompt, inputs=inputs, arguments=arguments,
                  plain_arguments=plain_arguments)  # fmt: skip
