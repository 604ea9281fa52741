"""Attention over pairs in one row without padding: [c | x | y_t | y_s | x' | y_t' | y_s' ...], where both responses follow their prompt.

c is what all prompts of the row begin with (a system prompt, the opening of a chat template), read once for all; it may be empty.

All else in a decoder works on each token alone, given its position, so a model reads the prompt of a pair once and both
responses after it in one forward pass, with the attention swapped. Each pair takes two calls of the attention kernel, without
the mask of the whole row: [x | y_t] on [c | x | y_t], then y_s on [c | x | y_s]; c goes on itself, once. Where c is not empty the
first call needs a mask, so `common_of` takes it only where it saves more than that costs.
On NVIDIA GPUs in half precision all pairs go through one call of flash attention, with the keys of c and x laid out twice.

Legend: T tokens of the row, H heads, K key heads, D size of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from inspect import signature
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from hubdistill.models.load import base_of

NAME = "hubdistill-pairs"
Kernel = Callable[[Tensor, Tensor, Tensor, "Settings", "PairTree"], Tensor]  # as `attend_last`
ADDS = ("s_aux", "position_bias", "cache")  # what some families hand to their attention, and this one does not know


@dataclass(frozen=True)
class Span:
    """One pair: tokens of its prompt after what is common, at least one, of the teacher's and of the student's response."""

    prompt: int
    teacher: int
    student: int

    @property
    def total(self) -> int:
        return self.prompt + self.teacher + self.student


@dataclass(frozen=True)
class PairTree:
    """How a row is made of pairs; keeps the masks and indices that all layers share."""

    spans: tuple[Span, ...]
    common: int = 0  # tokens that all prompts begin with, in front of the first pair
    made: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def starts(self) -> list[int]:
        """Where each pair begins in the row, behind what is common."""
        return list(accumulate((span.total for span in self.spans[:-1]), initial=self.common))

    @property
    def total(self) -> int:
        return self.common + sum(span.total for span in self.spans)

    def positions(self) -> Tensor:
        """Position ids (1, T): each prompt counts on from what is common, both responses from the end of their prompt."""
        parts = [torch.cat([torch.arange(span.prompt + span.teacher), torch.arange(span.prompt, span.prompt + span.student)]) + self.common for span in self.spans]
        return torch.cat([torch.arange(self.common), *parts])[None]

    def columns(self) -> Tensor:
        """Column (N,) of the hidden state that predicts each response token: all teacher responses, then all student responses."""
        teacher, student = [], []
        for start, span in zip(self.starts, self.spans, strict=True):
            last = start + span.prompt - 1
            teacher.append(torch.arange(last, last + span.teacher))
            first = torch.arange(last + span.teacher, last + span.teacher + span.student)
            first[0] = last  # the prompt's last token predicts the first of either response
            student.append(first)
        return torch.cat(teacher + student)

    def keep(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` makes, made once."""
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]


ENTRIES = 1000  # scores of a masked query and key that cost no more than a token in all else: by operations 3000 in SmolLM2-135M, more in wider models; measured in docs/benchmarks.md


def common_of(prompts: Sequence[tuple[int, ...]], responses: Sequence[int]) -> int:
    """Tokens that all `prompts` begin with, where reading them once saves work; 0 elsewhere. Never a prompt's last token.

    `responses`: tokens of the responses that share their prompt's call of the attention. Without c, that call is causal and skips half
    of its n * n scores; with c, its q queries see all q + c keys through a mask: (q * q - c * c) / 2 scores more."""
    common = min(len(prompt) for prompt in prompts) - 1
    first, last = min(prompts), max(prompts)  # all others lie between them
    common = next((i for i in range(common) if first[i] != last[i]), common)
    more = sum(((len(prompt) + response - common) ** 2 - common**2) / 2 for prompt, response in zip(prompts, responses, strict=True))
    return common if len(prompts) > 1 and common * (len(prompts) - 1) * ENTRIES > more else 0


@contextmanager
def pair_attention(model: Any) -> Iterator[None]:
    """Inside, the decoder of `model` takes rows of pairs alone. Stay inside for the backward pass too where it checkpoints gradients."""
    config = base_of(model).get_decoder().config
    before = config._attn_implementation
    config._attn_implementation = NAME  # of the language model: a vision tower has a config of its own
    try:
        yield
    finally:
        config._attn_implementation = before


def takes_pairs(model: Any) -> bool:
    """Whether `model` is inside `pair_attention`."""
    return bool(base_of(model).get_decoder().config._attn_implementation == NAME)


def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *, pair_tree: PairTree | None = None, scaling: float | None = None,
           dropout: float = 0.0, sliding_window: int | None = None, softcap: float | None = None, kernel: Kernel | None = None, **more: Any) -> tuple[Tensor, None]:  # fmt: skip
    """The attention of transformers' interface: query (1, H, T, D), key and value (1, K, T, D) -> (1, T, H, D). `kernel` in place of `attend_last`.

    Raises ValueError for a call without a tree of pairs, and for what it does not know of.
    """
    unknown = [name for name in ADDS if more.get(name) is not None]
    if pair_tree is None or query.shape[0] != 1 or query.shape[2] != pair_tree.total:
        raise ValueError("the model is set to read pairs in one row, and was called with something else")
    if unknown:
        raise ValueError(f"its attention uses {unknown[0]}")
    settings = Settings(scaling if scaling is not None else query.shape[-1] ** -0.5, dropout, sliding_window, softcap)
    kernel = kernel or attend_last
    if settings.plain and _flash_takes(query, value):
        return _flash(query, key, value, pair_tree, settings), None
    common = slice(0, pair_tree.common)
    outputs = [kernel(query[:, :, common], key[:, :, common], value[:, :, common], settings, pair_tree)] if pair_tree.common else []
    for start, span in zip(pair_tree.starts, pair_tree.spans, strict=True):
        middle, end = start + span.prompt + span.teacher, start + span.total
        first, prompt, second = slice(start, middle), slice(start, start + span.prompt), slice(middle, end)
        for queries, seen in ((first, (common, first)), (second, (common, prompt, second))):
            keys, values = (_joined(states, seen) for states in (key, value))
            outputs.append(kernel(query[:, :, queries], keys, values, settings, pair_tree))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _joined(states: Tensor, places: Sequence[slice]) -> Tensor:
    """Those places (1, K, T, D) of the row one after the other, without a copy where it is one."""
    parts = [states[:, :, place] for place in places if place.stop > place.start]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


