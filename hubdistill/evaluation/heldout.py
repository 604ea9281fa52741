"""The measurements of a card: every subject on the held-out prompts, paired against the ones before it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from hubdistill.evaluation.acceptance import LONGEST
from hubdistill.evaluation.divergence import Scorer
from hubdistill.evaluation.judge import WIN_RATE, Contest
from hubdistill.evaluation.judge_client import Judge
from hubdistill.evaluation.overlap import rouge_l
from hubdistill.evaluation.preference import ON_PREFERENCES, Preferences
from hubdistill.evaluation.questions import OF_TYPE, QUESTIONS, RIGHT_ANSWERS, SCORE, Answer, QuestionSet, score, set_of
from hubdistill.evaluation.statistics import ENOUGH, Measurement, around_geometric_mean, paired_difference, summarise
from hubdistill.specs import EvaluationSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hubdistill.pairs.store import Response, ResponseSet

UNITS = {
    "kl": ("nats/token", "lower"),
    "skl": ("nats/token", "lower"),
    "srkl": ("nats/token", "lower"),
    "nll": ("nats/token", "lower"),
    "agreement": ("share", "higher"),
    "preference": ("share", "higher"),
    "rouge_l": ("F1", "higher"),
    "vqa_accuracy": ("share", "higher"),
    "exact_match": ("share", "higher"),
    WIN_RATE: ("share", "higher"),
    SCORE: ("share", "higher"),
    "acceptance": ("share", "higher"),
    "speed_up": ("times plain decoding", "higher"),
    "accepted_length": ("tokens a verification", "higher"),
    "same_text": ("share", "higher"),
    **{f"accepted_{i}": ("share of drafts", "higher") for i in range(1, LONGEST + 1)},
}
DRAFTED = {"speed_up", "accepted_length", "same_text", *(f"accepted_{i}" for i in range(1, LONGEST + 1))}  # see assisted.py
Also = Callable[[str, "PreTrainedModel"], None]  # (name, model)
ON_TEACHER, ON_OWN, ON_TRUTH = "teacher responses", "own responses", "ground-truth responses"


class Subject(Protocol):
    """A model to measure. `responses` are its own, on the held-out prompts."""

    @property
    def name(self) -> str: ...

    def responses(self, model: PreTrainedModel) -> ResponseSet: ...

    def opened(self) -> AbstractContextManager[PreTrainedModel]: ...


@dataclass
class HeldOut:
    """What the evaluations share: the teacher's scorer and responses, and the subjects in order of training."""

    scorer: Scorer
    tokenizer: Any
    teacher_responses: ResponseSet
    subjects: Sequence[Subject]
    decoding: str
    seed: int
    questions: Sequence[QuestionSet] = ()
    answer: Answer | None = None  # where there are questions, or contests
    contests: Sequence[Contest] = ()  # whose answers a judge compares
    judge: Callable[[Contest], Judge] | None = None  # where there are contests
    benchmark: Callable[[PreTrainedModel, str], Mapping[str, dict[str, float]]] | None = None  # (model, name) -> what was measured on -> question -> score
    asked_how: Callable[[str], str] = lambda on: ""  # how a benchmark was asked
    truth: Sequence[Response] = ()  # the data set's own responses to the held-out prompts
    longest: int = 0  # tokens of a response, at most
    stop_ids: tuple[int, ...] = ()  # that end a response
    preferences: Preferences | None = None  # of the preference stage, where the recipe has one
    known: Mapping[str, Mapping[str, dict[str, float]]] = field(default_factory=dict)  # subject -> "metric, on" -> prompt id -> value, of subjects that were measured before
    # (metric, on) -> subject -> prompt id -> value
    values: dict[tuple[str, str], dict[str, dict[str, float]]] = field(default_factory=dict)

    def keep(self, subject: str, metric: str, on: str, values: dict[str, float]) -> None:
        self.values.setdefault((metric, on), {})[subject] = values


def measure(heldout: HeldOut, specs: Sequence[EvaluationSpec], also: Also | None = None) -> list[Measurement]:
    """Run the recipe's evaluations on every subject and summarise them, paired against all earlier subjects.

    `also` is called with each model by its name, the teacher's first, while it is loaded.
    """
    kinds: set[str] = {spec.kind for spec in specs}
    if "divergence" in kinds:
        # The teacher on its own responses: only its NLL (the entropy of what it said) can be above zero.
        heldout.keep("teacher", "nll", ON_TEACHER, heldout.scorer.nll(heldout.scorer.teacher, list(heldout.teacher_responses.rows()), again=True))
        _score_truth(heldout, "teacher", heldout.scorer.teacher)
    if heldout.preferences:
        _score_preferences(heldout, "teacher", heldout.scorer.teacher)
    if heldout.questions or heldout.contests or heldout.benchmark:
        _ask(heldout, "teacher", heldout.scorer.teacher)
    if also:
        also("teacher", heldout.scorer.teacher)
    for subject in heldout.subjects:
        _measure_subject(heldout, subject, kinds, also)
    _judge(heldout)
    return summaries(heldout)


def summaries(heldout: HeldOut, metrics: Collection[str] = tuple(UNITS)) -> list[Measurement]:
    """The values that were kept, of some metrics, as measurements."""
    return [row for (metric, on), by_subject in heldout.values.items() if metric in metrics for row in _rows(heldout, metric, on, by_subject)]


