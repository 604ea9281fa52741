"""Target `text`: a causal language model teaches a smaller one with the same vocabulary (section 4 of the paper)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubdistill.modalities.text import TEXT
from hubdistill.specs import ModelSpec, Spec
from hubdistill.targets.base import Target

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from hubdistill.evaluation.heldout import HeldOut
    from hubdistill.evaluation.statistics import Measurement
    from hubdistill.models.layout import Layout
    from hubdistill.models.sources import ModelFacts
    from hubdistill.specs import EvaluationSpec


class TextOptions(Spec):
    """The text target adds no keys."""


def load(facts: ModelFacts, spec: ModelSpec, device: torch.device, layout: Layout | None = None) -> PreTrainedModel:
    """Load a causal LM and make sure its logits are what the loss will compute from its hidden states."""
    from hubdistill.models.layout import WHOLE, load_model
    from hubdistill.models.load import check_head

    model = load_model(facts, spec.dtype, device, layout or WHOLE)
    check_head(model, facts.reference)
    return model


def load_student(facts: ModelFacts, spec: ModelSpec, device: torch.device, options: Spec, layout: Layout | None = None) -> PreTrainedModel:
    """`load`, but a float16 checkpoint is read as bfloat16: gradients of a loss that is not scaled vanish in float16."""
    as_read = "bfloat16" if spec.dtype == "auto" and facts.saved_dtype == "float16" and device.type != "cpu" else spec.dtype
    return load(facts, spec.model_copy(update={"dtype": as_read}), device, layout)


def check(teacher: ModelFacts, student: ModelFacts, options: Spec) -> list[str]:
    """Problems that make a text recipe impossible, from the configs alone."""
    problems = [
        f"{role}.model: {facts.reference} is a vision-language model; write `target: {{kind: vlm}}`, or name a text model"
        for role, facts in (("teacher", teacher), ("student", student))
        if facts.has_vision
    ]
    return problems + check_pair(teacher, student)


def check_architecture(teacher: ModelFacts, student: ModelFacts) -> list[str]:
    """Problems of a model on its own."""
    return [
        f"{role}.model: {facts.reference} is an encoder-decoder; use a decoder-only language model"
        for role, facts in (("teacher", teacher), ("student", student))
        if facts.config.get("is_encoder_decoder")
    ]


def check_pair(teacher: ModelFacts, student: ModelFacts) -> list[str]:
    """Problems that make a recipe impossible whatever the models read."""
    problems = check_architecture(teacher, student)
    if "quantization_config" in student.config:
        problems.append(f"student.model: {student.reference} is quantised; this target trains floating-point students, name the unquantised model, or write `target: {{kind: int4}}` for a student in 4 bit")
    if teacher.config and student.config and teacher.location == student.location and teacher.commit == student.commit:
        problems.append("student.model: student and teacher are the same model; choose a smaller student, prune it with student.layers, or write `target: {kind: int4}` for a student in 4 bit")
    return problems


def evaluate(heldout: HeldOut, specs: tuple[EvaluationSpec, ...]) -> list[Measurement]:
    """Divergence from the teacher and overlap with its responses, on the held-out prompts."""
    from hubdistill.evaluation.heldout import measure

    return measure(heldout, specs)


def facts(options: TextOptions) -> dict[str, str]:
    """Rows this target adds to the card."""
    return {}


TARGET = Target(
    name="text", options=TextOptions, modality=TEXT, load_student=load_student, load_teacher=load, check=check, evaluate=evaluate, facts=facts,
    quantization=lambda options: None,
)  # fmt: skip
