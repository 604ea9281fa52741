"""Target `int4`: a model in 4 bit learns from itself in full precision what the rounding cost (section 6.3 of the paper)."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from hubdistill.specs import EvaluationSpec, ModelSpec, Spec
from hubdistill.targets import text
from hubdistill.targets.base import Outlook

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from hubdistill.evaluation.heldout import HeldOut
    from hubdistill.evaluation.statistics import Measurement
    from hubdistill.models.sources import ModelFacts


class Int4Options(Spec):
    """How the student is quantised, and what to do where that costs nothing."""

    quant_type: Literal["nf4", "fp4"] = Field("nf4", description="4-bit number format of bitsandbytes.")
    double_quant: bool = Field(True, description="Quantise the scales of the blocks too (about 0.4 bit a weight less).")
    gap: Literal["stop", "ignore"] = Field("stop", description="`stop` ends the run before training where what 4 bit costs is within noise; `ignore` trains all the same.")


def quantization(options: Int4Options) -> dict[str, Any]:
    """Settings of transformers' `BitsAndBytesConfig`."""
    return {"load_in_4bit": True, "bnb_4bit_quant_type": options.quant_type, "bnb_4bit_use_double_quant": options.double_quant}


def load_student(facts: ModelFacts, spec: ModelSpec, device: torch.device, options: Int4Options) -> PreTrainedModel:
    """The same weights as the teacher's, in 4 bit."""
    from hubdistill.models.load import check_head
    from hubdistill.models.quantized import load_4bit

    model = load_4bit(facts, spec.dtype, device, quantization(options))
    check_head(model, facts.reference)
    return model


def check(teacher: ModelFacts, student: ModelFacts, options: Int4Options) -> list[str]:
    """Problems that make an int4 recipe impossible, from the configs alone."""
    problems = text.check_architecture(teacher, student)
    for role, facts in (("teacher", teacher), ("student", student)):
        if quantised := facts.config.get("quantization_config"):
            method = quantised.get("quant_method", "unknown method")
            problems.append(f"{role}.model: {facts.reference} is quantised already ({method}); name the unquantised model, which is teacher as it is and quantised on loading as student")
    if teacher.config and student.config and (teacher.location, teacher.commit) != (student.location, student.commit):
        problems.append("student.model: the int4 target recovers a model from its own quantisation, so teacher and student must be the same model (and no student.layers); write the same model for both, or use `target: {kind: text}`")
    if not importlib.util.find_spec("bitsandbytes"):
        problems.append("target.kind: int4 needs bitsandbytes, which is not installed; `pip install bitsandbytes`")
    return problems


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
