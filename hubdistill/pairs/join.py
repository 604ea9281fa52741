"""Teacher and student responses joined into pairs by prompt id, with everything left out counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from hubdistill.errors import TrainingError
from hubdistill.pairs.store import ResponseSet


@dataclass(frozen=True)
class Pair:
    """One prompt with a teacher and a student response, as token ids."""

    prompt_id: str
    prompt_ids: tuple[int, ...]  # as the teacher reads it
    teacher_ids: tuple[int, ...]  # y_t
    student_ids: tuple[int, ...]  # y_s
    student_prompt_ids: tuple[int, ...] | None = None  # None: as the teacher does
    images: tuple[str, ...] = ()


@dataclass(frozen=True)
class JoinReport:
    """How many pairs there are and what happened to the rest."""

    pairs: int
    unmatched: int  # a prompt that only one side answered
    empty: int  # left out: a response with no token besides the stop token
    truncated_teacher: int  # kept, with no stop token: the length limit ended it
    truncated_student: int

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


class Pairs(Sequence[Pair]):
    """The pairs of one round, read lazily from two Arrow tables (50k pairs take megabytes, not gigabytes).

    `images` (prompt id -> image names) is given where each model reads the prompt in its own way; without it both read
    the same ids, and a pair of which they did not is refused.
    """

    def __init__(self, teacher: ResponseSet, student: ResponseSet, images: Mapping[str, tuple[str, ...]] | None = None):
        self._images = images
        stops = set(teacher.manifest["stop_ids"]) | set(student.manifest["stop_ids"])
        self._teacher, self._student = teacher.table, student.table
        places = {prompt_id: row for row, prompt_id in enumerate(self._student["prompt_id"].to_pylist())}
        teacher_prompts = self._teacher["prompt_id"].to_pylist()
        matched = [(row, places[prompt_id]) for row, prompt_id in enumerate(teacher_prompts) if prompt_id in places]
        self._rows = [(t, s) for t, s in matched if not (_empty(self._teacher, t, stops) or _empty(self._student, s, stops))]
        if not self._rows:
            why = f"all {len(matched)} pairs have an empty response" if matched else "no prompt has a response of both models"
            raise TrainingError(f"nothing to train on: {why}; look at the responses in the run directory, then change sampling.temperature or the models")
        for t, s in self._rows if images is None else ():
            if self._teacher["prompt_ids"][t] != self._student["prompt_ids"][s]:
                raise TrainingError(f"prompt {teacher_prompts[t]} was sampled with other token ids by the student than by the teacher; delete the folders of the rounds in the run directory and run again")
        cut = [[self._cut(self._teacher, t), self._cut(self._student, s)] for t, s in self._rows]
        self.report = JoinReport(
            pairs=len(self._rows),
            unmatched=len(places) + len(teacher_prompts) - 2 * len(matched),
            empty=len(matched) - len(self._rows),
            truncated_teacher=sum(row[0] for row in cut),
            truncated_student=sum(row[1] for row in cut),
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Pair:  # type: ignore[override]
        t, s = self._rows[index]
        prompt_id = self._teacher["prompt_id"][t].as_py()
        return Pair(
            prompt_id,
            tuple(self._teacher["prompt_ids"][t].as_py()),
            tuple(self._teacher["response_ids"][t].as_py()),
            tuple(self._student["response_ids"][s].as_py()),
            None if self._images is None else tuple(self._student["prompt_ids"][s].as_py()),
            () if self._images is None else self._images[prompt_id],
        )

    @staticmethod
    def _cut(table, row: int) -> bool:
        return table["finish_reason"][row].as_py() == "length"


def _empty(table, row: int, stops: set[int]) -> bool:
    ids = table["response_ids"][row]
    return len(ids) == 0 or (len(ids) == 1 and ids[0].as_py() in stops)
