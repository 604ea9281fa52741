"""A model in 4 bit (bitsandbytes): the linear layers of its language model are quantised as they load, all else, the
output head and a vision tower among it, stays in floating point; or it is stored so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from hubdistill.errors import InputError
from hubdistill.models.layers import empty_model, floating_layers
from hubdistill.models.load import DTYPES, read_weights
from hubdistill.models.quantized_config import stored
from hubdistill.models.sources import ModelFacts

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def compute_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """What the 4-bit layers multiply in, for a recipe's `student.dtype`."""
    return DTYPES.get(dtype) or (torch.float32 if device.type == "cpu" else torch.bfloat16)


def how_loaded(facts: ModelFacts, dtype: str, device: torch.device, settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` with the compute dtype, for the code that a card shows: bitsandbytes would compute in float32 unless told.
    A model that is stored in 4 bit says all of it itself, and is marked so."""
    if found := stored(facts):
        return settings | {"bnb_4bit_compute_dtype": found.compute_dtype, "stored": True}
    return settings | {"bnb_4bit_compute_dtype": str(compute_dtype(dtype, device)).removeprefix("torch.")}


def load_4bit(facts: ModelFacts, dtype: str, device: torch.device, settings: dict[str, Any]) -> PreTrainedModel:
    """The model in evaluation mode, frozen, ready for an adapter. `settings` are those of `BitsAndBytesConfig` but for
    the compute dtype, which is `dtype` (`auto`: bfloat16, float32 on CPU); of a model that is stored in 4 bit its config
    decides all. Raises InputError."""
    from peft import prepare_model_for_kbit_training
    from transformers import BitsAndBytesConfig

    compute, how = compute_dtype(dtype, device), dict[str, Any]()
    if found := stored(facts):
        compute = DTYPES[found.compute_dtype]
    else:
        skipped = floating_layers(empty_model(facts, "student"))
        how = {"quantization_config": BitsAndBytesConfig(**settings, bnb_4bit_compute_dtype=compute, llm_int8_skip_modules=skipped)}
    model: Any = read_weights(facts, compute, device_map={"": device}, **how)
    quantised = [module for module in model.modules() if type(module).__name__ == "Linear4bit"]
    for module in quantised:
        # On a CPU with AVX512-BF16 bitsandbytes would pack the weights anew at the first inference, for products in bfloat16
        # whatever the compute dtype, and not for every shape: another model than on other CPUs, and than was trained.
        module.support_avx512bf16_for_cpu = False
    if not quantised:
        raise InputError(f"{facts.reference}: bitsandbytes quantised none of its layers; choose an architecture of ordinary linear layers")
    # Norms, embedding and head in float32, as QLoRA trains (Dettmers et al. 2023, arXiv:2305.14314); checkpointing is the trainer's.
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False).eval()