def _measure_subject(heldout: HeldOut, subject: Subject, kinds: set[str], also: Also | None) -> None:
    if subject.name in heldout.known and not also and not heldout.questions and not heldout.contests:
        for key, values in heldout.known[subject.name].items():
            metric, _, on = key.partition(", ")
            heldout.keep(subject.name, metric, on, dict(values))
        return
    teacher = list(heldout.teacher_responses.rows())
    with subject.opened() as model:
        own = list(subject.responses(model).rows())
        for on, responses in ((ON_TEACHER, teacher), (ON_OWN, own)) if kinds & {"divergence", "acceptance"} else ():
            for metric, values in heldout.scorer.score(model, responses, again=on == ON_TEACHER).items():
                if _asked(metric, on, kinds):
                    heldout.keep(subject.name, metric, on, values)
        if "divergence" in kinds:
            _score_truth(heldout, subject.name, model)
        _score_preferences(heldout, subject.name, model)
        _ask(heldout, subject.name, model)
        if also:
            also(subject.name, model)
    if "overlap" in kinds:
        heldout.keep(subject.name, "rouge_l", ON_OWN, rouge_l(heldout.tokenizer, own, teacher))


def _asked(metric: str, on: str, kinds: set[str]) -> bool:
    """The verifier accepts on what it would have written itself; the NLL of a model's own responses is its entropy."""
    kind = "acceptance" if metric == "acceptance" else "divergence"
    return kind in kinds and (on == ON_TEACHER or metric not in ("acceptance", "nll"))


def _score_truth(heldout: HeldOut, name: str, model: PreTrainedModel) -> None:
    if heldout.truth:
        heldout.keep(name, "nll", ON_TRUTH, heldout.scorer.nll(model, heldout.truth))


def _score_preferences(heldout: HeldOut, name: str, model: PreTrainedModel) -> None:
    if heldout.preferences:
        heldout.keep(name, "preference", ON_PREFERENCES, heldout.preferences.scored(heldout.scorer, model))


def _ask(heldout: HeldOut, name: str, model: PreTrainedModel) -> None:
    for questions in heldout.questions:
        assert heldout.answer is not None, "who brings questions brings what answers them"
        found = [score(asked, heldout.answer(model, name, asked)) for asked in (questions, questions.blind())]
        # The whole set with images and without them, then its types: the control stands beside what it controls.
        for on, values in sorted((pair for one in found for pair in one.items()), key=lambda pair: OF_TYPE in pair[0]):
            heldout.keep(name, questions.metric, on, values)
    for on, scores in heldout.benchmark(model, name).items() if heldout.benchmark else ():
        heldout.keep(name, SCORE, on, scores)
    for contest in heldout.contests:
        assert heldout.answer is not None, "who brings contests brings what answers their questions"
        contest.answers[name] = dict(heldout.answer(model, name, contest.questions))


def _judge(heldout: HeldOut) -> None:
    """When everyone has answered. Who has no prompt with two verdicts has no win rate."""
    for contest in heldout.contests:
        assert heldout.judge is not None, "who brings contests brings a judge"
        contest.judge(heldout.judge(contest))
        for (subject, on), outcome in contest.outcomes.items():
            if outcome.values:
                heldout.keep(subject, WIN_RATE, on, outcome.values)


def _rows(heldout: HeldOut, metric: str, on: str, by_subject: dict[str, dict[str, float]]) -> list[Measurement]:
    unit, better = UNITS[metric]
    described: dict[str, Any] = {"metric": metric, "on": on, "unit": unit, "better": better, "decoding": heldout.decoding, "seed": heldout.seed}
    contest = next((one for one in heldout.contests if metric == WIN_RATE and any(on == told for _, told in one.outcomes)), None)
    if contest:
        described |= {"decoding": contest.questions.decoding, "split": contest.questions.split}
    if metric in RIGHT_ANSWERS:
        asked = next(one for one in heldout.questions if one.name == set_of(on))
        described |= {"decoding": asked.decoding, "split": asked.split}
    if metric == SCORE:
        described |= {"decoding": heldout.asked_how(on), "split": QUESTIONS}
    if metric in DRAFTED:
        described["decoding"] = f"greedy, at most {heldout.longest} tokens"
    if on in (ON_TRUTH, ON_PREFERENCES):
        described["decoding"] = ""
    if metric == "speed_up":
        by_subject = {name: around_geometric_mean(values) for name, values in by_subject.items()}
    rows: list[Measurement] = []
    earlier: list[str] = []
    for name, values in by_subject.items():
        differences = tuple(paired_difference(values, by_subject[other], other, heldout.seed) for other in earlier if _enough_in_common(values, by_subject[other]))
        tally = asdict(contest.outcomes[name, on].tally) if contest else None
        rows.append(summarise(values, **described, subject=name, differences=differences, judged=tally))
        if name != "teacher":
            earlier.append(name)
    return rows


def _enough_in_common(values: Mapping[str, float], others: Mapping[str, float]) -> bool:
    """A judge may leave each subject other prompts: a difference over the few that both have says nothing, whatever its interval."""
    both = len(values.keys() & others.keys())
    return both > 0 and both >= min(ENOUGH, len(values))
