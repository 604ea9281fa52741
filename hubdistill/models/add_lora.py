"""The product of LoRA with its gradient, apart from lean_lora.py, because PEFT takes seconds to import and `plan` traces this too.

Legend: N tokens, K sizes in, M sizes out, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def add_lora(result: Tensor, x: Tensor, down_RK: Tensor, up_MR: Tensor, scale: float) -> Tensor:
    """result (..., M) += x (..., K) down^T up^T * scale, computed in the adapter's type; `result` is overwritten."""
    found: Tensor = _AddLora.apply(result, x, down_RK, up_MR, scale)
    return found


class _AddLora(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, result: Tensor, x: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
        inner_NR = _rows(x).to(down.dtype) @ down.t()
        sum_NM = result.view(-1, result.shape[-1])
        if result.dtype == down.dtype:
            sum_NM.addmm_(inner_NR, up.t(), alpha=scale)
        else:  # rounded once, after the sum, as PEFT does it
            sum_NM.copy_(torch.addmm(sum_NM.to(down.dtype), inner_NR, up.t(), alpha=scale))
        ctx.mark_dirty(result)
        ctx.save_for_backward(x, down, up, inner_NR)
        ctx.scale = scale
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, down, up, inner_NR = ctx.saved_tensors
        (grad,) = grads
        grad_NM = _rows(grad).to(down.dtype)
        grad_NR = (grad_NM @ up).mul_(ctx.scale)
        grad_x = (grad_NR @ down).to(x.dtype).view(x.shape) if ctx.needs_input_grad[1] else None
        return grad, grad_x, grad_NR.t() @ _rows(x).to(down.dtype), (grad_NM.t() @ inner_NR).mul_(ctx.scale), None


def _rows(states: Tensor) -> Tensor:
    return states.reshape(-1, states.shape[-1])
