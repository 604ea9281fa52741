"""Full-vocabulary divergences from hidden states, without ever storing the logits of a batch.

The head is applied to tiles of rows under a byte budget; the divergence, and the gradient to the student's hidden
states, are formed in closed form while a tile is in memory. Extra memory does not grow with the number of tokens.

Legend: B responses, N response tokens, V vocabulary, D hidden size. Values are nats.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from hubdistill.losses.head import Head, Projector, compute_dtype
from hubdistill.losses.rows import EAGER, KERNELS, Block, PairStats, RowFunctions
from hubdistill.losses.tiles import Group, Tile, block_rows, blocks, groups, tile_rows

__all__ = ["AlphaRule", "Head", "Responses", "Tokens", "chunked_divergence", "label_logps"]

MixGrad = Literal["exact", "detached"]
AlphaRule = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(teacher_mean_logp_B, student_mean_logp_B, from_student_B) -> alpha_B, for whole responses, a few at a time.

Called without grad and in float32; each response's alpha must depend on that response alone (and on frozen state)."""


@dataclass(frozen=True)
class Responses:
    """The tokens of whole responses, one response after another, with what both models know about them."""

    student_ND: Tensor  # hidden states that predict each response token
    teacher_ND: Tensor  # the teacher's; its D may differ
    labels_N: Tensor  # int64
    lengths_B: Tensor | Sequence[int]  # tokens per response; they add up to N
    from_student_B: Tensor  # bool; False: a teacher response (skl), True: a student response (srkl)


@dataclass(frozen=True)
class Tokens:
    """Per-token results in the caller's order, detached, float32 (float64 for float64 hidden states)."""

    divergence_N: Tensor
    teacher_logp_N: Tensor  # of the labels
    student_logp_N: Tensor
    alpha_B: Tensor  # what each response used
    agree_N: Tensor  # bool: both models rank the same id first


def chunked_divergence(
    responses: Responses,
    student_head: Head,
    teacher_head: Head,
    weights_N: Tensor,
    alpha: float | AlphaRule,
    *,
    kinds: tuple[str, str] = ("skl", "srkl"),
    mix_grad: MixGrad = "exact",
    vocab: int | None = None,
    budget_bytes: int | None = None,
    whole_bytes: int = 0,
) -> tuple[Tensor, Tokens]:
    """sum_n weights_N[n] * divergence_N[n], differentiable in `student_ND` and in a student head that trains.

    `kinds` names the divergence on teacher and on student responses: kl, rkl, skl, srkl, jsd (alpha is its b), tv or nll.
    `vocab` slices both heads to the common vocabulary. `budget_bytes` bounds both logit buffers together (default
    256 MiB on CPU, 1 GiB elsewhere). With an alpha rule, tiles hold whole responses, because alpha has to be known before
    the first row: the buffers grow to the longest response where that takes no more than `whole_bytes`; one that does not
    fit costs two more head products. Raises ValueError for arguments that do not fit each other. Gradients: closed forms of docs/method.md, formed in the forward pass and scaled in backward.
    """
    if vocab is not None:
        student_head, teacher_head = student_head.first(vocab), teacher_head.first(vocab)
    lengths = _check(responses, student_head, teacher_head, weights_N, alpha, kinds)
    trainable = (responses.student_ND, student_head.weight, student_head.bias)
    needs = tuple(torch.is_grad_enabled() and t is not None and t.requires_grad for t in trainable)
    job = _Job(responses, lengths, student_head, teacher_head, weights_N, alpha, kinds, mix_grad, (budget_bytes, whole_bytes), needs)
    loss, *tokens = _Divergence.apply(*trainable, job) if any(needs) else _work(job)[0]
    return loss, Tokens(*tokens)


