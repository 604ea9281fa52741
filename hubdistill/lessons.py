"""Which responses each round trains on, as the loss preset says: whose, of which round, and so what has to be sampled before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hubdistill.losses.contrastive import INTERLEAVED
from hubdistill.pairs.prompts import Prompt
from hubdistill.pairs.replay import replayed
from hubdistill.pairs.store import ResponseSet, read_responses, seed_for

if TYPE_CHECKING:
    from hubdistill.plan import Plan

DATA = "data"  # who gave the data set's own responses


@dataclass(frozen=True)
class Lesson:
    """What a round trains on: the fixed responses (the teacher's, or the data set's) and the student's, None where beta leaves
    them out; the folders that they lie in; and the ids of its prompts, None for all."""

    number: int
    teacher: ResponseSet | None
    student: ResponseSet | None
    teacher_folder: Path
    student_folder: Path
    prompts: frozenset[str] | None = None


@dataclass(frozen=True)
class Lessons:
    """The lessons of a run in the directory `path`. Rounds count from 1."""

    plan: Plan
    path: Path

    def teacher_answers(self, number: int) -> bool:
        """Whether the teacher answers before a round."""
        recipe, preset = self.plan.recipe, self.plan.preset
        if number == 1 and recipe.warmup.kind == "sft" and recipe.warmup.responses == "teacher":
            return True
        return preset.sides[0] and preset.fixed_responses == "teacher" and self._teacher_round(number) == number

    def student_answers(self, number: int) -> bool:
        """Whether the student answers before a round."""
        preset = self.plan.preset
        return preset.sides[1] and preset.student_responses != INTERLEAVED and (number == 1 or preset.student_responses != "initial")

    @property
    def data(self) -> bool:
        """Whether the data set's own responses are trained on."""
        return self.plan.preset.sides[0] and self.plan.preset.fixed_responses == DATA

    def share(self, number: int, prompts: Sequence[Prompt]) -> list[Prompt] | None:
        """The prompts of a round (train.prompts_per_round); None for all."""
        train = self.plan.recipe.train
        if train.prompts_per_round is None or train.prompts_per_round >= len(prompts):
            return None
        order = sorted(prompts, key=lambda prompt: seed_for(train.seed, "order of the rounds", "", prompt.id))
        start = (number - 1) * train.prompts_per_round
        return [order[place % len(order)] for place in range(start, start + train.prompts_per_round)]

    def asked(self, who: str, number: int, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The prompts that are answered before a round: its own, or all where the answers serve other rounds, or the warm-up."""
        recipe = self.plan.recipe
        warms_up = number == 1 and recipe.warmup.kind == "sft" and recipe.warmup.responses == "teacher"
        kept = (warms_up or not recipe.sampling.resample_teacher) if who == "teacher" else who == "student" and self.plan.preset.student_responses == "initial"
        return list(prompts) if kept else self.share(number, prompts) or list(prompts)

    def stages(self, number: int) -> list[str]:
        """Names of the stages that made what a round trains on."""
        first, second = self.plan.preset.sides
        fixed, who = "data-responses" if self.data else f"round_{self._fixed_round(number)}-{self._fixed}", self._student
        return [*([fixed] if first else []), *(f"round_{one}-{who}" for one in self._student_rounds(number) if second)]

    def lesson(self, number: int, prompts: Sequence[Prompt]) -> Lesson:
        """The responses of a round. Its stages have been done."""
        first, second = self.plan.preset.sides
        folder = self.path if self.data else self.path / f"round_{self._fixed_round(number)}"
        fixed = self._read(folder, self._fixed) if first else None
        sets = [self._read(self.path / f"round_{one}", self._student) for one in self._student_rounds(number) if second]
        student = replayed(sets, self.plan.recipe.train.seed, number) if sets else None
        share = self.share(number, prompts)
        return Lesson(number, fixed, student, folder, self.path / f"round_{number}", None if share is None else frozenset(prompt.id for prompt in share))

    @property
    def _fixed(self) -> str:
        """Who gave the fixed responses."""
        return self.plan.preset.fixed_responses

    @property
    def _student(self) -> str:
        """Who gave those on the student's side."""
        return INTERLEAVED if self.plan.preset.student_responses == INTERLEAVED else "student"

    def _fixed_round(self, number: int) -> int:
        """The round whose fixed responses a round trains on."""
        return number if self._fixed == INTERLEAVED else self._teacher_round(number)

    def _teacher_round(self, number: int) -> int:
        return number if self.plan.recipe.sampling.resample_teacher else 1

    def _student_rounds(self, number: int) -> list[int]:
        """The rounds whose student responses a round draws from."""
        return {"replay": list(range(1, number + 1)), "initial": [1]}.get(self.plan.preset.student_responses, [number])

    def _read(self, folder: Path, who: str) -> ResponseSet:
        found = read_responses(folder, who)
        assert found is not None, f"{folder}/{who} was written by a stage before"
        return found
