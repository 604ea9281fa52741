"""The gap to full precision: shares and intervals by hand, and when there is nothing to win."""

from __future__ import annotations

import math
import random
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from hubdistill.evaluation.gap import with_gap, within_noise
from hubdistill.evaluation.heldout import ON_TEACHER, ON_TRUTH
from hubdistill.evaluation.statistics import Measurement, share


def test_a_share_is_of_sums_and_its_interval_holds_it():
    assert share([1.0, 2.0], [2.0, 2.0])[0] == 0.75
    assert share([0.5] * 30, [2.0] * 30) == (0.25, 0.25, 0.25)
    draw = random.Random(0)
    wholes = [draw.uniform(0.5, 1.5) for _ in range(200)]
    parts = [whole * 0.4 + draw.gauss(0, 0.1) for whole in wholes]
    value, low, high = share(parts, wholes, seed=3)
    # The delta method, which shares nothing with the bootstrap: the standard error of a ratio of means.
    mean = sum(wholes) / 200
    error = math.sqrt(sum((p - value * w) ** 2 for p, w in zip(parts, wholes, strict=True)) / 199) / mean / math.sqrt(200)
    assert low == pytest.approx(value - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(value + 1.96 * error, abs=0.2 * error)
    with pytest.raises(ValueError, match="no value"):
        share([], [])


ROW = Measurement(metric="kl", subject="student", on=ON_TEACHER, value=0, low=0, high=0, n=3, unit="nats/token", better="lower")


def test_the_gap_that_is_closed_is_paired_and_measured_from_the_teacher():
    values = {
        ("kl", ON_TEACHER): {"student": {"a": 1.0, "b": 3.0}, "distilled": {"a": 0.5, "b": 0.5}},
        ("nll", ON_TRUTH): {"teacher": {"a": 1.0, "b": 2.0}, "student": {"a": 2.0, "b": 4.0, "c": 9.0}, "warm-up": {"a": 2.0, "b": 4.0}, "distilled": {"a": 1.5, "b": 2.5}},
    }
    rows = [ROW, replace(ROW, metric="nll", on=ON_TRUTH, value=2.0, low=1.0, high=3.0)]
    found = with_gap(SimpleNamespace(values=values), rows)  # type: ignore[arg-type]
    assert [(row.metric, row.subject, row.on) for row in found] == [
        ("gap_closed", "distilled", "kl, teacher responses"), ("gap_closed", "warm-up", "nll, ground-truth responses"), ("gap_closed", "distilled", "nll, ground-truth responses"),
        ("kl", "student", ON_TEACHER), ("nll", "student", ON_TRUTH), ("perplexity", "student", ON_TRUTH),
    ]  # fmt: skip
    assert [row.value for row in found[:3]] == [0.75, 0.0, 2 / 3]
    assert (found[-1].low, found[-1].value, found[-1].high) == (math.exp(1.0), math.exp(2.0), math.exp(3.0))
    nothing = {("kl", ON_TEACHER): {"student": {"a": 0.0, "b": 0.0}, "distilled": {"a": 0.1, "b": 0.2}}}
    assert with_gap(SimpleNamespace(values=nothing), [ROW]) == [ROW]  # type: ignore[arg-type]


class Scorer:
    """kl of each prompt from the teacher, as the test says; the likelihood of its responses would say the opposite."""

    teacher = "teacher"

    def __init__(self, costs: list[float]) -> None:
        self.costs = costs

    def score(self, model: str, rows: list[int]) -> dict[str, dict[str, float]]:
        assert model == "student"
        return {"kl": {str(i): self.costs[i] for i in rows}, "nll": {str(i): 3 - 100 * self.costs[i] for i in rows}}


def heldout(costs: list[float]) -> Any:
    @contextmanager
    def opened():
        yield "student"

    return SimpleNamespace(teacher_responses=SimpleNamespace(rows=lambda: range(len(costs))), scorer=Scorer(costs), subjects=[SimpleNamespace(opened=opened)], seed=0)


def test_a_cost_that_may_be_rounding_is_said_and_one_beyond_it_is_not():
    draw = random.Random(1)
    costs = [draw.uniform(0, 0.1) for _ in range(100)]
    assert within_noise(heldout(costs)) is None
    assert within_noise(heldout([0.0] * 19)) is None  # too few prompts to tell
    assert "0.00000 nats/token of kl [0.00000, 0.00000] on 20 of its responses" in str(within_noise(heldout([0.0] * 20)))
    assert "and up to 0.001 is rounding" in str(within_noise(heldout([one / 100 for one in costs])))


def test_of_a_gap_that_may_be_rounding_no_share_is_printed():
    values = {("kl", ON_TEACHER): {"student": {"a": 1e-8, "b": 2e-8}, "distilled": {"a": 1e-3, "b": 2e-3}}}
    assert with_gap(SimpleNamespace(values=values), [ROW]) == [ROW]  # type: ignore[arg-type]
