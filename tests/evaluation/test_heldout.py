"""Which measurements an evaluation gives, in which order, compared with whom; the numbers come from stand-ins."""

from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from hubdistill.evaluation.heldout import HeldOut, measure
from hubdistill.evaluation.questions import HELD_OUT, QuestionSet
from hubdistill.pairs.prompts import Prompt
from hubdistill.pairs.store import Response
from hubdistill.specs import EvaluationSpec

PROMPTS = ("a", "b", "c")
DIVERGENCE, OVERLAP = EvaluationSpec(kind="divergence"), EvaluationSpec(kind="overlap")
LEVEL = {"the teacher": 0.0, "student": 3.0, "warm-up": 2.0, "distilled": 1.0}
SPREAD = {"a": 0.1, "b": 0.5, "c": 0.9}
OFFSET = {"kl": 10.0, "skl": 20.0, "srkl": 30.0, "nll": 40.0, "agreement": 50.0}


@dataclass
class Answers:
    """A response set: who answered is its only token."""

    who: str
    prompts: tuple[str, ...] = PROMPTS

    def rows(self):
        for prompt in self.prompts:
            yield Response(prompt, (1,), (self.who,), "stop", 0)


@dataclass
class StandInScorer:
    """Gives level of the model + metric + prompt, and remembers which model was asked about whose responses."""

    teacher: str = "the teacher"
    asked: list = field(default_factory=list)

    def score(self, model, responses, *, again):
        (who,) = {response.response_ids[0] for response in responses}
        assert again == (who == self.teacher)  # whose responses every subject is measured on
        return self._values(model, responses, who)

    def nll(self, model, responses, *, again=False):
        (who,) = {response.response_ids[0] for response in responses}
        assert again == (who == self.teacher)
        return self._values(model, responses, who)["nll"]

    def _values(self, model, responses, who):
        self.asked.append((model, who))
        return {metric: {row.prompt_id: LEVEL[model] + offset + SPREAD[row.prompt_id] for row in responses} for metric, offset in OFFSET.items()}


@dataclass
class StandInSubject:
    name: str
    events: list
    prompts: tuple[str, ...] = PROMPTS

    def responses(self, model):
        assert model == self.name
        self.events.append(f"{self.name} answers")
        return Answers(self.name, self.prompts)

    @contextmanager
    def opened(self):
        self.events.append(f"{self.name} opened")
        yield self.name
        self.events.append(f"{self.name} closed")


class WhoTokenizer:
    """The more trained, the more of the teacher's four words."""

    def decode(self, ids, skip_special_tokens):
        return {"the teacher": "one two three four", "student": "zero", "warm-up": "one", "distilled": "one two"}[ids[0]]


def heldout(names=("student", "warm-up", "distilled"), prompts=None, scorer=None):
    events = []
    subjects = [StandInSubject(name, events, (prompts or {}).get(name, PROMPTS)) for name in names]
    return HeldOut(scorer or StandInScorer(), WhoTokenizer(), Answers("the teacher"), subjects, "greedy, at most 8 tokens", 5), events


def by_key(rows):
    found = {(row.metric, row.on, row.subject): row for row in rows}
    assert len(found) == len(rows), "no measurement is there twice"
    return found


def test_every_subject_has_every_metric_and_the_teacher_its_nll():
    found = by_key(measure(heldout()[0], [DIVERGENCE, OVERLAP]))
    expected = {("nll", "teacher responses", "teacher")}
    for subject in ("student", "warm-up", "distilled"):
        expected |= {(metric, on, subject) for metric in ("kl", "skl", "srkl", "agreement") for on in ("teacher responses", "own responses")}
        expected |= {("nll", "teacher responses", subject), ("rouge_l", "own responses", subject)}
    assert found.keys() == expected


