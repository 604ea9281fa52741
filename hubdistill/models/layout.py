"""Loading a model onto its device, or spread: over processes, or between device and main memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hubdistill.models.layers import empty_model
from hubdistill.models.load import DTYPES, read_weights
from hubdistill.models.sources import ModelFacts

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Layout:
    """Where a model's weights are: whole on its device, or spread over `shards` processes (FSDP2), or with its blocks
    in main memory, each brought to the device while it is used (`offload`)."""

    shards: int = 1
    offload: bool = False


WHOLE = Layout()


def load_model(facts: ModelFacts, dtype: str, device: torch.device, layout: Layout = WHOLE) -> PreTrainedModel:
    """Load a language model, or a vision-language model, from safetensors in evaluation mode. `auto` is the checkpoint's dtype, float32 on CPU."""
    # bf16 matrix products are several times slower than fp32 on most CPUs.
    wanted = DTYPES.get(dtype) or (torch.float32 if device.type == "cpu" else "auto")
    if layout.shards > 1:
        return _sharded(facts, wanted, layout.shards).eval()
    if layout.offload and device.type != "cpu":
        return read_weights(facts, wanted, device_map=_blocks_outside(facts, device)).eval()
    model: Any = read_weights(facts, wanted)
    return model.to(device).eval()


def _sharded(facts: ModelFacts, dtype: torch.dtype | str, shards: int) -> PreTrainedModel:
    """Each process reads only its part of the weights; blocks are gathered as they are used (transformers' FSDP2)."""
    from transformers.distributed import DistributedConfig

    model: Any = read_weights(facts, dtype, distributed_config=DistributedConfig(fsdp_size=shards))
    # Now, while each process holds its part. FSDP2 leaves head and last norm whole after a forward, and who freezes them
    # then, as PEFT does, freezes the copies, and trains the weights.
    model.requires_grad_(False)
    # PEFT takes any number here for tensor parallelism, and would gather the adapter, which is whole, over the processes.
    model._tp_size = None
    return model


def _blocks_outside(facts: ModelFacts, device: torch.device) -> dict[str, torch.device | str]:
    """accelerate's device map: the blocks of the language model in main memory, all else on the device."""
    model: Any = empty_model(facts, "teacher")
    blocks = next(name for name, module in model.named_modules() if module is model.get_decoder().layers)
    tensors = [name for found in (model.named_parameters, model.named_buffers) for name, _ in found()]
    return {blocks: "cpu", **{name.rpartition(".")[0]: device for name in tensors if not name.startswith(f"{blocks}.")}}
