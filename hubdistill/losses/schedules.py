"""How beta (weight of the student term) and alpha (skew) move during training: sections 3.3 and Algorithm 1.

Importing this file does not import torch, so that `hubdistill plan` can print the schedules of a recipe at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

BETA_START = 0.5  # beta_0 of Table 11
SIDES = ("teacher", "student")  # whose responses
GAP_EPS = 1e-6  # a mean-probability gap at or below this is not divided by
EMA_DECAY = 0.9


def beta_at(schedule: str, *, round: int, rounds: int, step: int, steps: int, end: float = 1.0) -> float:
    """Beta of optimiser step `step` (from 0, of `steps`) in round `round` (from 1, of `rounds`).

    linear: 0.5 to `end` over all steps of all rounds. paper: clip(e/E + tau/T, 0.5, 1), tau = 1..T (Algorithm 1, line
    13). released: 0.5 to 0.75, reached half-way through each round, as the authors' code trains each round on its
    own. constant: 0.5. off: 0, teacher responses alone. full: 1, student responses alone. Raises ValueError for an unknown name or a place outside the run.
    """
    if not (1 <= round <= rounds and 0 <= step < steps):
        raise ValueError(
            f"round {round} of {rounds}, step {step} of {steps} is outside the run; rounds count from 1, steps from 0"
        )
    if schedule == "linear":
        last = rounds * steps - 1
        done = (round - 1) * steps + step
        return BETA_START + (end - BETA_START) * (done / last if last else 0.0)
    if schedule == "paper":
        return min(max(round / rounds + (step + 1) / steps, BETA_START), 1.0)
    if schedule == "released":
        return BETA_START + 0.25 * min(1.0, 2 * step / steps)
    if schedule == "constant":
        return BETA_START
    if schedule in ("off", "full"):
        return float(schedule == "full")
    raise ValueError(f"unknown beta schedule {schedule!r}; choose linear, paper, released, constant, off or full")


@dataclass(frozen=True)
class BetaRow:
    """Beta in one round."""

    round: int
    first: float
    last: float
    mean: float


@dataclass(frozen=True)
class BetaTable:
    """What `plan` prints: a row per round, and a warning where the teacher term has weight zero (else None)."""

    rows: tuple[BetaRow, ...]
    warning: str | None


def beta_table(schedule: str, *, rounds: int, steps: int, end: float = 1.0) -> BetaTable:
    """Beta over `rounds` rounds of `steps` optimiser steps each."""
    rows, silent = [], list[str]()
    for round in range(1, rounds + 1):
        values = [
            beta_at(schedule, round=round, rounds=rounds, step=step, steps=steps, end=end) for step in range(steps)
        ]
        rows.append(BetaRow(round, values[0], values[-1], sum(values) / steps))
        zero = sum(value >= 1.0 for value in values)
        # the last step of a linear ramp to 1 is what was asked for; more than that is a surprise
        if schedule != "full" and (zero > 1 or (zero and schedule == "paper")):
            silent.append(f"round {round}: {'all' if zero == steps else zero} of {steps} steps")
    if not silent:
        return BetaTable(tuple(rows), None)
    text = f"beta is 1 in {'; '.join(silent)}: skl on teacher responses has weight 0 there. Use beta: linear if that is not wanted"
    return BetaTable(tuple(rows), text)


class CurriculumSettings(Protocol):
    """The fields of a LossPreset that the alpha curriculum reads."""

    @property
    def alpha(self) -> float: ...
    @property
    def alpha_low(self) -> float: ...
    @property
    def alpha_high(self) -> float: ...
    @property
    def anchor(self) -> str: ...
    @property
    def nonpositive_gap(self) -> str: ...


def gaps(teacher_mean_logp_B: Tensor, student_mean_logp_B: Tensor, from_student_B: Tensor) -> Tensor:
    """Gap (B,) of geometric-mean token probabilities: teacher - student on teacher responses, else student - teacher.

    Algorithm 1 line 11 prints teacher - student on both, with the responses swapped; eq. 7 and its derivation give
    this. The product over a response, in place of the mean, would underflow and depend on its length.
    """
    gap = teacher_mean_logp_B.detach().float().exp() - student_mean_logp_B.detach().float().exp()
    return gap.where(~from_student_B, -gap)


class AlphaCurriculum:
    """alpha = clip(1 - (1 - alpha_0) m / gap, low, high) per response (Algorithm 1, line 11); itself an AlphaRule.

    The paper leaves m open. Anchors, one m per side: `frozen`, the mean gap over round 1; `batch`, the mean gap of the
    last finished optimiser step (the running one's is unknown until its last micro-batch); `ema`, those averaged with
    decay 0.9; `off`, alpha_0 throughout. Round 1 uses alpha_0 for all (Table 11), and so does a side whose m is
    missing or not positive, with a logged warning. Where a gap is not positive the student is already above the
    teacher there: `nonpositive_gap: max` takes the upper clip, the milder loss with the smaller gradient, because
    there is nothing left to learn; `min` continues the formula's own limit from above.

    Each micro-batch: `observe(...)`; after each optimiser step: `end_step()`; after each round: `end_round()`. On
    several ranks `reduce` sums a CPU float tensor (2, 2) over them; it is called by end_step (batch, ema), end_round and
    state_dict alone, which all ranks must then call together, so no rank waits inside a loss.
    """

    def __init__(self, preset: CurriculumSettings, *, round: int = 1, reduce: Callable[[Tensor], Tensor] | None = None):
        self.preset, self.round, self.reduce = preset, round, reduce or (lambda sums: sums)
        self.anchors: list[float | None] = [None, None]  # m on teacher and on student responses
        self._local: Tensor | None = None  # (2 sides, sum and count) of this rank since _global was taken
        self._global = [[0.0, 0.0], [0.0, 0.0]]  # over all ranks, restored from a checkpoint

    @property
    def constant(self) -> float | None:
        """alpha_0 where every response gets it; the loss then need not know whole responses first. Else None."""
        idle = self.preset.anchor == "off" or self.round == 1 or not any(map(_usable, self.anchors))
        return self.preset.alpha if idle else None

    def rule(self) -> float | AlphaCurriculum:
        """What to hand to the loss as its `alpha`."""
        return self if self.constant is None else self.constant

    def __call__(self, teacher_mean_logp_B: Tensor, student_mean_logp_B: Tensor, from_student_B: Tensor) -> Tensor:
        return self.alpha(gaps(teacher_mean_logp_B, student_mean_logp_B, from_student_B), from_student_B)

    def alpha(self, gaps_B: Tensor, from_student_B: Tensor) -> Tensor:
        """Alpha (B,) of responses with these gaps; float32, without grad."""
        import torch

        gaps_B, preset = gaps_B.detach().float(), self.preset
        result = torch.full_like(gaps_B, preset.alpha)
        if self.constant is not None:
            return result
        for side, anchor in enumerate(self.anchors):
            if not _usable(anchor):
                continue
            skew = 1 - (1 - preset.alpha) * anchor / gaps_B.clamp_min(GAP_EPS)
            skew = skew.clamp(preset.alpha_low, preset.alpha_high)
            limit = preset.alpha_high if preset.nonpositive_gap == "max" else preset.alpha_low
            skew = skew.masked_fill(gaps_B <= GAP_EPS, limit)
            result = torch.where(from_student_B == bool(side), skew, result)
        return result

    def observe(self, gaps_B: Tensor, from_student_B: Tensor) -> None:
        """Add a micro-batch's gaps to the sums; no synchronisation with other ranks."""
        import torch

        if self.preset.anchor == "off" or (self.preset.anchor == "frozen" and self.round > 1):
            return
        gaps_B = gaps_B.detach()
        exact = torch.float32 if gaps_B.device.type == "mps" else torch.float64
        sides = torch.stack([~from_student_B, from_student_B]).to(exact)
        sums = torch.stack([(sides * gaps_B.to(exact)).sum(-1), sides.sum(-1)], dim=-1)
        self._local = sums if self._local is None else self._local + sums

    def end_step(self) -> None:
        """After an optimiser step: move the anchor, where it follows the steps."""
        if self.preset.anchor not in ("batch", "ema"):
            return
        for side, mean in enumerate(self._take_means()):
            old = self.anchors[side]
            if self.preset.anchor == "ema" and mean is not None and old is not None:
                mean = EMA_DECAY * old + (1 - EMA_DECAY) * mean
            self._set(side, mean)

    def end_round(self) -> None:
        """After a round: the first one fixes the frozen anchor; then the next round begins."""
        self.round += 1
        if self.preset.anchor == "frozen" and self.round == 2:
            for side, mean in enumerate(self._take_means()):
                self._set(side, mean)

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state, sums over all ranks included; valid in the middle of a round."""
        return {"round": self.round, "anchors": list(self.anchors), "sums": self._totals()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`; every rank loads the same state."""
        self.round, self.anchors = int(state["round"]), list(state["anchors"])
        self._global, self._local = [list(row) for row in state["sums"]], None

    def _totals(self) -> list[list[float]]:
        """[sum, count] per side over all ranks. A rank that saw nothing still takes part in the reduction."""
        import torch

        local = torch.zeros(2, 2, dtype=torch.float64) if self._local is None else self._local
        reduced = self.reduce(local.cpu()).tolist()
        return [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(self._global, reduced, strict=True)]

    def _take_means(self) -> list[float | None]:
        totals = self._totals()
        self._local, self._global = None, [[0.0, 0.0], [0.0, 0.0]]
        return [total / count if count else None for total, count in totals]

    def _set(self, side: int, mean: float | None) -> None:
        if self.round > 1 and not _usable(mean):  # round 1 does not use it
            found = "no gap was seen" if mean is None else f"the mean gap is {mean:.3g}, not positive"
            log.warning(
                "alpha curriculum, %s responses: %s, so alpha stays %g there until it is; set loss.anchor: off to choose that",
                SIDES[side], found, self.preset.alpha,
            )  # fmt: skip
        self.anchors[side] = mean


def _usable(anchor: float | None) -> TypeGuard[float]:
    return anchor is not None and anchor > 0
