"""The benchmarks of a recipe: read when its run begins, so that what is missing shows before hours of training; asked when it is evaluated."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hubdistill.files import digest_of, file_sha256, write_json
from hubdistill.models.sources import read_json
from hubdistill.pairs.prompt_sources import local_file
from hubdistill.specs import EvaluationSpec
from hubdistill.tasks.asking import ask, require
from hubdistill.tasks.candidate import Candidate
from hubdistill.tasks.catalog import Benchmark, benchmarks
from hubdistill.tasks.rows import Asked, read
from hubdistill.tasks.sandbox import Sandbox

UNCONFINED = "unconfined"


@dataclass(frozen=True)
class RecipeTasks:
    """`folder` keeps questions, answers and scores; `note` tells what a person should know."""

    asked: Sequence[tuple[Benchmark, Asked]]
    sandbox: Sandbox | None
    folder: Path
    note: Callable[[str], None]
    digest: str = field(default="")

    @classmethod
    def ready(cls, specs: Sequence[EvaluationSpec], base_dir: Path | None, folder: Path, note: Callable[[str], None]) -> RecipeTasks:
        """Raises MissingPackageError, SandboxError, and what reading the questions raises."""
        found = benchmarks(specs, base_dir)
        for one in found:
            require(one)
        free = any(spec.allow_code_execution == UNCONFINED for spec in specs)
        sandbox = Sandbox.opened(unconfined=free) if any(one.task.runs_code for one in found) else None
        asked = [(one, _kept(one, folder / f"{_slug(one.title)}.json")) for one in found]
        return cls(asked, sandbox, folder, note, digest_of([one.digest for _, one in asked]))

    def announce(self) -> None:
        """Say which isolation is in force, where programs are run."""
        if self.sandbox:
            self.note(f"isolation of programs: {self.sandbox.isolation}")

    def scores(self, candidate: Candidate) -> dict[str, dict[str, float]]:
        """What was measured on (benchmark and score) -> question -> value."""
        found = dict[str, dict[str, float]]()
        for benchmark, asked in self.asked:
            scored = ask(benchmark, asked, candidate, self.folder / _slug(benchmark.title) / candidate.name, self.sandbox)
            for line in scored.notes:
                self.note(line)
            found |= {benchmark.on(score): values for score, values in scored.values.items() if values}
        return found

    def how(self, on: str) -> str:
        """How something was asked, in words."""
        return next(benchmark.decoding for benchmark, _ in self.asked if on in [benchmark.on(score) for score in benchmark.task.scores])


def _slug(name: str) -> str:
    return re.sub(r"[^\w-]+", "_", name)


def _kept(benchmark: Benchmark, path: Path) -> Asked:
    """The questions as they were read into the run directory, as long as they are the same ones."""
    file = local_file(benchmark.source, benchmark.base_dir)
    source = digest_of([benchmark.task.name, benchmark.source.model_dump(mode="json"), benchmark.limit, file_sha256(file) if file else None])
    kept = read_json(path) if path.is_file() else {}
    if kept.get("of") == source:
        return Asked(tuple(kept["ids"]), tuple(kept["rows"]), kept["count"], tuple(kept["examples"]))
    found = read(benchmark)
    write_json(path, {"of": source, "ids": found.ids, "rows": found.rows, "count": found.count, "examples": found.examples})
    return found
