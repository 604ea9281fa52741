"""`hubdistill benchmark`: a benchmark asked of models and adapters without a run, and their differences question by question."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubdistill.candidates import Found
from hubdistill.errors import InputError
from hubdistill.evaluation.questions import OF_TYPE, QUESTIONS, SCORE
from hubdistill.evaluation.statistics import ENOUGH, Measurement, paired_difference, summarise
from hubdistill.files import write_json
from hubdistill.tasks.catalog import Benchmark
from hubdistill.tasks.rows import Asked, read

if TYPE_CHECKING:
    from hubdistill.stages import Reporter

RESULT, MARK = "benchmark.json", ".hubdistill-benchmark"


@dataclass(frozen=True)
class Result:
    """A row for each score and candidate, in their order; differences are the first candidate's, against the others."""

    benchmark: Benchmark
    measurements: tuple[Measurement, ...]
    notes: tuple[str, ...]
    folder: Path

    def as_dict(self) -> dict[str, Any]:
        return {"benchmark": self.benchmark.title, "task": self.benchmark.task.name, "decoding": self.benchmark.decoding, "folder": str(self.folder), "notes": list(self.notes),
                "measurements": [asdict(one) for one in self.measurements]}  # fmt: skip


def run(benchmark: Benchmark, candidates: Sequence[Found], folder: Path, reporter: Reporter, *, batch_size: int = 8, confined: bool = True) -> Result:
    """Ask every candidate. What was asked before, of the same weights, is read from `folder`.

    Raises before the first model loads: MissingPackageError, InputError, HubError, SandboxError, RunDirectoryError.
    """
    from hubdistill.tasks.asking import require
    from hubdistill.tasks.sandbox import Sandbox

    require(benchmark)
    asked = read(benchmark)
    sandbox = Sandbox.opened(unconfined=not confined) if benchmark.task.runs_code else None
    _claim(folder)
    if sandbox:
        reporter.note(f"isolation of programs: {sandbox.isolation}")
    scores, notes = dict[str, dict[str, dict[str, float]]](), list[str]()
    for name, found in _named(candidates):
        scored = _asked(benchmark, asked, name, found, folder, reporter, batch_size, sandbox)
        notes += [note for note in scored.notes if note not in notes]
        for score, values in scored.values.items():
            scores.setdefault(score, {})[name] = values
    result = Result(benchmark, tuple(row for score, by_name in scores.items() for row in _rows(benchmark, score, by_name)), tuple(notes), folder)
    write_json(folder / RESULT, result.as_dict())
    return result


def _claim(folder: Path) -> None:
    """Raises InputError for a folder of other files."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARK).is_file():
        raise InputError(f"{folder} holds other files and no benchmark; choose another --output")
    write_json(folder / MARK, {})


def _named(candidates: Sequence[Found]) -> list[tuple[str, Found]]:
    """Each under a name of its own."""
    names = [found.name for found in candidates]
    return [(name if names.index(name) == at else f"{name} ({at + 1})", found) for at, (name, found) in enumerate(zip(names, candidates, strict=True))]


def _asked(benchmark: Benchmark, asked: Asked, name: str, found: Found, folder: Path, reporter: Reporter, batch_size: int, sandbox: Any) -> Any:
    from hubdistill.models.hardware import pick_device
    from hubdistill.models.load import end_of_turn, generation_stops, load_tokenizer
    from hubdistill.stages import borrowed
    from hubdistill.tasks.asking import Candidate, ask

    tokenizer = load_tokenizer(found.facts)
    if found.template:
        tokenizer.chat_template = found.template
    stops = {tokenizer.eos_token_id, end_of_turn(tokenizer), *generation_stops(found.facts)}
    place = folder / re.sub(r"[^\w.-]+", "_", name).strip("._")
    candidate = Candidate(name=name, load=lambda: borrowed(lambda: found.loaded(pick_device("auto"))), tokenizer=tokenizer, stop_ids=tuple(sorted(one for one in stops if one is not None)),
                          identity=found.identity, batch_size=batch_size, start=reporter.start, progress=reporter.advance)  # fmt: skip
    return ask(benchmark, asked, candidate, place, sandbox)


def _rows(benchmark: Benchmark, score: str, by_name: dict[str, dict[str, float]]) -> list[Measurement]:
    first, *others = by_name
    rows = [
        summarise(values, metric=SCORE, subject=name, on=benchmark.on(score), unit="share", better="higher", split=QUESTIONS, decoding=benchmark.decoding)
        for name, values in by_name.items()
    ]
    differences = tuple(paired_difference(by_name[first], by_name[other], other) for other in others)
    return [replace(rows[0], differences=differences), *rows[1:]]


def table(result: Result) -> str:
    """The result as text: score, number of questions, interval; below, what separates the first from each other."""
    asked = next(iter(result.measurements)).n
    lines = [f"{result.benchmark.title}, {asked} questions, {result.benchmark.decoding}", ""]
    width = max(len(name) for one in result.measurements for name in (one.subject, one.on.rpartition(OF_TYPE)[2]))
    for score in dict.fromkeys(one.on for one in result.measurements):
        rows = [one for one in result.measurements if one.on == score]
        lines += [f"{score.rpartition(OF_TYPE)[2]:<{width}}   score  95 % interval       n"]
        lines += [f"{one.subject:<{width}}  {one.value:6.3f}  {one.low:.3f} to {one.high:.3f}  {one.n:4d}" for one in rows]
        for difference in rows[0].differences:
            told = "no clear difference" if not difference.significant else "better" if difference.value > 0 else "worse"
            lines.append(f"  {rows[0].subject} minus {difference.against}: {difference.value:+.3f} ({difference.low:+.3f} to {difference.high:+.3f}): {told if rows[0].n >= ENOUGH else 'too few questions to tell'}")
        lines.append("")
    return "\n".join([*lines, *result.notes, f"Kept in {result.folder}"])