@torch.no_grad()
def label_logps(
    hidden_ND: Tensor, head: Head, labels_N: Tensor, vocab: int | None = None, budget_bytes: int | None = None
) -> Tensor:
    """Log-probability (N,) of each label under one model, nats, without grad; logits are never stored."""
    head = head if vocab is None else head.first(vocab)
    dtype = compute_dtype(hidden_ND)
    projector, size = Projector(head, hidden_ND), head.weight.shape[0]
    rows = tile_rows(hidden_ND, size, budget_bytes, models=1)
    buffer = hidden_ND.new_empty((min(rows, len(hidden_ND)), size), dtype=dtype)
    result = hidden_ND.new_empty(len(hidden_ND), dtype=dtype)
    with torch.autocast(hidden_ND.device.type, enabled=False):
        for start in range(0, len(hidden_ND), rows):
            hidden, labels = hidden_ND[start : start + rows], labels_N[start : start + rows, None]
            logits = projector.logits(hidden, buffer[: len(hidden)])
            for block in blocks(logits):
                label_logit = logits[block].gather(-1, labels[block])
                log_z = logits[block].logsumexp(-1, keepdim=True)
                result[start : start + rows][block] = (label_logit - log_z).squeeze(-1)
    return result


def usable(logits: Tensor) -> bool:
    """Whether Triton could do the row work on these logits; `row_functions` finds out whether it does.

    AMD's devices call themselves CUDA too, but nobody has tried the kernels there.
    """
    nvidia = logits.is_cuda and torch.version.cuda is not None
    return nvidia and logits.dtype == torch.float32 and find_spec("triton") is not None


def row_functions(logits: Tensor) -> RowFunctions:
    """Triton's row functions where they work, torch's everywhere else."""
    return _fused(logits.device) if usable(logits) else EAGER


@cache
def _fused(device: torch.device) -> RowFunctions:
    try:
        from hubdistill.losses.fused import FUSED

        tiny = torch.zeros((1, 16), device=device)
        FUSED.statistics("skl", tiny, tiny, torch.zeros((1, 1), dtype=torch.int64, device=device))
    except Exception as error:  # noqa: BLE001  Triton builds with this machine's compiler, headers and driver: any may be missing
        warnings.warn(f"the loss runs without Triton's kernels, more slowly ({error}); Triton needs a C compiler", stacklevel=2)
        return EAGER
    return FUSED


@dataclass(frozen=True)
class _Job:
    responses: Responses
    lengths: list[int]
    student_head: Head
    teacher_head: Head
    weights_N: Tensor
    alpha: float | AlphaRule
    kinds: tuple[str, str]
    mix_grad: MixGrad
    budgets: tuple[int | None, int]  # bytes, and those for the sake of a whole response
    needs: tuple[bool, ...]  # gradient of hidden states, head weight, head bias


