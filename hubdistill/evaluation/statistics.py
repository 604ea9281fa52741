"""What a measurement is, and how its interval is computed: a bootstrap over prompts, paired between subjects."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

RESAMPLES = 10_000
# Prompts below which the interval is too narrow to judge by: where two models are equal, the bootstrap calls them
# different 9 % of the time with 20 prompts, 20 % with 4 and 100 % with 1 (simulated, normal values).
ENOUGH = 20


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
    """One number of a card: a mean over `n` prompts with its 95 % bootstrap interval, and how it was obtained.

    What was counted and not estimated has n 0, and its value for low and high.
    """

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
    judged: dict[str, Any] | None = None  # of a win rate: who judged, and what came of it (judge.Tally)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Measurement:
        return cls(**{**row, "differences": tuple(Difference(**one) for one in row["differences"])})


def mean_and_interval(values: list[float], seed: int = 0) -> tuple[float, float, float]:
    """Mean and 95 % percentile-bootstrap interval (Efron 1979) of per-prompt values; the seed fixes the resamples."""
    import numpy

    if not values:
        raise ValueError("there is no value to take the mean of; measure at least one prompt")
    array = numpy.asarray(values, dtype=numpy.float64)
    generator = numpy.random.default_rng(seed)
    # In slices, so that ten thousand resamples of thousands of prompts stay within some megabytes.
    step = max(1, 2_000_000 // len(array))
    means = numpy.concatenate([
        array[generator.integers(0, len(array), size=(min(step, RESAMPLES - start), len(array)))].mean(axis=1)
        for start in range(0, RESAMPLES, step)
    ])  # fmt: skip
    low, high = numpy.percentile(means, [2.5, 97.5])
    return float(array.mean()), float(low), float(high)


def share(parts: list[float], wholes: list[float], seed: int = 0) -> tuple[float, float, float]:
    """sum(parts) / sum(wholes) and its 95 % percentile-bootstrap interval; both lists are of the same prompts, in order."""
    import numpy

    if not parts:
        raise ValueError("there is no value to take a share of; measure at least one prompt")
    both = numpy.asarray([parts, wholes], dtype=numpy.float64)
    generator = numpy.random.default_rng(seed)
    picked = both[:, generator.integers(0, both.shape[1], size=(RESAMPLES, both.shape[1]))].sum(axis=2)
    low, high = numpy.percentile(picked[0] / picked[1], [2.5, 97.5])
    return float(both[0].sum() / both[1].sum()), float(low), float(high)


def paired_difference(values: Mapping[str, float], against: Mapping[str, float], name: str, seed: int = 0) -> Difference:
    """Mean of value minus `against` over the prompts that both have, with its interval. Keys are prompt ids."""
    shared = sorted(values.keys() & against.keys())
    if not shared:
        raise ValueError(f"no prompt was measured on both sides of the comparison with {name}")
    value, low, high = mean_and_interval([values[key] - against[key] for key in shared], seed)
    return Difference(against=name, value=value, low=low, high=high)


def paired_p(differences: list[float], seed: int = 0) -> float:
    """Two-sided p of the sign-flip permutation test that paired differences are symmetric around zero (Fisher 1935).

    Flips are drawn, not enumerated; the observed one counts among them, so that p is never 0.
    """
    import numpy

    if not differences:
        raise ValueError("there is no difference to test; measure at least one prompt on both sides")
    array = numpy.asarray(differences, dtype=numpy.float64)
    generator = numpy.random.default_rng(seed)
    seen = abs(array.sum()) * (1 - 1e-12)
    step = max(1, 2_000_000 // len(array))
    as_far = sum(
        int((abs((1 - 2 * generator.integers(0, 2, size=(min(step, RESAMPLES - start), len(array)))) @ array) >= seen).sum())
        for start in range(0, RESAMPLES, step)
    )  # fmt: skip
    return (as_far + 1) / (RESAMPLES + 1)


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """p values adjusted so that all of them together are wrong with the stated probability (Holm 1979)."""
    found, highest = dict[str, float](), 0.0
    for rank, name in enumerate(sorted(values, key=lambda one: values[one])):
        highest = max(highest, min(1.0, (len(values) - rank) * values[name]))
        found[name] = highest
    return {name: found[name] for name in values}


def summarise(values: Mapping[str, float], *, seed: int = 0, **described: Any) -> Measurement:
    """A measurement from per-prompt values (prompt id -> value); `described` fills its other fields."""
    value, low, high = mean_and_interval([values[key] for key in sorted(values)], seed)
    return Measurement(**described, value=value, low=low, high=high, n=len(values), seed=seed)


def around_geometric_mean(values: Mapping[str, float]) -> dict[str, float]:
    """Values whose arithmetic mean is the geometric mean of positive `values`, for ratios of times.

    The arithmetic mean of ratios of two noisy times is above one where the times are equal (by 9 % at 30 % of noise); the
    geometric one is not. To first order (delta method), so that intervals and paired differences are computed as ever.
    """
    logs = {key: math.log(value) for key, value in values.items()}
    middle = sum(logs.values()) / len(logs)
    return {key: math.exp(middle) * (1 + log - middle) for key, log in logs.items()}
