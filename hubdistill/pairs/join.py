"""Teacher and student responses joined into pairs by prompt id, with everything left out counted."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

from hubdistill.errors import TrainingError
from hubdistill.pairs.store import ResponseSet


@dataclass(frozen=True)
class Pair:
    """One prompt with a teacher and a student response, as token ids."""

    prompt_id: str
    prompt_ids: tuple[int, ...]  # as the teacher reads it
    teacher_ids: tuple[int, ...]  # y_t, or the data set's response; empty where the student's are trained on alone
    student_ids: tuple[int, ...]  # y_s; empty where they are not trained on
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
    """The pairs of one round, read lazily from Arrow tables (50k pairs take megabytes, not gigabytes).

    `views` (prompt id -> image names, prompt ids of the student) is given where each model reads the prompt in its own way;
    without it both read the same ids, and a pair of which they did not is refused. With one set alone, pairs have one
    side. With `tokens`, the pairs are repeated, or left out, until they hold about so many response tokens: whole passes,
    then some in an order that `seed` fixes. `only` are the prompts that take part; the others are as if they were not there.
    """

    def __init__(self, teacher: ResponseSet | None, student: ResponseSet | None, views: Mapping[str, View] | None = None, *, tokens: int | None = None, seed: int = 0,
                 only: Collection[str] | None = None):  # fmt: skip
        self._views = views
        self._sets = [one for one in (teacher, student) if one is not None]
        self._tables = (None if teacher is None else teacher.table, None if student is None else student.table)
        tables = [one.table for one in self._sets]
        stops = {stop for one in self._sets for stop in one.manifest["stop_ids"]}
        places = [{name: row for row, name in enumerate(table["prompt_id"].to_pylist()) if only is None or name in only} for table in tables]
        matched = [tuple(place[name] for place in places) for name in places[0] if all(name in place for place in places)]
        whole = [rows for rows in matched if not any(_empty(table, row, stops) for table, row in zip(tables, rows, strict=True))]
        if not whole:
            raise TrainingError(_nothing(len(matched), len(tables)))
        self._check(whole)
        cut = [sum(_cut(table, rows[side]) for rows in whole) for side, table in enumerate(tables)]
        by_side = cut if len(cut) == 2 else [cut[0] * (one is not None) for one in self._tables]
        self.report = JoinReport(
            pairs=len(whole),
            unmatched=sum(map(len, places)) - len(tables) * len(matched),
            empty=len(matched) - len(whole),
            truncated_teacher=by_side[0],
            truncated_student=by_side[1],
        )
        sizes = [sum(len(table["response_ids"][row]) for table, row in zip(tables, rows, strict=True)) for rows in whole]
        order = range(len(whole)) if tokens is None else filled(sizes, tokens, seed)
        self.tokens = sum(sizes[number] for number in order)  # response tokens of one pass over this sequence
        self._rows = [whole[number] for number in order]
        self.lengths = [self._prompt_length(rows) + sizes[number] for number, rows in zip(order, self._rows, strict=True)]  # tokens of each pair, its prompt counted once
        longest = [max(len(table["response_ids"][row]) for table, row in zip(tables, rows, strict=True)) for rows in self._rows]
        self.widths = [len(tables) * (self._prompt_length(rows) + most) for rows, most in zip(self._rows, longest, strict=True)]  # tokens of each, as a row for each response

    def _prompt_length(self, rows: tuple[int, ...]) -> int:
        """Tokens of a pair's prompt, as the model that reads it longer does."""
        table = self._sets[0].table
        if self._views is None:
            return len(table["prompt_ids"][rows[0]])
        view = self._views[table["prompt_id"][rows[0]].as_py()]
        return max(len(view.prompt_ids), len(view.student_prompt_ids or ()))

    def _check(self, whole: Sequence[tuple[int, ...]]) -> None:
        """Raises TrainingError where a prompt was not the same for both."""
        for rows in whole if self._views is None and len(self._sets) == 2 else ():
            first, second = (one.table["prompt_ids"][row] for one, row in zip(self._sets, rows, strict=True))
            if first != second:
                name = self._sets[0].table["prompt_id"][rows[0]].as_py()
                raise TrainingError(f"prompt {name} was sampled with other token ids by the student than by the teacher; delete the folders of the rounds in the run directory and run again")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Pair:  # type: ignore[override]
        rows = iter(self._rows[index])
        found = [None if table is None else (table, next(rows)) for table in self._tables]
        first, row = next(one for one in found if one is not None)
        name = first["prompt_id"][row].as_py()
        view = None if self._views is None else self._views[name]
        teacher_ids, student_ids = (() if one is None else tuple(one[0]["response_ids"][one[1]].as_py()) for one in found)
        prompt_ids = tuple(first["prompt_ids"][row].as_py()) if view is None else view.prompt_ids
        return Pair(name, prompt_ids, teacher_ids, student_ids, None if view is None else view.student_prompt_ids, () if view is None else view.images)


class View(Protocol):
    """A prompt that each model reads in its own way; pairs/prompts.py:Prompt is one."""

    @property
    def prompt_ids(self) -> tuple[int, ...]: ...
    @property
    def student_prompt_ids(self) -> tuple[int, ...] | None: ...
    @property
    def images(self) -> tuple[str, ...]: ...


def filled(sizes: Sequence[int], tokens: int, seed: int) -> list[int]:
    """Numbers of pairs with so many tokens each that together come as near to `tokens` as whole pairs can from below or just above."""
    generator, order, total = random.Random(seed), list[int](), 0
    while True:
        left = list(range(len(sizes)))
        generator.shuffle(left)
        for number in left:
            if order and total + sizes[number] / 2 > tokens:
                return order
            order.append(number)
            total += sizes[number]


def _nothing(matched: int, sides: int) -> str:
    why = f"all {matched} pairs have an empty response" if matched else "no prompt has a response of both models" if sides == 2 else "no prompt has a response"
    return f"nothing to train on: {why}; look at the responses in the run directory, then change sampling.temperature or the models"


def _cut(table, row: int) -> bool:
    return table["finish_reason"][row].as_py() == "length"


def _empty(table, row: int, stops: set[int]) -> bool:
    ids = table["response_ids"][row]
    return len(ids) == 0 or (len(ids) == 1 and ids[0].as_py() in stops)
