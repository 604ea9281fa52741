"""LoRA while it trains, with PEFT's numbers and less in memory: added to the layer's output in place, and its input kept once.

PEFT writes result + B(A(x)) * scale as it reads: three tensors as large as the output, and, where the model is in bfloat16 and the
adapter in float32, a float32 copy of the input that is kept for the backward pass, in each layer. Here the same products run in
one operation (add_lora.py), and the copy is made again when it is needed.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer, LoraVariant
from torch import Tensor

from hubdistill.models.add_lora import add_lora


def lean(model: Any) -> Any:
    """The model, whose adapter layers of plain LoRA now run as `LeanLora`; others (dropout, DoRA, a bias) stay PEFT's."""
    for layer in (module for module in model.modules() if isinstance(module, LoraLayer)):
        for name in layer.lora_A:
            plain = isinstance(layer.lora_dropout[name], torch.nn.Identity) and layer.lora_A[name].bias is layer.lora_B[name].bias is None
            if plain and name not in layer.lora_variant:
                layer.lora_variant[name] = LeanLora()
                layer.cast_input_dtype_enabled = False  # peft.helpers.disable_input_dtype_casting: the copy that would be kept
    return model


class LeanLora(LoraVariant):
    """PEFT's hook for another forward pass of an adapter; merging is PEFT's own, which would leave the adapter out without a word."""

    @staticmethod
    def forward(module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        """The layer's output with the adapter's share added: x (..., K), result (..., M), which is overwritten."""
        down: Any = module.lora_A[active_adapter]
        up: Any = module.lora_B[active_adapter]
        scale = module.scaling[active_adapter]
        if torch.is_autocast_enabled(x.device.type):  # which chooses the types of each product itself
            return result + up(down(x)) * scale
        return add_lora(result, x, down.weight, up.weight, scale)

    @staticmethod
    def merge_safe(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """The layer's weight with the adapter's share, as a new tensor."""
        return orig_weight + _share(module, active_adapter, orig_weight)

    @staticmethod
    def merge_unsafe(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> None:
        """The same in place."""
        orig_weight.data += _share(module, active_adapter, orig_weight)

    @staticmethod
    def unmerge(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """The layer's weight without it again."""
        return orig_weight - _share(module, active_adapter, orig_weight)


def _share(module: Any, adapter: str, weight: Tensor) -> Tensor:
    found: Tensor = module.get_delta_weight(adapter)
    return found.to(weight.dtype)
