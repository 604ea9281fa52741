"""What a model's forward and backward pass hold at most, found by running it on tensors without memory (torch's meta device).

The operations are the real ones, of the architecture that the config names, so that attention, norms and gated layers
need no formulas here; adapter, 4-bit layers and fused attention have stand-ins that hold the same. Two depths are run, and the real one is read off the line through them. B rows, L tokens.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AutoConfig

from hubdistill.estimate.calls import Call, Trace
from hubdistill.models.add_lora import add_lora
from hubdistill.models.load import auto_class
from hubdistill.models.pair_attention import PairTree, Settings, Span, attend, attend_last

DEPTHS = (2, 3)  # traced; every layer of a block pattern (sliding window, full attention) holds the same
LORA_SCALE = 2.0  # any number: the multiplication counts


def traced(call: Call) -> Trace:
    """What the call holds. Raises what transformers raises for a config that it cannot make a model of."""
    layers = _text(_config(call)).num_hidden_layers
    if layers <= DEPTHS[1]:
        return _run(call, layers)
    low, high = (_run(call, depth) for depth in DEPTHS)

    def at(a: int, b: int) -> int:
        return int(a + (b - a) / (DEPTHS[1] - DEPTHS[0]) * (layers - DEPTHS[0]))

    return Trace(*(at(getattr(low, name), getattr(high, name)) for name in ("kept", "forward", "backward")))


def _config(call: Call) -> Any:
    settings = json.loads(call.settings)
    return AutoConfig.for_model(settings.pop("model_type"), **settings)


def _text(config: Any) -> Any:
    return config.get_text_config()


def _shorten(config: Any, depth: int) -> None:
    """Leave `depth` layers, of the kinds that the first ones have."""
    text = _text(config)
    for key, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == text.num_hidden_layers:
            setattr(text, key, value[:depth])
    text.num_hidden_layers = depth


def _run(call: Call, depth: int) -> Trace:
    model, arguments = _model(call, depth), _arguments(call)
    adapter = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in adapter:
        parameter.grad = torch.empty_like(parameter)  # as from the second micro-batch on
    known = [*model.parameters(), *model.buffers(), *(parameter.grad for parameter in adapter)]
    with _Meter(known, call.length) as meter, torch.set_grad_enabled(bool(call.rank)):
        held = model(**arguments, use_cache=call.cache)
        kept, forward = meter.now, meter.take_peak()  # while `held` is
        if call.rank:
            held[0].backward(torch.zeros_like(held[0]))
        return Trace(kept, forward, meter.take_peak() if call.rank else 0)


def _arguments(call: Call) -> dict[str, Any]:
    if not call.response:
        return {"input_ids": torch.zeros(call.rows, call.length, dtype=torch.long, device="meta")}
    tree = PairTree(call.rows * (Span(call.length - call.response, call.response, call.response),))
    positions = tree.positions().to("meta")
    return {"input_ids": torch.zeros_like(positions), "position_ids": positions, "pair_tree": tree}


def _model(call: Call, depth: int) -> Any:
    """The decoder, without its head, as it is loaded for such a call."""
    config = _config(call)
    _shorten(config, depth)
    with torch.device("meta"):
        whole: Any = auto_class({"vision_config": True} if hasattr(config, "vision_config") else {}).from_config(
            config, dtype=getattr(torch, call.dtype), attn_implementation=PAIRS if call.response else "eager" if call.eager else FUSED)  # fmt: skip
    model = whole.get_decoder().requires_grad_(False)
    _replace_linear(model.layers, call)
    if call.checkpointing:
        whole.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train(bool(call.rank))


def _replace_linear(blocks: nn.Module, call: Call) -> None:
    for parent in list(blocks.modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, nn.Linear):
                continue
            adapted = call.rank > 0 and (call.modules is None or name in call.modules)
            base = _Packed(child, getattr(torch, call.packed)) if call.packed else child
            if adapted or call.packed:
                setattr(parent, name, _Adapted(base, child, call.rank) if adapted else base)


class _Adapted(nn.Module):
    """A linear layer with LoRA as it trains (models/add_lora.py). Of a 4-bit layer PEFT copies the output first."""

    def __init__(self, base: nn.Module, sizes: nn.Linear, rank: int):
        super().__init__()
        self.base = base
        self.down = nn.Linear(sizes.in_features, rank, bias=False, device="meta")
        self.up = nn.Linear(rank, sizes.out_features, bias=False, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        result = self.base(x)
        return add_lora(result.clone() if isinstance(self.base, _Packed) else result, x, self.down.weight, self.up.weight, LORA_SCALE)


class _Packed(nn.Module):
    """A layer in 4 bit, holding what bitsandbytes' holds: its weight is unpacked for each product, and again in backward."""

    def __init__(self, sizes: nn.Linear, compute: torch.dtype):
        super().__init__()
        self.shape, self.compute = (sizes.out_features, sizes.in_features), compute

    def forward(self, x: Tensor) -> Tensor:
        return _Unpacked.apply(x.to(self.compute), self.shape).to(x.dtype)


class _Unpacked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.shape = shape
        return x @ x.new_empty(shape).t()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] @ grads[0].new_empty(ctx.shape), None


class _Attention(torch.autograd.Function):
    """Holds what the fused kernels hold (flash, memory-efficient, the CPU's): inputs, output and a number a query; no scores. And
    the mask of queries that are the last of a sequence, as numbers."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query[..., : value.shape[-1]])
        queries, keys = query.shape[2], key.shape[2]
        mask = query.new_empty((queries, keys) if queries < keys else ())
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32), mask)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def _attend(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **settings: Any) -> tuple[Tensor, None]:
    groups = query.shape[1] // key.shape[1]
    if groups > 1:  # with a mask, which rows of several lengths need, transformers repeats keys and values
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return _Attention.apply(query, key, value).transpose(1, 2).contiguous(), None


def _attend_last(query: Tensor, key: Tensor, value: Tensor, settings: Settings, tree: PairTree) -> Tensor:
    """What `attend_last` holds."""
    return attend_last(query, key, value, settings, tree) if settings.softcap is not None else _Attention.apply(query, key, value)


def _attend_pairs(*states: Any, **settings: Any) -> tuple[Tensor, None]:
    return attend(*states, kernel=_attend_last, **settings)


FUSED, PAIRS = "hubdistill-estimate", "hubdistill-estimate-pairs"
# transformers makes no mask for an attention that it knows no mask of.
AttentionInterface.register(FUSED, _attend)
AttentionInterface.register(PAIRS, _attend_pairs)


class _Meter(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, while they live; not those of the `known`."""

    def __init__(self, known: Iterable[Tensor], length: int):
        super().__init__()
        self._length = length  # what a number that the code asks for is taken to be
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._seen: dict[int, Any] = {}

    def take_peak(self) -> int:
        """The peak since it was last taken."""
        peak, self.peak = self.peak, self.now
        return peak

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            # Whether a mask masks anything, and whether a prompt is long enough for another rotary embedding.
            return True if args[0].dtype == torch.bool else self._length
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._seen or key in self._known:
            return
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        self._seen[key] = weakref.ref(storage, lambda _: self._gone(key, size))

    def _gone(self, key: int, size: int) -> None:
        self._seen.pop(key, None)
        self.now -= size

