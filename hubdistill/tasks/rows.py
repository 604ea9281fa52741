"""Questions of a benchmark, from a local file or from the Hub at a pinned commit, in the columns that its task reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from hubdistill.errors import HubdistillError, HubError, InputError
from hubdistill.files import digest_of
from hubdistill.pairs.hub_dataset import whole_rows
from hubdistill.pairs.prompt_files import local_rows
from hubdistill.pairs.prompt_sources import local_file
from hubdistill.tasks.catalog import Benchmark

NAMES = ("task_id", "id", "key", "unique_id")  # columns that name a question
SHOTS = "train"  # split that examples come from


@dataclass(frozen=True)
class Asked:
    """Questions with their ids, of which the first `count` are asked, and rows to draw examples from (none: from all questions)."""

    ids: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    count: int
    examples: tuple[dict[str, Any], ...] = ()

    @property
    def questions(self) -> list[tuple[str, dict[str, Any]]]:
        """What is asked: (id, row)."""
        return list(zip(self.ids, self.rows, strict=True))[: self.count]

    @property
    def digest(self) -> str:
        return digest_of([self.ids, self.rows, self.count, self.examples])


def read(benchmark: Benchmark) -> Asked:
    """The questions. Raises InputError and MissingError naming file and row, and HubError with what else there is where the Hub cannot be reached."""
    task, spec = benchmark.task, benchmark.source
    path = local_file(spec, benchmark.base_dir)
    examples: tuple[dict[str, Any], ...] = ()
    if path is None:
        numbered: Iterable[tuple[int, Mapping[str, Any]]] = enumerate(_hub(benchmark, spec.split), 1)
        if task.shots and task.name == "gsm8k" and benchmark.dataset is None:  # MATH has its examples in lm-eval
            examples = tuple(_question(row, benchmark, f"{spec.dataset} ({SHOTS})") for row in islice(_hub(benchmark, SHOTS), 100))
    elif path.suffix.lower() not in (".jsonl", ".json"):
        raise InputError(f"{benchmark.key}: {spec.dataset}: questions of a benchmark are read from .jsonl or .json; write it as one of these")
    else:
        numbered = local_rows(path, spec)
    names, rows = list[str](), list[dict[str, Any]]()
    for number, row in numbered:
        rows.append(_question(row, benchmark, f"{spec.dataset}:row {number}"))
        named = str(next((row[name] for name in NAMES if row.get(name) not in (None, "")), f"{task.name}-{number}"))
        names.append(re.sub(r"[^\w.-]+", "-", named).lstrip("."))  # files are called so
    if not rows:
        raise InputError(f"{benchmark.key}: {spec.dataset}: holds no question; name a file with rows")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{benchmark.key}: {spec.dataset}: two questions are called {twice!r}; give each an id of its own")
    return Asked(tuple(names), tuple(rows), min(benchmark.limit or len(rows), len(rows)), examples)


def _hub(benchmark: Benchmark, split: str) -> Iterator[Mapping[str, Any]]:
    """Rows of a split at the pinned commit; where they cannot be had, the error names the key and what it may also be."""
    try:
        yield from whole_rows(benchmark.source.model_copy(update={"split": split}).under(benchmark.key))
    except HubdistillError as problem:
        said = str(problem).rpartition(";")[0] or str(problem)
        kind = HubError if isinstance(problem, HubError) else type(problem)
        raise kind(f"{said}; go online and run the command again, or name a local .jsonl file: {benchmark.key}") from problem


def _question(row: Mapping[str, Any], benchmark: Benchmark, where: str) -> dict[str, Any]:
    """A row in the columns of the task. Raises InputError."""
    found = dict[str, Any]()
    for name, columns in benchmark.task.columns.items():
        held = next((column for column in columns if row.get(column) not in (None, "", [])), None)
        if held is None:
            listed = " or ".join(repr(column) for column in columns)
            raise InputError(f"{benchmark.key}: {where}: no {listed}, which {benchmark.task.title} needs; its columns are {', '.join(sorted(map(str, row)))[:200]}")
        found[name] = row[held]
    return found | {name: row[column] for name, columns in benchmark.task.optional.items() for column in columns[::-1] if row.get(column)}
