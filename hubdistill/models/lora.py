"""The adapter: LoRA on the linear layers of attention and MLP, started once and continued every round (PEFT)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from hubdistill.models.layers import target_modules
from hubdistill.models.lean_lora import lean
from hubdistill.specs import LoraSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def attach_adapter(model: PreTrainedModel, spec: LoraSpec, seed: int) -> PeftModel:
    """Add a fresh adapter (its output is zero until trained). Raises InputError for a module name that is not there."""
    config = LoraConfig(r=spec.rank, lora_alpha=spec.alpha, target_modules=target_modules(model, spec), task_type="CAUSAL_LM")  # type: ignore[arg-type]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return lean(in_fp32(get_peft_model(model, config)))


def load_adapter(model: PreTrainedModel, folder: Path, *, trainable: bool) -> PeftModel:
    """Put a saved adapter on its base, to train on or to sample with."""
    adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    return lean(in_fp32(adapted)) if trainable else adapted.eval()


def in_fp32(model: PeftModel) -> PeftModel:
    """The model with its trainable weights in float32."""
    # AdamW steps of a small learning rate vanish in bf16; PEFT keeps adapters in fp32 by default, and this says so.
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model