def test_subjects_are_listed_and_compared_in_order_of_training():
    rows = measure(heldout()[0], [DIVERGENCE, OVERLAP])
    for metric, on in {(row.metric, row.on) for row in rows}:
        of_metric = [row for row in rows if (row.metric, row.on) == (metric, on)]
        teacher = ["teacher"] if metric == "nll" else []
        assert [row.subject for row in of_metric] == [*teacher, "student", "warm-up", "distilled"]
        compared = {row.subject: [one.against for one in row.differences] for row in of_metric}
        assert compared.pop("teacher", []) == []
        assert compared == {"student": [], "warm-up": ["student"], "distilled": ["student", "warm-up"]}


def test_values_are_means_over_prompts_and_differences_are_this_minus_the_other():
    found = by_key(measure(heldout()[0], [DIVERGENCE, OVERLAP]))
    distilled = found["skl", "own responses", "distilled"]
    assert distilled.value == pytest.approx(1 + 20 + 0.5)
    assert [one.value for one in distilled.differences] == pytest.approx([1 - 3, 1 - 2])
    assert all(one.low == pytest.approx(one.high) for one in distilled.differences), "paired: every prompt differs by the same"
    assert distilled.low < distilled.value < distilled.high
    assert found["nll", "teacher responses", "teacher"].value == pytest.approx(40.5)
    assert [found["rouge_l", "own responses", who].value for who in ("student", "warm-up", "distilled")] == pytest.approx([0, 0.4, 2 / 3])


@pytest.mark.parametrize(("name", "split"), [("set", "questions"), (HELD_OUT, "held-out")])
def test_questions_say_how_long_answers_could_be_and_where_they_are_from(name, split):
    held, _ = heldout(("student",))
    held.questions = [QuestionSet(name, tuple(Prompt(id, ({"role": "user", "content": id},), answers=("one",), group=group) for id, group in zip(PROMPTS, "xyx", strict=True)), 7)]
    held.answer = lambda model, subject, asked: dict.fromkeys(PROMPTS, "One.")
    rows = measure(held, [EvaluationSpec(kind="vqa")])
    assert {row.on for row in rows} == {f"{name}{blind}{of}" for blind in ("", ", no image") for of in ("", " / x", " / y")}
    assert {(row.metric, row.value, row.split, row.decoding) for row in rows} == {("exact_match", 1.0, split, "greedy, at most 7 tokens")}


def test_every_row_says_how_it_was_obtained():
    for row in measure(heldout()[0], [DIVERGENCE, OVERLAP]):
        assert (row.n, row.seed, row.split, row.decoding) == (3, 5, "held-out", "greedy, at most 8 tokens")
        assert row.better == ("higher" if row.metric in ("agreement", "rouge_l") else "lower")
        assert row.unit == {"agreement": "share", "rouge_l": "F1"}.get(row.metric, "nats/token")


def test_models_are_asked_about_the_teacher_s_and_their_own_responses_one_model_at_a_time():
    given, events = heldout(("student", "distilled"))
    measure(given, [DIVERGENCE])
    assert given.scorer.asked == [("the teacher", "the teacher"), ("student", "the teacher"), ("student", "student"),
                                  ("distilled", "the teacher"), ("distilled", "distilled")]  # fmt: skip
    assert events == [f"{name} {what}" for name in ("student", "distilled") for what in ("opened", "answers", "closed")]


def test_divergence_alone_has_no_overlap():
    given, _ = heldout()
    given.tokenizer = None
    assert "rouge_l" not in {row.metric for row in measure(given, [DIVERGENCE])}


def test_overlap_alone_scores_no_model():
    rows = measure(heldout(scorer=object())[0], [OVERLAP])
    assert [(row.metric, row.subject) for row in rows] == [("rouge_l", who) for who in ("student", "warm-up", "distilled")]


def test_a_prompt_that_one_subject_did_not_answer_is_in_none_of_its_comparisons():
    found = by_key(measure(heldout(("student", "distilled"), {"distilled": ("a", "b")})[0], [DIVERGENCE]))
    assert found["kl", "own responses", "student"].n == 3
    row = found["kl", "own responses", "distilled"]
    assert row.n == 2
    assert row.differences[0].value == pytest.approx(1 - 3), "the student's prompt c is not in it"
    assert found["kl", "teacher responses", "distilled"].n == 3
