"""A language-model head applied to a tile of hidden states, into buffers that are reused; used by `chunked.py`.

N rows, V vocabulary, D hidden size. Arithmetic is float32 (float64 for float64 hidden states). A head stored in a
narrower type is up-cast in slices of the vocabulary: bfloat16 products are slow on CPU, and a whole up-cast head would
cost 4 V D bytes. On CUDA, bfloat16 products with float32 results are used as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hubdistill.losses.budget import CAST_BYTES


@dataclass(frozen=True)
class Head:
    """The last layer of a language model: hidden (N, D) -> logits (N, V) = soft_cap(scale * (h @ weight.T + bias))."""

    weight: Tensor  # (V, D)
    bias: Tensor | None = None  # (V,)
    scale: float = 1.0  # Cohere's logit_scale, and the like
    soft_cap: float | None = None  # Gemma-2's final_logit_softcapping: c * tanh(z / c)

    def first(self, vocab: int) -> Head:
        """The head of the first `vocab` ids: teacher and student of unequal vocabularies meet at the common size."""
        if vocab >= self.weight.shape[0]:
            return self
        bias = None if self.bias is None else self.bias[:vocab]
        return Head(self.weight[:vocab], bias, self.scale, self.soft_cap)


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """float64 for float64 hidden states (tests), float32 for all else."""
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


class Projector:
    """Products with one head; keeps the up-cast slice between calls."""

    def __init__(self, head: Head, hidden: Tensor):
        self.head, self.dtype = head, compute_dtype(hidden)
        dtype = self.dtype
        weight = head.weight.detach()
        self.weight = weight
        self.bias = None if head.bias is None else (head.bias.detach().to(dtype) * head.scale)
        # float16 would flush the small gradients of unlikely ids to zero; bfloat16 has float32's range
        self.mixed = weight.is_cuda and weight.dtype == hidden.dtype == torch.bfloat16
        self.rows = max(1, CAST_BYTES // (weight.shape[1] * dtype.itemsize))
        self.cast: Tensor | None = None

    def _slices(self) -> Iterator[tuple[slice, Tensor]]:
        """The weight in the type of the arithmetic, whole where it already is, else slice by slice in one buffer."""
        if self.weight.dtype == self.dtype:
            yield slice(None), self.weight
            return
        vocab, width = self.weight.shape
        if self.cast is None:
            self.cast = self.weight.new_empty((min(self.rows, vocab), width), dtype=self.dtype)
        for start in range(0, vocab, self.rows):
            part = self.weight[start : start + self.rows]
            yield slice(start, start + part.shape[0]), self.cast[: part.shape[0]].copy_(part)

    def logits(self, hidden_ND: Tensor, out_NV: Tensor) -> Tensor:
        """Write the logits of `hidden_ND` (N, D) into `out_NV` (N, V)."""
        if self.mixed:
            torch.mm(hidden_ND, self.weight.t(), out_dtype=torch.float32, out=out_NV)
            if self.head.scale != 1:  # a pass over all logits
                out_NV.mul_(self.head.scale)
        else:
            hidden_ND = hidden_ND.to(self.dtype) * self.head.scale
            for columns, weight in self._slices():
                torch.mm(hidden_ND, weight.t(), out=out_NV[:, columns])
        if self.bias is not None:
            out_NV.add_(self.bias)
        if self.head.soft_cap:
            out_NV.div_(self.head.soft_cap).tanh_().mul_(self.head.soft_cap)
        return out_NV

    def hidden_gradient(self, gradient_NV: Tensor) -> Tensor:
        """From dL/d(h @ weight.T), unscaled, to dL/dh (N, D)."""
        if self.mixed:
            return torch.mm(gradient_NV.to(torch.bfloat16), self.weight, out_dtype=torch.float32) * self.head.scale
        result = gradient_NV.new_zeros((gradient_NV.shape[0], self.weight.shape[1]))
        for columns, weight in self._slices():
            result.addmm_(gradient_NV[:, columns], weight)
        return result.mul_(self.head.scale)
