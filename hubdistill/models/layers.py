"""Which layers an adapter sits on; apart from lora.py, because PEFT takes seconds to import and `plan` asks this too."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig

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
    return sorted({name.rsplit(".", 1)[-1] for name in _linear(blocks)})


def target_modules(model: PreTrainedModel, spec: LoraSpec) -> list[str] | str:
    """The layers to adapt: those that `lora.modules` names, or all, in the language model; as PEFT's `target_modules`.

    A list of names where there is only a language model. Beside a vision tower, whose layers have the same names, a
    pattern of whole paths; `lora.vision_tower` and `lora.projector` add theirs. Raises InputError for a name that is
    not there.
    """
    found = linear_names(model)
    unknown = sorted(set(spec.modules or ()) - set(found))
    if unknown:
        raise InputError(f"lora.modules: the student has no linear layer {unknown[0]!r}; name some of these: {', '.join(found)}")
    names = list(spec.modules or found)
    if not hasattr(model.config, "vision_config"):
        return names
    patterns = [rf"{re.escape(_path_of(model, model.get_decoder()))}\.layers\.\d+\.(?:.*\.)?(?:{'|'.join(map(re.escape, names))})"]
    patterns += [re.escape(name) for name in tower_layers(model)] if spec.vision_tower else []
    patterns += [re.escape(name) for name in projector_layers(model)] if spec.projector else []
    return "|".join(patterns)


def tower_layers(model: PreTrainedModel) -> list[str]:
    """Paths of the linear layers in the vision tower's blocks that reach the language model.

    LLaVA reads an inner layer of its tower (`vision_feature_layer`); what lies above never gets a gradient, and DDP
    would wait for it for ever.
    """
    tower = model.get_encoder(modality="image")
    depth, blocks = _depth_used(model.config), r"(?:.*\.)?(?:layers?|blocks|encoder)\.(\d+)\."
    inside = {name: match for name in _linear(tower) if "merger" not in name and (match := re.match(blocks, name))}
    above = [name for name, match in inside.items() if depth is None or int(match[1]) < depth]
    return [f"{_path_of(model, tower)}.{name}" for name in above]


def projector_layers(model: PreTrainedModel) -> list[str]:
    """Paths of the linear layers that lead from the vision tower to the language model; Qwen-VL keeps them in its tower,
    and Gemma-3 has none (InputError)."""
    tower, inner = model.get_encoder(modality="image"), model.base_model
    others = (_path_of(inner, tower), _path_of(inner, model.get_decoder()))
    beside = [name for name in _linear(inner) if not name.startswith(others)]
    within = [f"{others[0]}.{name}" for name in _linear(tower) if "merger" in name]
    if not beside + within:
        raise InputError(f"lora.projector: {type(model).__name__} has no linear layer between its vision tower and its language model; remove lora.projector")
    return [f"{_path_of(model, inner)}.{name}" for name in beside + within]


def floating_layers(model: PreTrainedModel) -> list[str]:
    """Paths of the linear layers that are not in the language model's blocks: the head, and a vision tower with its projector."""
    blocks = f"{_path_of(model, model.get_decoder())}.layers."
    return [name for name in _linear(model) if not name.startswith(blocks)]


def _depth_used(config: Any) -> int | None:
    """How many blocks of the vision tower are used; None for all."""
    layers, total = getattr(config, "vision_feature_layer", None), getattr(config.vision_config, "num_hidden_layers", None)
    if layers is None or total is None:
        return None
    # Hidden state 0 is the embedding, hidden state n what block n - 1 gives.
    return max(layer if layer >= 0 else total + 1 + layer for layer in ([layers] if isinstance(layers, int) else layers))


def _linear(module: Any) -> Iterable[str]:
    return [name for name, inner in module.named_modules() if isinstance(inner, torch.nn.Linear)]


def _path_of(model: Any, module: Any) -> str:
    return next(name for name, inner in model.named_modules() if inner is module)


def adapted_layers(facts: ModelFacts, spec: LoraSpec) -> list[str] | str:
    """`target_modules` before any weight is there: of a model without memory, made from the config. Raises InputError."""
    return target_modules(empty_model(facts, "student"), spec)


def empty_model(facts: ModelFacts, role: str) -> PreTrainedModel:
    """A model without memory, made from its config. Raises InputError naming the `role`'s key of the recipe."""
    from hubdistill.models.load import auto_class

    settings = dict(facts.config)
    try:
        config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        with torch.device("meta"):
            return auto_class(facts.config).from_config(config)
    except (KeyError, ValueError, TypeError, AttributeError, ImportError, AssertionError) as problem:
        kind = "vision-" if facts.has_vision else "causal "
        raise InputError(f"{role}.model: transformers cannot make a {kind}language model of its config ({problem}); check {facts.reference}") from problem
