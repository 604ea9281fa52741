"""The row work of `rows.py` in Triton, for CUDA: a logit is read three times in all instead of once an operation.

One program a row. Imported by `chunked.py` where it is used, and only there: Triton need not be installed. With
TRITON_INTERPRET=1 the same functions run on a CPU, slowly, as in the tests.

`_statistics` reads both models' logits; the alpha of a response may depend on what it finds. `_divergence` reads them
for value and centre, and again for the gradient: recomputing costs less than storing.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hubdistill.losses.rows import Block, PairStats, RowFunctions

BLOCK = 2048  # entries a step
LAUNCH = {"num_warps": 8, "maxnreg": 64}  # eight entries a thread, and four programs fit a multiprocessor's registers
UNCENTRED = ("kl", "nll")  # their gradients need no sum over the row, and so no second reading


@triton.jit
def _statistics(
    teacher, student, labels, out, teacher_stride, student_stride, rows, VOCAB: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Into out (9, rows) what `statistics` returns, and what `_divergence` takes."""
    row = tl.program_id(0).to(tl.int64)  # a large budget has more than 2^31 entries
    teacher += row * teacher_stride
    student += row * student_stride
    lane = tl.arange(0, BLOCK)
    # A lane keeps its own maximum and sum: lanes meet once, after the loop, and an entry costs one exponential.
    teacher_tops = tl.full((BLOCK,), -1e18, tl.float32)
    student_tops = tl.full((BLOCK,), -1e18, tl.float32)
    teacher_sums = tl.zeros((BLOCK,), tl.float32)
    student_sums = tl.zeros((BLOCK,), tl.float32)
    choices = lane
    for start in range(0, VOCAB, BLOCK):
        at = start + lane
        y = tl.load(teacher + at, mask=at < VOCAB, other=-1e18)
        rise = y - teacher_tops
        ratio = tl.exp(-tl.abs(rise))
        teacher_sums = tl.where(rise > 0, teacher_sums * ratio + 1, teacher_sums + ratio)
        teacher_tops = tl.maximum(teacher_tops, y)
        y = tl.load(student + at, mask=at < VOCAB, other=-1e18)
        rise = y - student_tops
        ratio = tl.exp(-tl.abs(rise))
        student_sums = tl.where(rise > 0, student_sums * ratio + 1, student_sums + ratio)
        student_tops = tl.maximum(student_tops, y)
        choices = tl.where(rise > 0, at, choices)
    teacher_top = tl.max(teacher_tops)
    student_top = tl.max(student_tops)
    teacher_sum = tl.sum(teacher_sums * tl.exp(teacher_tops - teacher_top))
    student_sum = tl.sum(student_sums * tl.exp(student_tops - student_top))
    teacher_log, student_log = tl.log(teacher_sum), tl.log(student_sum)
    choice = tl.min(tl.where(student_tops == student_top, choices, VOCAB - 1))  # of equals, the first
    label = tl.load(labels + row)
    out += row
    tl.store(out, tl.load(teacher + label) - teacher_top - teacher_log)
    tl.store(out + rows, tl.load(student + label) - student_top - student_log)
    tl.store(out + rows * 2, tl.where(tl.load(teacher + choice) == teacher_top, 1.0, 0.0))
    tl.store(out + rows * 3, student_top + student_log)
    # log Z in two parts, because the sum of a large top and a small logarithm loses digits of the logarithm
    tl.store(out + rows * 4, teacher_top)
    tl.store(out + rows * 5, student_top)
    tl.store(out + rows * 6, 1 / teacher_sum)
    tl.store(out + rows * 7, 1 / student_sum)
    tl.store(out + rows * 8, teacher_log - student_log)


@triton.jit
def _terms(p, q, gap, alpha, is_label, KIND: tl.constexpr, DETACHED: tl.constexpr):
    """(summand of the value, q T) for each entry; for kl and nll the gradient itself instead of q T.

    gap is log p - log q. The formulas and the floor are those of `rows.py`.
    """
    floor: tl.constexpr = 2.0**-100
    if KIND == "kl":
        value = p * gap
        product = q - p
    elif KIND == "rkl":
        value = -q * gap
        product = value
    elif KIND == "skl":
        p = tl.maximum(p, floor)
        ratio = p / (q + alpha * (p - q))
        value = p * tl.log(ratio)
        product = q * ratio
    elif KIND == "srkl":
        q = tl.maximum(q, floor)
        ratio = q / (p + alpha * (q - p))
        value = q * tl.log(ratio)
        product = value if DETACHED else value - alpha * q * ratio
    elif KIND == "jsd":
        p = tl.maximum(p, floor)
        q = tl.maximum(q, floor)
        inverse = 1 / (q + alpha * (p - q))
        product = q * tl.log(q * inverse)
        value = alpha * p * tl.log(p * inverse) + (1 - alpha) * product
    elif KIND == "tv":
        value = tl.abs(q - p) * 0.5
        product = tl.where(q > p, q, tl.where(q < p, -q, 0.0))
    else:
        tl.static_assert(KIND == "nll")
        value = tl.zeros_like(q)
        product = tl.where(is_label, q - 1, q)
    return value, product