class _Divergence(torch.autograd.Function):
    """Forward does all the work and keeps the finished gradients; backward scales them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, job: _Job) -> tuple[Tensor, ...]:
        results, gradients = _work(job)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [None if t is None else t.dtype for t in (hidden, weight, bias)]
        ctx.mark_non_differentiable(*results[1:])
        return results

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        scale = grad_outputs[0]  # applied before the cast: a loss scale for float16 has to come first
        pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return (*(None if g is None else (g * scale).to(dtype) for g, dtype in pairs), None)


@torch.no_grad()
def _work(job: _Job) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
    """(loss, *Tokens' fields), and the gradients of loss for hidden states, head weight and head bias."""
    with torch.autocast(job.responses.student_ND.device.type, enabled=False):
        sweep = _Sweep(job)
        flags = [bool(flag) for flag in job.responses.from_student_B.tolist()]
        for group in groups(job.lengths, flags, sweep.rows, whole=callable(job.alpha)):
            sweep.group(group)
    tokens = sweep.tokens
    loss = torch.dot(tokens.divergence_N, sweep.weights_N)
    fields = (tokens.divergence_N, tokens.teacher_logp_N, tokens.student_logp_N, tokens.alpha_B, tokens.agree_N)
    return (loss, *fields), sweep.gradients


class _Sweep:
    """Buffers, results and gradients of one call; filled tile by tile."""

    def __init__(self, job: _Job):
        self.job, hidden = job, job.responses.student_ND
        self.dtype, size = compute_dtype(hidden), job.student_head.weight.shape[0]
        count, longest = len(hidden), max(job.lengths, default=0) if callable(job.alpha) else 0
        self.rows = tile_rows(hidden, size, job.budgets[0], models=2, longest=longest, whole_bytes=job.budgets[1])
        tile = min(self.rows, count)

        def new(*shape: int) -> Tensor:
            return hidden.new_empty(shape, dtype=self.dtype)

        self.teacher, self.student = new(tile, size), new(tile, size)
        self.work = row_functions(self.student)
        inner = min(tile, block_rows(self.student))
        self.scratch = tuple(new(inner, size) for _ in range(self.work.scratch))
        self.projectors = (Projector(job.teacher_head, job.responses.teacher_ND), Projector(job.student_head, hidden))
        self.gradient_buffer = self.student
        if self.work.narrow_gradient and self.projectors[1].mixed and job.needs == (True, False, False):
            self.gradient_buffer = torch.empty_like(self.student, dtype=torch.bfloat16)  # what its product takes
        self.weights_N = job.weights_N.detach().to(hidden.device, self.dtype)
        self.tokens = Tokens(new(count), new(count), new(count), new(len(job.lengths)), new(count).bool())
        shapes = (hidden, job.student_head.weight, job.student_head.bias)
        self.gradients = tuple(
            torch.zeros_like(t, dtype=self.dtype) if need and t is not None else None
            for need, t in zip(job.needs, shapes, strict=True)
        )

    def group(self, group: Group) -> None:
        """Alpha of the group's responses, then the divergence and gradient of its rows."""
        if not callable(self.job.alpha):
            self.tokens.alpha_B[group.members] = self.job.alpha
        elif len(group.tiles) > 1:  # alpha has to be known before the first row, and the buffers hold one tile
            for tile in group.tiles:
                deque(self._label_passes(tile), maxlen=0)
            self._find_alpha(group)
        for tile in group.tiles:
            stats: Iterable[PairStats] = self._label_passes(tile)
            if callable(self.job.alpha) and len(group.tiles) == 1:
                stats = list(stats)
                self._find_alpha(group)
            self._divergence_passes(tile, stats)

    def _label_passes(self, tile: Tile) -> Iterator[PairStats]:
        """Logits of a tile into the buffers; then, block by block: normalised, and what is known before alpha.

        Lazy, so that with a known alpha a block goes on to its divergence while it is in the cache.
        """
        job, rows = self.job, tile.rows.to(self.teacher.device)
        teacher = self.projectors[0].logits(job.responses.teacher_ND[rows], self.teacher[: len(rows)])
        student = self.projectors[1].logits(job.responses.student_ND[rows], self.student[: len(rows)])
        for side, block in tile.blocks(student):
            at = rows[block]
            labels = job.responses.labels_N[at].unsqueeze(-1)
            stats = self.work.statistics(job.kinds[side], teacher[block], student[block], labels)
            self.tokens.teacher_logp_N[at] = stats.teacher_logp.squeeze(-1)
            self.tokens.student_logp_N[at] = stats.student_logp.squeeze(-1)
            self.tokens.agree_N[at] = stats.agree.squeeze(-1)
            yield stats

    def _find_alpha(self, group: Group) -> None:
        """Ask the rule, with the mean log-probabilities of the group's responses, over the same tokens as the loss."""
        rows = torch.cat([tile.rows for tile in group.tiles]).to(self.teacher.device)
        lengths = [self.job.lengths[b] for b in group.members]
        means = [
            torch.stack([part.mean() for part in logp[rows].split(lengths)]).float()
            for logp in (self.tokens.teacher_logp_N, self.tokens.student_logp_N)
        ]
        assert callable(self.job.alpha)
        alpha = self.job.alpha(means[0], means[1], self.job.responses.from_student_B[group.members])
        self.tokens.alpha_B[group.members] = alpha.to(self.dtype)

    def _divergence_passes(self, tile: Tile, stats: Iterable[PairStats]) -> None:
        """Divergence of a tile's blocks; their gradient, mostly in the student's buffer, goes into the sums."""
        device = self.teacher.device
        rows, alpha = tile.rows.to(device), self.tokens.alpha_B[tile.owners.to(device)].unsqueeze(-1)
        scale = self.weights_N[rows].unsqueeze(-1)
        for (side, block), known in zip(tile.blocks(self.student), stats, strict=True):
            at = rows[block]
            value = self.work.divergence(
                self.job.kinds[side],
                Block(
                    teacher=self.teacher[block],
                    student=self.student[block],
                    gradient=self.gradient_buffer[block] if any(self.job.needs) else None,
                    alpha=alpha[block],
                    labels=self.job.responses.labels_N[at].unsqueeze(-1),
                    known=known,
                    scratch=tuple(buffer[: len(at)] for buffer in self.scratch),
                    soft_cap=self.job.student_head.soft_cap,
                    detached=self.job.mix_grad == "detached",
                ),
            )
            self.tokens.divergence_N[at] = value.squeeze(-1)
            scale[block] *= KERNELS[self.job.kinds[side]].factor(alpha[block])
        if any(self.job.needs):
            self._add_gradients(rows, self.gradient_buffer[: len(rows)], scale)

    def _add_gradients(self, rows: Tensor, gradient: Tensor, scale: Tensor) -> None:
        """From a tile's dL/dy, still without its per-row scale, to the gradients asked for."""
        hidden, weight, bias = self.gradients
        if hidden is not None:
            hidden[rows] = self.projectors[1].hidden_gradient(gradient) * scale
        scale = scale * self.job.student_head.scale
        if weight is not None:
            weight.addmm_(gradient.t(), self.job.responses.student_ND[rows].to(self.dtype) * scale)
        if bias is not None:
            bias.addmv_(gradient.t(), scale.squeeze(-1))


def _check(
    responses: Responses,
    student_head: Head,
    teacher_head: Head,
    weights_N: Tensor,
    alpha: float | AlphaRule,
    kinds: tuple[str, str],
) -> list[int]:
    """Lengths as a list; ValueError where the arguments do not fit each other."""
    lengths = torch.as_tensor(responses.lengths_B).tolist()
    rows = {len(t) for t in (responses.student_ND, responses.teacher_ND, responses.labels_N, weights_N)}
    if rows != {sum(lengths)} or len(responses.from_student_B) != len(lengths):
        raise ValueError(
            f"responses do not fit: {sorted(rows)} rows, lengths add up to {sum(lengths)}; give one row per token and one flag per response"
        )
    if min(lengths, default=1) < 1:
        raise ValueError("a response has no tokens; leave out empty responses before the loss")
    sizes = [head.weight.shape[0] for head in (student_head, teacher_head)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"the student has {sizes[0]} ids and the teacher {sizes[1]}; pass vocab=, the common size")
    if len(responses.labels_N) and not 0 <= int(responses.labels_N.min()) <= int(responses.labels_N.max()) < sizes[0]:
        raise ValueError(f"a label lies outside the {sizes[0]} ids that both heads share; drop its response")
    unknown = set(kinds) - set(KERNELS)
    if unknown:
        raise ValueError(f"unknown divergence {sorted(unknown)}; choose from {', '.join(KERNELS)}")
    skewed = any(KERNELS[kind].needs_alpha for kind in kinds)
    if skewed and not callable(alpha) and not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}; it must be between 0 and 1 (for its limit at 0 use kl and rkl)")
    return lengths
