"""The prompts of a run: drawn from a source by a stable hash, with a held-out split that never changes.

    train, heldout, report = load_prompts(spec, recipe_folder, encode)

Which prompts are drawn depends on their text and the seed alone: not on the order of the rows, not on `count`.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median

from hubdistill.errors import InputError
from hubdistill.files import write_atomically
from hubdistill.pairs.prompt_rows import Message, Row, read_row
from hubdistill.pairs.prompt_sources import read_rows
from hubdistill.specs import PromptsSpec

Encode = Callable[[Sequence[Message]], list[int]]


@dataclass(frozen=True)
class Prompt:
    """A conversation that ends in a user turn. `id` is 32 hex digits of the SHA-256 of its messages."""

    id: str
    messages: tuple[Message, ...]
    response: str | None = None  # ground truth


@dataclass(frozen=True, kw_only=True)
class PromptReport:
    """What became of the rows: read = empty + duplicates + too_long + not_drawn + kept_train + kept_heldout.

    All counts but `read` leave the order of the rows out of account. `lengths` are (least, median, most) tokens of
    the kept prompts, rendered by the template.
    """

    read: int
    empty: int  # no text in the prompt
    duplicates: int  # same messages as an earlier row
    too_long: int  # would have been drawn, but longer than max_tokens
    not_drawn: int  # beyond `count`; their lengths were not looked at
    kept_train: int
    kept_heldout: int
    without_response: int  # kept prompts that have no ground truth
    lengths: tuple[int, float, int]
    asked: int | None = None
    max_tokens: int = 0

    def lines(self) -> list[str]:
        """The report for people, one fact a line."""
        short = f" (asked for {self.asked:,})" if self.asked and self.kept_train < self.asked else ""
        least, middle, most = self.lengths
        dropped = {
            "empty": self.empty,
            "duplicates": self.duplicates,
            f"longer than {self.max_tokens} tokens": self.too_long,
        }
        lines = [
            f"{self.kept_train:,} training prompts{short}, {self.kept_heldout:,} held out, from {self.read:,} rows"
        ]
        if any(dropped.values()):
            lines.append("left out: " + ", ".join(f"{number:,} {name}" for name, number in dropped.items() if number))
        lines.append(f"prompt tokens: {least} to {most}, median {middle:g}")
        if self.without_response:
            lines.append(f"{self.without_response:,} of them have no ground-truth response")
        return lines

    def as_dict(self) -> dict[str, int | float | list[float] | None]:
        """The report for JSON."""
        return {**asdict(self), "lengths": list(self.lengths)}


@dataclass
class _Candidate:
    prompt: Prompt
    tokens: int
    heldout_key: int
    train_key: int


@dataclass
class _Draw:
    """Keeps the `size` candidates with the smallest key (all of them without a size), in memory of that size."""

    key: str
    size: int | None
    heap: list[tuple[int, str]] = field(default_factory=list)  # (-key, id): the largest key on top
    kept: dict[str, _Candidate] = field(default_factory=dict)

    def takes(self, key: int) -> bool:
        return self.size is None or len(self.heap) < self.size or (self.size > 0 and key < -self.heap[0][0])

    def add(self, candidate: _Candidate) -> _Candidate | None:
        """Take a candidate, and give back the one that has to leave for it, if any."""
        heapq.heappush(self.heap, (-getattr(candidate, self.key), candidate.prompt.id))
        self.kept[candidate.prompt.id] = candidate
        if self.size is None or len(self.heap) <= self.size:
            return None
        return self.kept.pop(heapq.heappop(self.heap)[1])

    def ordered(self) -> list[_Candidate]:
        return sorted(self.kept.values(), key=lambda candidate: getattr(candidate, self.key))


@dataclass
class _Selection:
    """One pass over the rows.

    Exact, although only candidates are encoded: a draw's bound only ever falls and is set by prompts that are short
    enough, so a row above the bound now is above it at the end. What the held-out draw gives back goes on to the
    training draw, which so sees everything but the final held-out prompts.
    """

    seed: int
    max_tokens: int
    encode: Encode
    heldout: _Draw
    train: _Draw
    seen: set[bytes] = field(default_factory=set)
    long: list[tuple[int, int]] = field(default_factory=list)  # both keys of what was encoded and is too long
    read: int = 0
    empty: int = 0
    duplicates: int = 0

    def offer(self, row: Row) -> None:
        self.read += 1
        found = read_row(row)
        if found is None:
            self.empty += 1
            return
        prompt = Prompt(prompt_id(found[0]), *found)
        digest = bytes.fromhex(prompt.id)
        if digest in self.seen:
            self.duplicates += 1
            self._better_response(prompt)
            return
        self.seen.add(digest)
        keys = _key(self.seed, "heldout", prompt.id), _key(self.seed, "train", prompt.id)
        if self.heldout.takes(keys[0]) or self.train.takes(keys[1]):
            self._enter(row, prompt, keys)

    def _enter(self, row: Row, prompt: Prompt, keys: tuple[int, int]) -> None:
        tokens = _tokens(row, prompt, self.encode)
        if tokens > self.max_tokens:
            self.long.append(keys)
            return
        candidate: _Candidate | None = _Candidate(prompt, tokens, *keys)
        for draw in (self.heldout, self.train):
            if candidate and draw.takes(getattr(candidate, draw.key)):
                candidate = draw.add(candidate)

    def _better_response(self, again: Prompt) -> None:
        """Of duplicates with different responses keep the first in alphabetical order, whatever the order of rows."""
        for draw in (self.heldout, self.train):
            if again.response is not None and (candidate := draw.kept.get(again.id)):
                before = candidate.prompt.response
                candidate.prompt = replace(
                    again, response=again.response if before is None else min(before, again.response)
                )

    def too_long(self) -> int:
        """How many would have been drawn were they short enough: the same number in any order of the rows."""
        return sum(self.heldout.takes(held) or self.train.takes(trained) for held, trained in self.long)


def load_prompts(
    spec: PromptsSpec, base_dir: Path | None, encode: Encode, seed: int = 0
) -> tuple[list[Prompt], list[Prompt], PromptReport]:
    """Draw the training and the held-out prompts, each in the order of its hash.

    Held out are the `heldout` prompts with the smallest hash under one salt; training prompts the `count` smallest
    under another, among the rest. `encode` gives the token ids of the rendered messages, generation prompt included;
    it is called for candidates only. `base_dir` is the recipe's folder; None refuses local files.

    Raises InputError, MissingError or HubError naming the file and the row.
    """
    selection = _Selection(
        seed, spec.max_tokens, encode, _Draw("heldout_key", spec.heldout), _Draw("train_key", spec.count)
    )
    for row in read_rows(spec, base_dir):
        selection.offer(row)
    train, heldout = selection.train.ordered(), selection.heldout.ordered()
    report = _report(spec, selection, [*train, *heldout])
    if not train:
        raise InputError(
            f"{spec.dataset}: {report.read} rows give {len(heldout)} usable prompts ({report.empty} empty, {report.duplicates} duplicates, "
            f"{report.too_long} longer than {spec.max_tokens} tokens), and {spec.heldout} are held out; lower `prompts.heldout`, raise `prompts.max_tokens` or add prompts"
        )
    return [one.prompt for one in train], [one.prompt for one in heldout], report


def _report(spec: PromptsSpec, selection: _Selection, kept: list[_Candidate]) -> PromptReport:
    lengths = [one.tokens for one in kept] or [0]
    dropped = selection.empty + selection.duplicates + selection.too_long() + len(kept)
    return PromptReport(
        read=selection.read,
        empty=selection.empty,
        duplicates=selection.duplicates,
        too_long=selection.too_long(),
        not_drawn=selection.read - dropped,
        kept_train=len(selection.train.kept),
        kept_heldout=len(selection.heldout.kept),
        without_response=sum(one.prompt.response is None for one in kept),
        lengths=(min(lengths), median(lengths), max(lengths)),
        asked=spec.count,
        max_tokens=spec.max_tokens,
    )


def prompt_id(messages: Sequence[Message]) -> str:
    """32 hex digits of the SHA-256 of the messages as canonical JSON."""
    text = json.dumps([[turn["role"], turn["content"]] for turn in messages], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _key(seed: int, salt: str, id: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}|{salt}|{id}".encode()).digest()[:16], "big")


def _tokens(row: Row, prompt: Prompt, encode: Encode) -> int:
    from jinja2.exceptions import TemplateError  # what chat templates raise through raise_exception

    try:
        return len(encode(prompt.messages))
    except InputError as problem:
        raise InputError(f"{row.where} (column '{row.column}'): {problem}") from problem
    except TemplateError as problem:
        raise row.error(
            f"the model's chat template refuses it ({problem})", "remove the row, or its system turns"
        ) from problem


def save_prompts(path: Path, prompts: Sequence[Prompt], encode: Encode) -> None:
    """Write prompts to one Parquet file, atomically: prompt_id, messages (JSON), prompt_ids (int32), response."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = [
        ("prompt_id", pa.string()),
        ("messages", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("response", pa.string()),
    ]
    schema = pa.schema(fields)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for start in range(0, len(prompts), 1000):  # token ids as Python lists are large
            rows = [_saved(prompt, encode) for prompt in prompts[start : start + 1000]]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    write_atomically(path, sink.getvalue().to_pybytes())


def _saved(prompt: Prompt, encode: Encode) -> dict[str, object]:
    messages = json.dumps([dict(turn) for turn in prompt.messages], ensure_ascii=False)
    return {
        "prompt_id": prompt.id,
        "messages": messages,
        "prompt_ids": encode(prompt.messages),
        "response": prompt.response,
    }


def read_prompts(path: Path) -> list[Prompt]:
    """Read what save_prompts wrote, in its order. Raises InputError when the file is damaged or not ours."""
    return list(_read_saved(path))


def _read_saved(path: Path) -> Iterator[Prompt]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    again = f"{path}: is not a file of prompts that can be read; delete it and run the command again"
    try:
        table = pq.read_table(path, columns=["prompt_id", "messages", "response"])
        for row in table.to_pylist():
            yield Prompt(row["prompt_id"], tuple(json.loads(row["messages"])), row["response"])
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as problem:
        raise InputError(f"{again} ({problem})") from problem
