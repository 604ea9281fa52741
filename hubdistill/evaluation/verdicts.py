"""What a judge said of two answers: how it is asked, how a verdict is read, and where verdicts are kept, so that none is paid for twice.

The prompt has the intent of the pairwise prompt of Zheng et al. 2023 (arXiv 2306.05685; Figure 4 of the paper), in our own words.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from hubdistill.errors import RunDirectoryError
from hubdistill.files import digest_of
from hubdistill.models.sources import cache_root

INSTRUCTIONS = """\
You are to compare two answers to the same request and decide, without taking sides, which of them serves the person who asked better. \
Look at whether an answer does what was asked, whether it is right and to the point, how helpful, how deep and how inventive it is, and whether it goes into as much detail as the request calls for.

Which answer comes first says nothing about it, and neither do the names A and B. A longer answer is not a better one for being long.

First compare the two in a few sentences. Then write your verdict, alone on the last line and in exactly this form: \
[[A]] if answer A is better, [[B]] if answer B is better, [[C]] if neither is."""
FORM = "\n\nRemember the form: the last line of what you write is [[A]], [[B]] or [[C]], and nothing else."
QUESTION = """\
--- the request ---
{request}
--- answer A ---
{a}
--- answer B ---
{b}
--- end of the answers ---"""
VERDICT = re.compile(r"\[\[([ABC])\]\]")
AROUND = " \t*_`\"'.:"  # what may stand around a verdict: some judges write it in bold, or in quotes
TRIES = 2  # a verdict that cannot be read is asked for once more

Message = Mapping[str, str]


@dataclass(frozen=True)
class Case:
    """Two answers to a request, in the order in which the judge sees them. Equal cases, asked in the same way, are one."""

    request: str
    a: str
    b: str
    model: str
    temperature: float | None
    max_tokens: int  # of a verdict
    seed: int  # the recipe's

    def messages(self, attempt: int) -> list[Message]:
        """What is sent; the second time with a reminder of the form."""
        asked = QUESTION.format(request=self.request, a=self.a, b=self.b) + FORM * (attempt > 0)
        return [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": asked}]

    def seed_of(self, attempt: int) -> int:
        """The judge's noise: another one for each case and attempt, the same in a rerun."""
        return int(digest_of([self.key, attempt])[:8], 16) % 2**31

    @cached_property
    def key(self) -> str:
        """SHA-256 of all that the verdict depends on: judge, prompts and settings. Not of the server's address: the same model elsewhere says the same."""
        return digest_of([self.model, self.temperature, self.max_tokens, self.seed, [self.messages(attempt) for attempt in range(TRIES)]])

    @property
    def size(self) -> int:
        """Bytes of the longest request: more than its tokens."""
        return sum(len(turn["content"].encode()) for turn in self.messages(TRIES - 1))


@dataclass(frozen=True)
class Verdict:
    """`letter` is A, B or C (a tie), and "" where what the judge wrote is no verdict. Tokens are those of all `requests` that it took."""

    letter: str
    text: str
    requests: int
    tokens_in: int
    tokens_out: int


def letter_of(text: str, cut: bool) -> str:
    """The verdict in a judge's text: alone on its last line, or at its end. "" for a text that was `cut` at its limit, that has none
    there, or several on that line."""
    lines = text.strip().splitlines()
    last = lines[-1].strip(AROUND) if lines and not cut else ""
    found = VERDICT.findall(last)
    return found[0] if len(found) == 1 and last.endswith(f"[[{found[0]}]]") else ""


class Verdicts:
    """The verdicts of all runs of this user, in one SQLite file. Raises RunDirectoryError where it cannot be read or written: a verdict that
    is not kept is paid for again."""

    def __init__(self, path: Path | None = None):
        self.path = path or cache_root() / "verdicts.sqlite"

    def known(self, cases: Sequence[Case]) -> dict[str, Verdict]:
        """Key -> verdict, of the cases that were judged before."""
        with self._opened() as database:
            rows = ((case.key, database.execute("SELECT value FROM verdicts WHERE key = ?", (case.key,)).fetchone()) for case in cases)
            return {key: Verdict(**json.loads(row[0])) for key, row in rows if row}

    def keep(self, case: Case, verdict: Verdict) -> None:
        """Written before the next one is asked for, so that it survives whatever happens then."""
        with self._opened() as database, database:
            database.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?)", (case.key, json.dumps(asdict(verdict))))

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            database = sqlite3.connect(self.path, timeout=60)  # other runs write into it as well
            try:
                database.execute("CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, value TEXT)")
                yield database
            finally:
                database.close()
        except (OSError, sqlite3.Error, ValueError, TypeError) as problem:
            raise RunDirectoryError(f"{self.path}: the verdicts of judges cannot be kept there ({problem}); make room or let it be written, remove it if it is damaged, or name another folder in HUBDISTILL_CACHE") from problem