AttentionInterface.register(NAME, attend)  # without a mask function: transformers makes no mask of the whole row then


@dataclass(frozen=True)
class Settings:
    """How scores become weights."""

    scaling: float
    dropout: float
    window: int | None
    softcap: float | None

    @property
    def plain(self) -> bool:
        return not self.dropout and self.softcap is None


def attend_last(query: Tensor, key: Tensor, value: Tensor, settings: Settings, tree: PairTree) -> Tensor:
    """The last tokens of a sequence on all of it, causally."""
    queries, keys = query.shape[2], key.shape[2]
    windowed = settings.window is not None and keys > settings.window
    causal = queries == keys and not windowed
    mask = None if causal else tree.keep((queries, keys, settings.window if windowed else None, query.device), lambda: _mask(queries, keys, settings.window if windowed else None, query.device))
    if settings.softcap is not None:
        mask = tree.keep((queries, keys, query.device), lambda: _mask(queries, keys, None, query.device)) if mask is None else mask
        return _capped(query, key, value, settings, mask)
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and mask is not None and query.device.type != "cpu":  # elsewhere the fast kernels with a mask want equal heads
        key, value, groups = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), 1
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, dropout_p=settings.dropout,
                                                            scale=settings.scaling, enable_gqa=groups > 1)  # fmt: skip


def _capped(query: Tensor, key: Tensor, value: Tensor, settings: Settings, mask: Tensor) -> Tensor:
    """Attention written out, with Gemma-2's cap on the scores."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    assert settings.softcap is not None
    scores = settings.softcap * torch.tanh(query @ key.transpose(2, 3) * (settings.scaling / settings.softcap))
    weights = scores.masked_fill(~mask, -math.inf).softmax(-1, dtype=torch.float32).to(query.dtype)
    return torch.nn.functional.dropout(weights, settings.dropout) @ value


def _mask(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """(queries, keys): true where a query sees a key; the queries are the last of the keys, a window counts the query itself."""
    ahead = torch.arange(keys, device=device) - torch.arange(keys - queries, keys, device=device)[:, None]
    seen = ahead <= 0
    return seen if window is None else seen & (ahead > -window)


def _flash_takes(query: Tensor, value: Tensor) -> bool:
    nvidia = query.is_cuda and torch.version.cuda is not None
    return nvidia and query.dtype in (torch.float16, torch.bfloat16) and query.shape[-1] == value.shape[-1] <= 256 and _varlen() is not None


@cache
def _varlen() -> Any:
    """torch's flash attention over sequences of several lengths; None where this torch has none with windows and grouped heads."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # before torch 2.10
        return None
    return varlen_attn if {"window_size", "enable_gqa", "scale"} <= signature(varlen_attn).parameters.keys() else None


def _flash(query: Tensor, key: Tensor, value: Tensor, tree: PairTree, settings: Settings) -> Tensor:
    """One call of flash attention for all pairs; it aligns queries with the last keys of their sequence."""
    layout = tree.keep(("flash", query.device), lambda: _Layout.of(tree, query.device))
    states = [states[0].transpose(0, 1) for states in (query, key, value)]
    keys, values = (one.index_select(0, layout.keys) for one in states[1:])
    window = (-1, 0) if settings.window is None else (settings.window - 1, 0)
    found: Tensor = _varlen()(states[0].contiguous(), keys, values, layout.query_ends, layout.key_ends, layout.longest[0], layout.longest[1],
                              scale=settings.scaling, window_size=window, enable_gqa=query.shape[1] != key.shape[1])  # fmt: skip
    return found[None]


@dataclass(frozen=True)
class _Layout:
    """Sequences for flash attention: queries c, then [x | y_t] and y_s of each pair, keys c, then [c | x | y_t] and [c | x | y_s]."""

    keys: Tensor  # (c, and of each pair all tokens, and twice c and once x more,) places in the row
    query_ends: Tensor  # (2 pairs + 1,) int32, one more with c
    key_ends: Tensor
    longest: tuple[int, int]

    @classmethod
    def of(cls, tree: PairTree, device: torch.device) -> _Layout:
        common = torch.arange(tree.common)
        places, queries, keys = ([common], [0, tree.common], [0, tree.common]) if tree.common else ([], [0], [0])
        for start, span in zip(tree.starts, tree.spans, strict=True):
            row = torch.arange(start, start + span.total)
            places += [common, row[: span.prompt + span.teacher], common, row[: span.prompt], row[span.prompt + span.teacher :]]
            queries += [span.prompt + span.teacher, span.student]
            keys += [tree.common + span.prompt + span.teacher, tree.common + span.prompt + span.student]
        return cls(torch.cat(places).to(device), _ends(queries, device), _ends(keys, device), (max(queries), max(keys)))


def _ends(lengths: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(lengths, device=device).cumsum(0).to(torch.int32)
