"""Target `int4`: a model in 4 bit learns from itself in full precision what the rounding cost (section 6.3 of the paper)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from hubdistill.models.quantized_config import INSTEAD, Stored, head_is_quantised, library_problem, stored
from hubdistill.specs import EvaluationSpec, ModelSpec, Spec
from hubdistill.targets import text
from hubdistill.targets.base import Outlook

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from hubdistill.evaluation.heldout import HeldOut
    from hubdistill.evaluation.statistics import Measurement
    from hubdistill.models.layout import Layout
    from hubdistill.models.sources import ModelFacts

# What a model and its 4-bit copy have in common; other fields are written by some versions of transformers only.
SAME = ("model_type", "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads", "vocab_size")


class Int4Options(Spec):
    """How the student is quantised, and what to do where that costs nothing."""

    quant_type: Literal["nf4", "fp4"] = Field("nf4", description="4-bit number format of bitsandbytes.")
    double_quant: bool = Field(True, description="Quantise the scales of the blocks too (about 0.4 bit a weight less).")
    gap: Literal["stop", "ignore"] = Field("stop", description="`stop` ends the run before training where what 4 bit costs is within noise; `ignore` trains all the same.")


def quantization(options: Int4Options) -> dict[str, Any]:
    """Settings of transformers' `BitsAndBytesConfig`."""
    return {"load_in_4bit": True, "bnb_4bit_quant_type": options.quant_type, "bnb_4bit_use_double_quant": options.double_quant}


def load_student(facts: ModelFacts, spec: ModelSpec, device: torch.device, options: Int4Options, layout: Layout | None = None) -> PreTrainedModel:
    """The same weights as the teacher's, in 4 bit: quantised on loading, or stored so. Whole in each process, whatever
    the `layout`: FSDP2 cannot split packed weights."""
    from hubdistill.models.load import check_head
    from hubdistill.models.quantized import load_4bit

    model = load_4bit(facts, spec.dtype, device, quantization(options))
    check_head(model, facts.reference)
    return model


def check(teacher: ModelFacts, student: ModelFacts, options: Int4Options) -> list[str]:
    """Problems that make an int4 recipe impossible, from the configs alone."""
    problems = text.check_architecture(teacher, student)
    if found := stored(teacher):
        problems.append(f"teacher.model: {teacher.reference} is quantised already ({found.method}), and what it lost cannot be learnt from it; name the unquantised model")
    if found := stored(student):
        problems += _check_stored(teacher, student, found, options)
    elif teacher.config and student.config and (teacher.location, teacher.commit) != (student.location, student.commit):
        problems.append("student.model: the int4 target recovers a model from its own quantisation, so teacher and student must be the same model (and no student.layers); write the same model for both, name a copy of the teacher that is stored in 4 bit, or use `target: {kind: text}`")
    if problem := library_problem():
        problems.append(f"target.kind: int4 needs bitsandbytes, which {problem}")
    return problems


def _check_stored(teacher: ModelFacts, student: ModelFacts, found: Stored, options: Int4Options) -> list[str]:
    """Problems of a student whose files are quantised: it must be of a kind that is trained on, as the recipe says, and the teacher's copy."""
    name = student.reference
    if reason := found.refused():
        return [f"student.model: {name} {reason}; {INSTEAD}"]
    if student.kind == "pruned":
        return [f"student.layers: {name} is stored in 4 bit, and layers are left out of floating-point models only; remove student.layers"]
    said = {"quant_type": (options.quant_type, found.quant_type), "double_quant": (options.double_quant, found.double_quant)}
    problems = [
        f"target.{key}: the recipe says {_yaml(ours)}, and {name} is stored with {_yaml(theirs)} (its quantization_config); write `{key}: {_yaml(theirs)}`"
        for key, (ours, theirs) in said.items()
        if ours != theirs
    ]
    if head_is_quantised(student, found):
        problems.append(f"student.model: the output head of {name} is quantised (llm_int8_skip_modules in its config leaves it out), and the loss needs it in floating point; {INSTEAD}")
    return problems + _check_copy(teacher, student)


def _check_copy(teacher: ModelFacts, student: ModelFacts) -> list[str]:
    """Whether the configs may be of one model; that the weights are, no config tells."""
    ours, theirs = student.text_config, teacher.text_config
    other = next((key for key in SAME if key in ours and key in theirs and ours[key] != theirs[key]), None)
    return [] if other is None else [
        f"student.model: {student.reference} has {other} {ours[other]} and the teacher {teacher.reference} has {theirs[other]}, so it is no copy of it; name the model that it was quantised from as teacher"
    ]  # fmt: skip


def _yaml(value: object) -> str:
    return str(value).lower()


def before(heldout: HeldOut, options: Int4Options) -> Outlook:
    """Training is stopped where 4 bit costs nothing that can be told from noise."""
    from hubdistill.evaluation.gap import within_noise

    cost = within_noise(heldout) if options.gap == "stop" else None
    return Outlook() if cost is None else Outlook(stop=
        f"target: in 4 bit ({options.quant_type}) the model is as good as in full precision on the held-out prompts: {cost}; "
        "there is nothing to recover. Use the 4-bit model as it is, measure on more or harder prompts (prompts.heldout), or write `gap: ignore` under `target`"
    )  # fmt: skip


def evaluate(heldout: HeldOut, specs: tuple[EvaluationSpec, ...]) -> list[Measurement]:
    """What `text` measures, perplexity, the share of the gap to full precision that was closed, and what each model costs to use."""
    from hubdistill.evaluation.cost import Costs
    from hubdistill.evaluation.gap import with_gap
    from hubdistill.evaluation.heldout import measure

    costs = Costs(heldout)
    return [*with_gap(heldout, measure(heldout, specs, also=costs)), *costs.measurements()]


def facts(options: Int4Options) -> dict[str, str]:
    """Rows this target adds to the card."""
    return {"quantisation": f"{options.quant_type.upper()} (bitsandbytes){', double quantisation' if options.double_quant else ''}; output head, embedding and norms in floating point"}


TARGET = replace(text.TARGET, name="int4", options=Int4Options, load_student=load_student, check=check, evaluate=evaluate,
                 facts=facts, quantization=quantization, before=before)  # fmt: skip
