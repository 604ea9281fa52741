"""Target `vlm`: a vision-language model teaches a smaller one (section 6.2 of the paper, LLaVA to TinyLLaVA)."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import TYPE_CHECKING

from hubdistill.errors import InputError
from hubdistill.modalities.vision import VISION
from hubdistill.specs import Spec
from hubdistill.targets import text

if TYPE_CHECKING:
    from hubdistill.models.sources import ModelFacts


class VlmOptions(Spec):
    """The vlm target adds no keys; images are named by `prompts.image_column`."""


def check(teacher: ModelFacts, student: ModelFacts, options: Spec) -> list[str]:
    """Problems that make a vision-language recipe impossible, from the configs alone."""
    problems = text.check_pair(teacher, student)
    for role, facts in (("teacher", teacher), ("student", student)):
        if facts.config and not facts.has_vision:
            problems.append(f"{role}.model: {facts.reference} reads no images; name a vision-language model, or write `target: {{kind: text}}`")
        elif facts.config and not facts.trust_remote_code:
            problems += _family(role, facts)
    return problems


def _family(role: str, facts: ModelFacts) -> list[str]:
    """Why a family cannot be distilled: its images cannot be encoded apart from the text."""
    from hubdistill.models.layers import empty_model

    try:
        model = empty_model(facts, role)
    except InputError as problem:
        return [str(problem)]
    if not hasattr(model, "get_image_features") or "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        return [f"{role}.model: {type(model).__name__} takes no image features that were computed before (mm_encoder_outputs of transformers), so its images cannot be shared by the responses to a prompt; choose another family (LLaVA, Qwen-VL, SmolVLM, Gemma-3, ...)"]
    return []


TARGET = replace(text.TARGET, name="vlm", options=VlmOptions, modality=VISION, check=check)
