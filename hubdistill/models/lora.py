"""The adapter: LoRA on the linear layers of attention and MLP, started once and continued every round (PEFT)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from hubdistill.errors import InputError
from hubdistill.specs import LoraSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def linear_names(model: PreTrainedModel) -> list[str]:
    """Names of the linear layers inside the language model's blocks (never the head, never another tower), sorted. Raises InputError."""
    blocks = getattr(model.get_decoder(), "layers", None)
    if blocks is None:
        raise InputError(f"student.model: {type(model).__name__} keeps its blocks where hubdistill cannot find them; choose a student of a newer family (Llama, Qwen, Gemma, ...)")
    names = {name.rsplit(".", 1)[-1] for name, module in blocks.named_modules() if isinstance(module, torch.nn.Linear)}
    return sorted(names)


def attach_adapter(model: PreTrainedModel, spec: LoraSpec, seed: int) -> PeftModel:
    """Add a fresh adapter (its output is zero until trained). Raises InputError for a module name that is not there."""
    found = linear_names(model)
    unknown = sorted(set(spec.modules or ()) - set(found))
    if unknown:
        raise InputError(f"lora.modules: the student has no linear layer {unknown[0]!r}; name some of these: {', '.join(found)}")
    config = LoraConfig(r=spec.rank, lora_alpha=spec.alpha, target_modules=list(spec.modules or found), task_type="CAUSAL_LM")  # type: ignore[arg-type]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _in_fp32(get_peft_model(model, config))


def load_adapter(model: PreTrainedModel, folder: Path, *, trainable: bool) -> PeftModel:
    """Put a saved adapter on its base, to train on or to sample with."""
    adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    return _in_fp32(adapted) if trainable else adapted.eval()


def _in_fp32(model: PeftModel) -> PeftModel:
    # AdamW steps of a small learning rate vanish in bf16; PEFT keeps adapters in fp32 by default, and this says so.
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model
