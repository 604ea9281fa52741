"""Draws prompts by a stable hash in one pass, in bounded memory, encoding candidates only; and is exact all the same."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from hubdistill.errors import InputError
from hubdistill.pairs.images import ImageStore
from hubdistill.pairs.prompt_rows import Prompt, Row, read_row

Encode = Callable[[Prompt], "Encoded"]


@dataclass(frozen=True)
class Encoded:
    """Token ids of a rendered prompt, as the teacher reads it, and as the student does where that differs."""

    teacher: list[int]
    student: list[int] | None = None

    @property
    def tokens(self) -> int:
        """Tokens of the longer one."""
        return max(len(self.teacher), len(self.student or ()))


@dataclass
class Candidate:
    """A prompt that is short enough, its length in tokens and its two hashes."""

    prompt: Prompt
    tokens: int
    heldout_key: int
    train_key: int


@dataclass
class Draw:
    """Keeps the `size` candidates with the smallest key (all of them without a size), in memory of that size."""

    key: str
    size: int | None
    heap: list[tuple[int, str]] = field(default_factory=list)  # (-key, id): the largest key on top
    kept: dict[str, Candidate] = field(default_factory=dict)

    def takes(self, key: int) -> bool:
        """Whether a candidate with this key would be kept as things stand."""
        return self.size is None or len(self.heap) < self.size or (self.size > 0 and key < -self.heap[0][0])

    def add(self, candidate: Candidate) -> Candidate | None:
        """Take a candidate, and give back the one that has to leave for it, if any."""
        heapq.heappush(self.heap, (-getattr(candidate, self.key), candidate.prompt.id))
        self.kept[candidate.prompt.id] = candidate
        if self.size is None or len(self.heap) <= self.size:
            return None
        return self.kept.pop(heapq.heappop(self.heap)[1])

    def ordered(self) -> list[Candidate]:
        """What is kept, smallest key first."""
        return sorted(self.kept.values(), key=lambda candidate: getattr(candidate, self.key))


@dataclass
class Selection:
    """One pass over the rows.

    Exact, although only candidates are encoded: a draw's bound only ever falls and is set by prompts that are short
    enough, so a row above the bound now is above it at the end. What the held-out draw gives back goes on to the
    training draw, which so sees everything but the final held-out prompts.
    """

    seed: int
    max_tokens: int
    encode: Encode
    heldout: Draw
    train: Draw
    seen: set[bytes] = field(default_factory=set)
    answers: dict[bytes, tuple[str, ...]] = field(default_factory=dict)  # of questions
    disagreeing: set[bytes] = field(default_factory=set)  # questions that came again with other answers
    long: list[tuple[int, int]] = field(default_factory=list)  # both keys of what was encoded and is too long
    read: int = 0
    empty: int = 0
    duplicates: int = 0
    damaged: int = 0  # images that cannot be read
    images: ImageStore | None = None
    skip_damaged: bool = False

    def offer(self, row: Row) -> None:
        """Take the next row. Raises InputError naming it."""
        self.read += 1
        if row.damaged:
            self.damaged += 1
            return
        prompt = read_row(row)
        if prompt is None:
            self.empty += 1
            return
        digest = bytes.fromhex(prompt.id)
        if digest in self.seen:
            self.duplicates += 1
            self.disagreeing |= {digest} if self.answers.get(digest, ()) != tuple(sorted(prompt.answers)) else set()
            self._better_response(prompt)
            return
        self.seen.add(digest)
        if prompt.answers:
            self.answers[digest] = tuple(sorted(prompt.answers))
        keys = _key(self.seed, "heldout", prompt.id), _key(self.seed, "train", prompt.id)
        if self.heldout.takes(keys[0]) or self.train.takes(keys[1]):
            self._enter(row, prompt, keys)

    def _enter(self, row: Row, prompt: Prompt, keys: tuple[int, int]) -> None:
        stored = self._stored(row, prompt)
        if stored is None:
            self.damaged += 1
            return
        prompt, tokens = stored, _tokens(row, stored, self.encode)
        if tokens > self.max_tokens:
            self.long.append(keys)
            return
        candidate: Candidate | None = Candidate(prompt, tokens, *keys)
        for draw in (self.heldout, self.train):
            if candidate and draw.takes(getattr(candidate, draw.key)):
                candidate = draw.add(candidate)

    def _stored(self, row: Row, prompt: Prompt) -> Prompt | None:
        """The prompt with its images in the store; None where one is damaged and such rows are skipped."""
        if self.images is None or not prompt.raw_images:
            return prompt
        names: list[str] = []
        for image in prompt.raw_images:
            try:
                names.append(self.images.put(image))
            except InputError as problem:
                if self.skip_damaged:
                    return None
                raise row.image_error(f"{image.called} {problem}", len(names), len(prompt.raw_images)) from problem
        return replace(prompt, images=tuple(names), raw_images=())

    def _better_response(self, again: Prompt) -> None:
        """Of duplicates with different responses (questions: answers) keep the first in alphabetical order, whatever the order of rows."""
        for draw in (self.heldout, self.train):
            if candidate := draw.kept.get(again.id):
                known = candidate.prompt
                responses = [one.response for one in (known, again) if one.response is not None]
                first = min((known, again), key=lambda one: (one.answers, one.group or ""))
                candidate.prompt = replace(known, response=min(responses, default=None), answers=first.answers, group=first.group)

    def too_long(self) -> int:
        """How many would have been drawn were they short enough: the same number in any order of the rows."""
        return sum(self.heldout.takes(held) or self.train.takes(trained) for held, trained in self.long)


def _key(seed: int, salt: str, id: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}|{salt}|{id}".encode()).digest()[:16], "big")


def _tokens(row: Row, prompt: Prompt, encode: Encode) -> int:
    from jinja2.exceptions import TemplateError  # what chat templates raise through raise_exception

    try:
        return encode(prompt).tokens
    except InputError as problem:
        raise InputError(f"{row.where} (column '{row.column}'): {problem}") from problem
    except TemplateError as problem:
        raise row.error(
            f"the model's chat template refuses it ({problem})", "remove the row, or its system turns"
        ) from problem
