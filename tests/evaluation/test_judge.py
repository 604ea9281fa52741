"""Win rates worked out by hand, how a verdict is read, and what a judge is shown."""

from __future__ import annotations

import pytest

from hubdistill.evaluation.judge import Contest, outcome, request_of
from hubdistill.evaluation.questions import QuestionSet, set_of
from hubdistill.evaluation.verdicts import Case, Verdict, letter_of
from hubdistill.pairs.prompts import Prompt
from hubdistill.specs import JudgeSpec

SPEC = JudgeSpec(url="http://127.0.0.1:9/v1", model="org/judge")
PRICED = JudgeSpec(url="http://127.0.0.1:9/v1", model="org/judge", input_price=2.0, output_price=10.0)


def prompt(name, group=None, answers=("ref",)):
    return Prompt(name, ({"role": "user", "content": f"what is {name}?"},), answers=answers, group=group)


def case(**changes):
    return Case(**{"request": "q", "a": "one", "b": "two", "model": "m", "temperature": 0.7, "max_tokens": 9, "seed": 0} | changes)


@pytest.mark.parametrize(("text", "letter"), [
    ("A is better.\n[[A]]", "A"), ("[[B]]", "B"), ("Neither.\n\n  [[C]]  \n\n", "C"), ("so\n**[[A]]**", "A"), ("so\nMy verdict: [[B]].", "B"), ('it is "[[C]]"', "C"), ("I first thought [[A]], but\n[[B]]", "B"),
    ("", ""), ("A", ""), ("[A]", ""), ("[[D]]", ""), ("[[a]]", ""), ("[[A]]\nThat is all.", ""), ("[[A]] or [[B]]", ""), ("[[A]] [[A]]", ""), ("[[A]] is my verdict", ""), ("The form is [[A]], [[B]] or [[C]]", ""),
])  # fmt: skip
def test_a_verdict_is_the_end_of_the_last_line_and_nothing_else(text, letter):
    assert letter_of(text, cut=False) == letter
    assert letter_of(text, cut=True) == "", "a text that was cut does not end with what the judge meant to say"


def said(letters):
    return tuple(Verdict(letter, "", 1 if letter else 2, 100, 10) for letter in letters)


# In each pair the first verdict is with the subject as A, the second with the subject as B.
BY_HAND = {
    "wins both": ("AB", 1.0), "loses both": ("BA", 0.0), "two ties": ("CC", 0.5), "whoever is first": ("AA", 0.5), "whoever is last": ("BB", 0.5), "win and tie": ("AC", 0.75), "tie and loss": ("CA", 0.25),
}  # fmt: skip


def test_the_win_rate_is_the_mean_of_both_orders():
    found = outcome({name: said(letters) for name, (letters, _) in BY_HAND.items()}, PRICED)
    assert found.values == {name: value for name, (_, value) in BY_HAND.items()}
    tally = found.tally
    # A first: 1 0 .5 1 0 1 .5; B second: 1 0 .5 0 1 .5 0
    assert (tally.wins, tally.ties, tally.losses, tally.unparsed, tally.verdicts) == (5, 4, 5, 0, 14)
    assert tally.consistent == pytest.approx(3 / 7)
    assert (tally.requests, tally.tokens_in, tally.tokens_out) == (14, 1400, 140)
    assert tally.cost == pytest.approx((1400 * 2 + 140 * 10) / 1e6)


def test_what_cannot_be_read_is_never_a_win_and_equal_answers_are_a_tie():
    found = outcome({"read": said("AB"), "half": ("", *said("A"))[1:] + said([""]), "none": said(["", ""]), "equal": ()}, SPEC)
    assert found.values == {"read": 1.0, "equal": 0.5}
    tally = found.tally
    assert (tally.wins, tally.ties, tally.losses, tally.unparsed, tally.equal, tally.consistent, tally.cost) == (3, 0, 0, 3, 1, 1.0, None)
    assert tally.requests == 3 + 3 * 2, "each of those three was asked for twice"
    assert outcome({"read": said("AB"), "half": said(["A", ""]), "none": said(["", ""])}, SPEC).values == {}, "one of three is too few to speak for all"
    nothing = outcome({"none": said(["", ""])}, SPEC)
    assert (nothing.values, nothing.tally.consistent) == ({}, None)


def test_who_has_no_win_rate_is_told():
    contest = Contest(QuestionSet("set", (prompt("x"),), 5), SPEC, 0)
    contest.outcomes = {("student", contest.on): outcome({"x": said(["A", ""]), "y": said(["", ""])}, SPEC), ("distilled", contest.on): outcome({"x": said("AB")}, SPEC)}
    assert contest.without() == ["student has no win rate on set, against reference answers: org/judge gave fewer than half of the prompts two verdicts that can be read (of the verdicts 1 of 4 can)"]


def test_both_orders_are_asked_and_the_one_held_against_is_not_judged():
    contest = Contest(QuestionSet("set", (prompt("x"), prompt("y")), 5), SPEC.model_copy(update={"against": "student"}), 3)
    contest.answers = {"teacher": {"x": "good", "y": "same "}, "student": {"x": "bad", "y": "same"}, "distilled": {"x": "better", "y": "worse"}}
    cases = contest.cases()
    assert list(cases) == [("teacher", "x"), ("distilled", "x"), ("distilled", "y")]
    assert [(one.a, one.b) for one in cases["teacher", "x"]] == [("good", "bad"), ("bad", "good")]
    assert {(one.request, one.model, one.temperature, one.seed) for both in cases.values() for one in both} == {(f"what is {name}?", "org/judge", 0.7, 3) for name in "xy"}
    assert contest.on == "set, against the student's before training"
    assert set_of(contest.on) == set_of(f"{contest.on} / a type") == "set"


def test_a_judge_sees_the_request_and_both_answers_and_a_reminder_the_second_time():
    first, second = (case(request="why?", a="because", b="so").messages(attempt)[1]["content"] for attempt in (0, 1))
    assert [first.index(text) for text in ("why?", "because", "so")] == sorted(first.index(text) for text in ("why?", "because", "so"))
    assert second.startswith(first)
    assert "[[C]]" in second.removeprefix(first)
    assert case().seed_of(0) != case().seed_of(1) != case(a="two", b="one").seed_of(1)
    chat = Prompt("c", ({"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}, {"role": "user", "content": "and?"}))
    assert request_of(chat) == "system: be brief\n\nuser: hello\n\nassistant: hi\n\nuser: and?"


def test_what_a_verdict_depends_on_decides_whether_it_is_asked_anew():
    same = {case().key, case().key}
    others = {case(**change).key for change in ({"a": "x"}, {"b": "x"}, {"request": "x"}, {"model": "x"}, {"temperature": 0.0}, {"temperature": None}, {"max_tokens": 8}, {"seed": 1}, {"a": "two", "b": "one"})}
    assert len(same | others) == 10
