"""The gate, on measurements made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hubdistill.evaluation.gate import judge, verdict_of
from hubdistill.evaluation.statistics import Difference, Measurement
from hubdistill.specs import GateSpec


def measured(metric: str, low: float, high: float, *, on: str = "teacher responses", better: str = "lower", n: int = 50, against: str = "warm-up", more: tuple[Difference, ...] = ()) -> Measurement:
    """A distilled student whose difference to `against` lies in [low, high]."""
    differences = (Difference(against="student", value=-9, low=-9, high=9), Difference(against=against, value=(low + high) / 2, low=low, high=high), *more)
    return Measurement(metric=metric, subject="distilled", on=on, value=1.0, low=0.9, high=1.1, n=n, unit="", better=better, differences=differences)


@pytest.mark.parametrize(
    ("row", "refuses"),
    [
        (measured("kl", 0.01, 0.2), True),
        (measured("kl", -0.01, 0.2), False),  # the interval holds zero
        (measured("kl", -0.2, -0.1), False),
        (measured("agreement", -0.2, -0.1, better="higher"), True),
        (measured("agreement", 0.1, 0.2, better="higher"), False),
        (measured("kl", 0.1, 0.2, on="own responses"), True),
        (measured("rouge_l", -0.2, -0.1, on="own responses", better="higher"), True),
        (measured("exact_match", -0.2, -0.1, on="colours", better="higher"), True),
        (measured("exact_match", -0.2, -0.1, on="colours / red", better="higher"), False),  # a type of question
        (measured("exact_match", -0.2, -0.1, on="colours, no image", better="higher"), False),  # the control
        (measured("nll", 0.1, 0.2, on="ground-truth responses"), False),  # no guard
        (measured("kl", 0.1, 0.2, n=19), False),  # too few to tell
    ],
)
def test_worse_is_a_whole_interval_on_the_wrong_side(row, refuses):
    verdict = judge([row], GateSpec())
    assert verdict.refuses == refuses
    assert [one.row for one in verdict.worse] == [row] * refuses
    assert not judge([row], GateSpec(off=True)).refuses


def test_one_guard_refuses_whatever_the_metric_of_the_gate_says_and_both_are_named():
    better, worse = measured("kl", -0.5, -0.4), measured("rouge_l", -0.2, -0.1, on="own responses", better="higher")
    verdict = judge([worse, better], GateSpec())
    assert verdict.refuses
    assert verdict.text == "worse than the warm-up in rouge_l on own responses"
    assert [one.name for one in verdict.judged] == ["kl on teacher responses", "rouge_l on own responses"]  # its metric first
    assert verdict.worse[0].text == "rouge_l on own responses: 1.150 -> 1.000  (-0.150 [-0.200, -0.100], higher is better)"
    alone = judge([worse, better], GateSpec(guards=()))
    assert not alone.refuses
    assert alone.text == "not clearly worse than the warm-up in kl on teacher responses"
    assert judge([worse, better], GateSpec(off=True)).text == "the gate is off; worse than the warm-up in rouge_l on own responses"


def test_without_guards_the_metric_is_that_on_the_teacher_s_responses():
    own = measured("kl", 0.1, 0.2, on="own responses")
    assert not judge([own, measured("kl", -0.2, -0.1)], GateSpec(guards=())).refuses
    assert judge([own], GateSpec(guards=())).refuses  # it was measured on nothing else


def test_a_run_is_held_against_its_warm_up_also_after_preference_tuning_and_else_against_its_student():
    tuned = measured("kl", -0.2, -0.1, more=(Difference(against="before preference", value=0.3, low=0.2, high=0.4),))
    assert not judge([tuned], GateSpec()).refuses
    bare = measured("kl", 0.1, 0.2, against="student")
    verdict = judge([Measurement(**{**vars(bare), "differences": bare.differences[1:]})], GateSpec())
    assert (verdict.refuses, verdict.against) == (True, "student")


def test_what_was_not_measured_is_said():
    assert judge([], GateSpec()).text == "not judged: nothing that it looks at was measured"
    assert judge([measured("kl", 1, 2, n=4)], GateSpec()).text == "not judged: fewer than 20 prompts"
    few = measured("exact_match", -0.2, -0.1, on="colours", better="higher", n=6)
    assert judge([measured("kl", -0.2, -0.1), few], GateSpec()).text == "not clearly worse than the warm-up in kl on teacher responses (on too few prompts to judge: exact_match on colours)"
    assert judge([measured("agreement", 0.1, 0.2, better="higher")], GateSpec()).text == "not clearly worse than the warm-up in agreement on teacher responses (kl itself was not measured)"


def test_a_record_from_before_there_were_gates_is_judged_as_ever():
    row = measured("kl", 0.1, 0.2)
    assert verdict_of({"recipe": {}}, [row]).refuses
    assert not verdict_of({"recipe": {"gate": {"metric": "kl", "guards": ["agreement"], "off": True}}}, [row]).refuses


def test_what_is_no_number_is_worse():
    assert judge([measured("kl", float("nan"), float("nan"))], GateSpec()).refuses


@pytest.mark.parametrize(("low", "high", "refuses"), [(0.1, 0.2, True), (0.4, 0.6, False), (0.8, 0.9, False)])
def test_a_win_rate_against_the_student_before_training_is_held_against_a_half(low, high, refuses):
    row = measured("win_rate", low, high, on="held-out prompts, against the student's before training", better="higher")
    assert judge([replace(row, value=(low + high) / 2, low=low, high=high, differences=())], GateSpec(metric="win_rate")).refuses is refuses
