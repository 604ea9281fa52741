"""What a measurement is, and how its interval is computed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A paired difference (this subject minus `against`, same prompts) with its 95 % interval, in the metric's unit."""

    against: str
    value: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One number of a card: a mean over `n` prompts with its 95 % bootstrap interval, and how it was obtained."""

    metric: str  # "kl", "skl", "srkl", "nll", "agreement", "rouge_l"
    subject: str  # "student", "warm-up", "distilled", "teacher"
    on: str  # "teacher responses", "own responses"
    value: float
    low: float
    high: float
    n: int  # prompts
    unit: str  # "nats/token", "share", "F1"
    better: str  # "lower", "higher"
    split: str = "held-out"
    decoding: str = ""  # how the responses it was measured on were sampled
    seed: int = 0
    differences: tuple[Difference, ...] = ()
