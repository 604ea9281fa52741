"""What a target is: the few things one kind of recipe changes. A new target is one file that says its difference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hubdistill.modalities.base import Modality
from hubdistill.specs import Spec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hubdistill.evaluation.statistics import Measurement


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What a target measured before training, in words: to be told, and why not to train; empty where there is nothing to say."""

    note: str = ""
    stop: str = ""


@dataclass(frozen=True, kw_only=True)
class Target:
    """One kind of recipe; all else is shared. Functions get narrow specs, never the Recipe."""

    name: str  # == module name == the recipe's target.kind
    options: type[Spec]  # keys it adds under `target:`
    modality: Modality
    load_student: Callable[..., PreTrainedModel]  # (facts, StudentSpec, device, options, Layout)
    load_teacher: Callable[..., PreTrainedModel]  # (facts, TeacherSpec, device, Layout)
    check: Callable[..., list[str]]  # (teacher facts, student facts, options) -> problems, each `key: what; fix`
    evaluate: Callable[..., list[Measurement]]  # (HeldOut, EvaluationSpecs)
    facts: Callable[..., dict[str, str]]  # (options) -> rows for the card
    quantization: Callable[..., dict[str, Any] | None]  # (options) -> how the student is quantised, as transformers' BitsAndBytesConfig takes it
    before: Callable[..., Outlook] | None = None  # (HeldOut, options) -> what was measured before the first round
    proof: str = ""  # the evaluation kind without which a run does not show what it gained; the plan asks for it
