"""The gate before a push: is the distilled student worse than what its training began with?

Worse is a paired difference, on the same prompts, whose whole 95 % interval lies on the wrong side. Each of several metrics is
wrong about that once in forty times where nothing changed, so the gate refuses a little too often rather than too seldom.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hubdistill.evaluation.judge import OTHERS, WIN_RATE
from hubdistill.evaluation.questions import BLIND, OF_TYPE, SCORE
from hubdistill.evaluation.statistics import ENOUGH, Difference, Measurement
from hubdistill.specs import GateSpec

BEGINNINGS = ("warm-up", "student")  # what training began with: the first of them that was measured
TEACHERS = "teacher responses"  # what the metric of the gate was measured on, where there is a choice


@dataclass(frozen=True)
class Judged:
    """A measurement of the distilled student, and how it differs from what training began with."""

    row: Measurement
    difference: Difference

    @property
    def worse(self) -> bool:
        return not (self.difference.low <= 0 if self.row.better == "lower" else self.difference.high >= 0)  # what is no number is worse, too

    @property
    def name(self) -> str:
        return f"{self.row.metric} on {self.row.on}"

    @property
    def text(self) -> str:
        """The numbers in words."""
        one, before = self.difference, self.row.value - self.difference.value
        return f"{self.name}: {before:.3f} -> {self.row.value:.3f} {self.row.unit} ({one.value:+.3f} [{one.low:+.3f}, {one.high:+.3f}], {self.row.better} is better)"


@dataclass(frozen=True)
class Verdict:
    """What the gate says; `judged` begins with the metric that the student was distilled for, where it could be."""

    off: bool
    metric: str  # of the gate
    judged: tuple[Judged, ...]
    unjudged: tuple[str, ...]  # on too few prompts

    @property
    def worse(self) -> tuple[Judged, ...]:
        return tuple(one for one in self.judged if one.worse)

    @property
    def refuses(self) -> bool:
        return bool(self.worse) and not self.off

    @property
    def against(self) -> str:
        """What the student is held against: "warm-up" or "student"."""
        return self.judged[0].difference.against if self.judged else BEGINNINGS[0]

    @property
    def text(self) -> str:
        """The verdict in a sentence, without its end; the numbers are in what was judged."""
        off = "the gate is off; " if self.off else ""
        if self.worse:
            return f"{off}worse than the {self.against} in {_named(self.worse)}"
        if not self.judged:
            return f"{off}not judged: {'fewer than ' + str(ENOUGH) + ' prompts' if self.unjudged else 'nothing that it looks at was measured'}"
        missing = "" if any(one.row.metric == self.metric for one in self.judged) else f" ({self.metric} itself was not measured)"
        missing += f" (on too few prompts to judge: {', '.join(self.unjudged)})" if self.unjudged else ""
        return f"{off}not clearly worse than the {self.against} in {_named(self.judged)}{missing}"


def _named(found: Sequence[Judged]) -> str:
    """Metrics in words, together where they were measured on the same."""
    by_place: dict[str, list[str]] = {}
    for one in found:
        by_place.setdefault(one.row.on, []).append(one.row.metric)
    return "; ".join(f"{' and '.join(filter(None, (', '.join(metrics[:-1]), metrics[-1])))} on {on}" for on, metrics in by_place.items())


def judge(measurements: Sequence[Measurement], gate: GateSpec) -> Verdict:
    """Hold the distilled student against what its training began with."""
    watched = [row for row in measurements if row.subject == "distilled" and row.metric in (gate.metric, *gate.guards) and (OF_TYPE not in row.on or row.metric == SCORE) and not row.on.endswith(BLIND)]
    if gate.metric not in gate.guards and any((row.metric, row.on) == (gate.metric, TEACHERS) for row in watched):
        watched = [row for row in watched if row.metric != gate.metric or row.on == TEACHERS]
    watched.sort(key=lambda row: (row.metric != gate.metric, row.on != TEACHERS))  # stable
    pairs = [(row, difference) for row in watched if (difference := beginning(row)) is not None]
    return Verdict(
        off=gate.off,
        metric=gate.metric,
        judged=tuple(Judged(row, difference) for row, difference in pairs if row.n >= ENOUGH),
        unjudged=tuple(f"{row.metric} on {row.on}" for row, _ in pairs if row.n < ENOUGH),
    )


def beginning(row: Measurement) -> Difference | None:
    """How a measurement differs from what training began with."""
    by_name = {one.against: one for one in row.differences}
    found = next((by_name[name] for name in BEGINNINGS if name in by_name), None)
    if found is None and row.metric == WIN_RATE and row.on.endswith(OTHERS["student"]):  # the value itself is against the student
        return Difference(against="student", value=row.value - 0.5, low=row.low - 0.5, high=row.high - 0.5)
    return found


def verdict_of(record: Mapping[str, Any], measurements: Sequence[Measurement]) -> Verdict:
    """What the gate of a run's recipe says of its measurements; of a run from before there were gates, what the default says."""
    return judge(measurements, GateSpec.model_validate(record["recipe"].get("gate", {})))