@triton.jit
def _divergence(
    teacher, student, gradient, labels, alphas, stats, values,
    teacher_stride, student_stride, gradient_stride, rows, soft_cap,
    KIND: tl.constexpr, DETACHED: tl.constexpr, CAPPED: tl.constexpr, GRADIENT: tl.constexpr, CENTRED: tl.constexpr,
    VOCAB: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The divergence of each row into values (rows,), and its gradient, which may be written over the student's logits.

    In place is safe: the sum that gives the centre waits for all of a row to be read, and in a single loop each block
    is read before it is written. Nothing else of the row is read once writing has begun.
    """
    row = tl.program_id(0).to(tl.int64)
    teacher += row * teacher_stride
    student += row * student_stride
    gradient += row * gradient_stride
    stats += row
    student_logp = tl.load(stats + rows)
    teacher_top, student_top = tl.load(stats + rows * 4), tl.load(stats + rows * 5)
    teacher_share, student_share = tl.load(stats + rows * 6), tl.load(stats + rows * 7)
    shift = tl.load(stats + rows * 8)
    alpha = tl.load(alphas + row)
    label = tl.load(labels + row)
    lane = tl.arange(0, BLOCK)
    value_sums = tl.zeros((BLOCK,), tl.float32)
    centre_sums = tl.zeros((BLOCK,), tl.float32)
    if CENTRED or not GRADIENT:
        for start in range(0, VOCAB, BLOCK):
            at = start + lane
            # beyond the vocabulary p = q = 0 and their gap is small: the summands are 0, or below any sum's notice
            y = tl.load(student + at, mask=at < VOCAB, other=-1e18) - student_top
            x = tl.load(teacher + at, mask=at < VOCAB, other=-1e18) - teacher_top
            p, q = tl.exp(x) * teacher_share, tl.exp(y) * student_share
            value, product = _terms(p, q, x - y - shift, alpha, at == label, KIND, DETACHED)
            value_sums += value
            centre_sums += product
    centre = tl.sum(centre_sums)
    if GRADIENT:
        for start in range(0, VOCAB, BLOCK):
            at = start + lane
            z = tl.load(student + at, mask=at < VOCAB, other=-1e18)
            y = z - student_top
            x = tl.load(teacher + at, mask=at < VOCAB, other=-1e18) - teacher_top
            p, q = tl.exp(x) * teacher_share, tl.exp(y) * student_share
            value, product = _terms(p, q, x - y - shift, alpha, at == label, KIND, DETACHED)
            if CENTRED:
                product -= q * centre
            else:
                value_sums += value
            if CAPPED:
                part = z / soft_cap
                product *= 1 - part * part  # dz/dy of z = c tanh(y / c)
            tl.store(gradient + at, product.to(gradient.dtype.element_ty), mask=at < VOCAB)
    tl.store(values + row, -student_logp if KIND == "nll" else tl.sum(value_sums))


def statistics(kind: str, teacher: Tensor, student: Tensor, labels: Tensor) -> PairStats:
    """PairStats of logits (N, V), which stay as they are; labels (N, 1)."""
    rows, vocab = student.shape
    out = student.new_empty((9, rows, 1))
    with torch.cuda.device_of(student):
        _statistics[(rows,)](
            teacher, student, labels.contiguous(), out, teacher.stride(0), student.stride(0), rows,
            VOCAB=vocab, BLOCK=BLOCK, **LAUNCH,
        )  # fmt: skip
    return PairStats(out[0], out[1], agree=out[2] > 0, student_log_z=out[3], fused=out)


def divergence(kind: str, block: Block) -> Tensor:
    """Value (N, 1); the gradient, divided by its per-row factor, into `block.gradient`, in the type of that."""
    (rows, vocab), stats = block.student.shape, block.known.fused
    assert stats is not None
    gradient = block.student if block.gradient is None else block.gradient
    values = block.student.new_empty((rows, 1))
    flags: dict[str, Any] = dict(
        KIND=kind, DETACHED=block.detached, CAPPED=bool(block.soft_cap), GRADIENT=block.gradient is not None,
        CENTRED=kind not in UNCENTRED,
    )  # fmt: skip
    with torch.cuda.device_of(block.student):
        _divergence[(rows,)](
            block.teacher, block.student, gradient, block.labels.contiguous(), block.alpha.contiguous(), stats, values,
            block.teacher.stride(0), block.student.stride(0), gradient.stride(0), rows, block.soft_cap or 0.0,
            **flags, VOCAB=vocab, BLOCK=BLOCK, **LAUNCH,
        )  # fmt: skip
    return values


FUSED = RowFunctions(statistics, divergence, scratch=0, narrow_gradient=True)
