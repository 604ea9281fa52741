"""Which layers an adapter sits on; apart from lora.py, because PEFT takes seconds to import and `plan` asks this too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hubdistill.errors import InputError
from hubdistill.specs import LoraSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hubdistill.models.sources import ModelFacts


def linear_names(model: PreTrainedModel) -> list[str]:
    """Names of the linear layers inside the language model's blocks (never the head, never another tower), sorted. Raises InputError."""
    blocks = getattr(model.get_decoder(), "layers", None)
    if blocks is None:
        raise InputError(f"student.model: {type(model).__name__} keeps its blocks where hubdistill cannot find them; choose a student of a newer family (Llama, Qwen, Gemma, ...)")
    names = {name.rsplit(".", 1)[-1] for name, module in blocks.named_modules() if isinstance(module, torch.nn.Linear)}
    return sorted(names)


def target_modules(model: PreTrainedModel, spec: LoraSpec) -> list[str]:
    """The layers to adapt: those that `lora.modules` names, or all. Raises InputError for a name that is not there."""
    found = linear_names(model)
    unknown = sorted(set(spec.modules or ()) - set(found))
    if unknown:
        raise InputError(f"lora.modules: the student has no linear layer {unknown[0]!r}; name some of these: {', '.join(found)}")
    return list(spec.modules or found)


def adapted_layers(facts: ModelFacts, spec: LoraSpec) -> list[str]:
    """`target_modules` before any weight is there: of a model without memory, made from the config. Raises InputError."""
    settings = dict(facts.config)
    try:
        config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (KeyError, ValueError, TypeError, AttributeError, ImportError) as problem:
        raise InputError(f"student.model: transformers cannot make a causal language model of its config ({problem}); check {facts.reference}") from problem
    return target_modules(model, spec)
