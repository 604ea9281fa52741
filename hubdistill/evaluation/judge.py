"""Win rates: how often a judge prefers a subject's answers to others', each pair of answers seen in both orders.

A win counts 1, a tie 1/2, a loss 0, and a prompt the mean of both orders, so that a judge who always prefers what comes first gives
everybody 1/2. A verdict that cannot be read is never a win: the prompt is left out of the mean, and counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from hubdistill.evaluation.judge_client import Judge
from hubdistill.evaluation.questions import AGAINST, OF_TYPE, QuestionSet
from hubdistill.evaluation.verdicts import Case, Verdict
from hubdistill.pairs.image_parts import text_of_turn
from hubdistill.pairs.prompts import Prompt
from hubdistill.specs import EvaluationSpec, JudgeSpec

WIN_RATE = "win_rate"
PATHS = ("/", ".", "~")  # what the name of a judge begins with that its server has in a folder; cards name no folder
OTHERS = {"reference": "reference answers", "teacher": "the teacher's answers", "student": "the student's before training"}
POINTS = {"A": 1.0, "C": 0.5, "B": 0.0}  # of who stands first


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What a judge said of a subject, counted."""

    judge: str  # its name
    temperature: float | None
    wins: int
    ties: int
    losses: int
    unparsed: int  # verdicts that could not be read, and requests that the server refused
    equal: int  # prompts with equal answers on both sides: a tie that nobody was asked about
    consistent: float | None  # share of the prompts with two verdicts in which both say the same; None without any
    requests: int
    tokens_in: int
    tokens_out: int
    cost: float | None  # US dollars; None where no price is known

    @property
    def verdicts(self) -> int:
        return self.wins + self.ties + self.losses


@dataclass(frozen=True)
class Outcome:
    """Prompt id -> value, 0 to 1, and how it came about."""

    values: dict[str, float]
    tally: Tally


@dataclass
class Contest:
    """One `judge` evaluation: whose answers to what, and who judges them. `answers` are gathered while the models are there, and judged
    when they are gone."""

    questions: QuestionSet
    spec: JudgeSpec
    seed: int
    answers: dict[str, dict[str, str]] = field(default_factory=dict)  # subject -> prompt id -> text
    outcomes: dict[tuple[str, str], Outcome] = field(default_factory=dict)  # (subject, what it was measured on)
    verdicts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # subject -> what the judge said, for reading

    @property
    def on(self) -> str:
        """What it measures on, in words."""
        return f"{self.questions.name}{AGAINST}{OTHERS[self.spec.against]}"

    @property
    def subjects(self) -> list[str]:
        """Who is judged: all but the one whose answers the others are held against."""
        return [name for name in self.answers if name != self.spec.against]

    def cases(self) -> dict[tuple[str, str], tuple[Case, Case]]:
        """(subject, prompt id) -> both orders, of the prompts with two different answers."""
        found = {}
        for subject in self.subjects:
            for prompt in self.questions.prompts:
                own, other = self.answers[subject][prompt.id], self._other(prompt)
                if own.strip() != other.strip():
                    found[subject, prompt.id] = (self._case(prompt, own, other), self._case(prompt, other, own))
        return found

    def judge(self, judge: Judge) -> None:
        """Fill `outcomes` and `verdicts`. Raises as `Judge.judge` does."""
        cases = self.cases()
        found = judge.judge([case for both in cases.values() for case in both])
        for subject in self.subjects:
            said = {prompt.id: tuple(found[case.key] for case in cases.get((subject, prompt.id), ())) for prompt in self.questions.prompts}
            for on, ids in self._groups().items():
                self.outcomes[subject, on] = outcome({one: said[one] for one in ids}, self.spec)
            self.verdicts[subject] = [_readable(one, both) for one, both in said.items()]

    def without(self) -> list[str]:
        """Who has no win rate, in words: see `outcome`."""
        return [
            f"{subject} has no win rate on {on}: {self.spec.model} gave fewer than half of the prompts two verdicts that can be read (of the verdicts {found.tally.verdicts} of {found.tally.verdicts + found.tally.unparsed} can)"
            for (subject, on), found in self.outcomes.items()
            if on == self.on and not found.values
        ]  # fmt: skip

    def _groups(self) -> dict[str, list[str]]:
        """What is measured on -> prompt ids: all, and each type of question."""
        types = sorted({prompt.group for prompt in self.questions.prompts if prompt.group is not None})
        of_type = {f"{self.on}{OF_TYPE}{one}": [prompt.id for prompt in self.questions.prompts if prompt.group == one] for one in types if len(types) > 1}
        return {self.on: [prompt.id for prompt in self.questions.prompts]} | of_type

    def _other(self, prompt: Prompt) -> str:
        return prompt.answers[0] if self.spec.against == "reference" else self.answers[self.spec.against][prompt.id]

    def _case(self, prompt: Prompt, a: str, b: str) -> Case:
        return Case(request_of(prompt), a, b, self.spec.model, self.spec.temperature, self.spec.max_tokens, self.seed)


def judges(evaluate: Sequence[EvaluationSpec]) -> list[JudgeSpec]:
    """The judges of a recipe, each under its key."""
    return [one.judge.under(f"evaluate[{index}].judge") for index, one in enumerate(evaluate) if one.judge]


def request_of(prompt: Prompt) -> str:
    """A conversation as a judge reads it: its text where it is one turn, else each turn under who says it."""
    turns = [(str(turn["role"]), text_of_turn(turn)) for turn in prompt.messages]
    return turns[0][1] if len(turns) == 1 else "\n\n".join(f"{role}: {text}" for role, text in turns)


def outcome(said: Mapping[str, tuple[Verdict, ...]], spec: JudgeSpec) -> Outcome:
    """The values and the tally of (own answer first, other first) verdicts by prompt id; without verdicts where both answers are equal."""
    points = {one: _points(both) for one, both in said.items()}
    whole = {one: [point for point in both if point is not None] for one, both in points.items() if None not in both}
    values = {one: sum(both) / len(both) if both else 0.5 for one, both in whole.items()}
    pairs = [both for both in whole.values() if both]
    every, all_points = [one for both in said.values() for one in both], [one for both in points.values() for one in both]
    read, written = sum(one.tokens_in for one in every), sum(one.tokens_out for one in every)
    prices = (spec.input_price, spec.output_price)
    tally = Tally(
        judge=spec.model.rstrip("/").rpartition("/")[2] if spec.model[:1] in PATHS else spec.model, temperature=spec.temperature, wins=all_points.count(1.0), ties=all_points.count(0.5), losses=all_points.count(0.0), unparsed=all_points.count(None),
        equal=sum(not both for both in said.values()), consistent=sum(first == second for first, second in pairs) / len(pairs) if pairs else None,
        requests=sum(one.requests for one in every), tokens_in=read, tokens_out=written,
        cost=None if prices[0] is None or prices[1] is None else (read * prices[0] + written * prices[1]) / 1e6,
    )  # fmt: skip
    # What a judge can read is no fair sample: of few prompts the mean would say more than was judged.
    return Outcome(values if 2 * len(values) >= len(said) else {}, tally)


def _points(both: Sequence[Verdict]) -> tuple[float | None, ...]:
    """The subject's, in each order: as A, then as B."""
    first = [POINTS.get(one.letter) for one in both]
    return tuple(point if index == 0 or point is None else 1 - point for index, point in enumerate(first))


def _readable(prompt_id: str, both: Sequence[Verdict]) -> dict[str, Any]:
    return {"prompt_id": prompt_id, "points": _points(both), "verdicts": [asdict(one) for one in both]}
