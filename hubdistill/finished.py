"""What a finished run left in its directory, read back: `card` and `push` need neither models nor recipe."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubdistill.errors import GateError, HubdistillError, InputError, MissingError
from hubdistill.evaluation.gate import verdict_of
from hubdistill.evaluation.statistics import Measurement
from hubdistill.models.sources import read_json

RECORDED = {"name", "prompts", "questions", "quantization", "teacher", "student", "student_source", "student_source_commit", "rounds", "recipe", "stages", "seconds", "loss", "beta",
            "warnings", "hardware", "versions", "hubdistill", "target_facts", "pipeline_tag", "files_of_this_machine"}  # fmt: skip  # what a card is made of


def load_run(path: Path) -> tuple[dict[str, Any], tuple[Measurement, ...]]:
    """run.json and measurements.json of a finished run. Raises MissingError when it has not been evaluated yet, InputError for damaged files."""
    for name in ("run.json", "measurements.json", "location.json"):
        if not (path / name).is_file():
            raise MissingError(f"{path} holds no finished run ({name} is missing); finish it: hubdistill run RECIPE --output {path}")
    with undamaged(path / "measurements.json"):
        rows = json.loads((path / "measurements.json").read_text(encoding="utf-8"))
        measurements = tuple(Measurement.from_dict(row) for row in rows)
    with undamaged(path / "run.json"):
        record = read_json(path / "run.json")
        if missing := sorted(RECORDED - record.keys()):
            raise KeyError(missing[0])
    return record, measurements


@contextmanager
def undamaged(file: Path) -> Iterator[None]:
    """What a file that is not what hubdistill wrote makes of the code that reads it, as an InputError."""
    try:
        yield
    except HubdistillError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError) as problem:
        what = f"{problem} is missing" if isinstance(problem, KeyError) else problem
        raise InputError(f"{file} is damaged ({what}); write it again: hubdistill run RECIPE --output {file.parent}, finished stages are kept") from problem


@dataclass(frozen=True)
class Location:
    """Where the adapter's base is: a Hub id or a folder; and the chat template that the adapter needs beside it."""

    base: str
    on_hub: bool
    template: str | None


def location(path: Path) -> Location:
    """The place of a run's base, from location.json."""
    with undamaged(path / "location.json"):
        found = read_json(path / "location.json")
        return Location(found["base"], found["kind"] == "hub", found["chat_template"])


def require_gate(path: Path, push: str) -> None:
    """Refuse to publish a student that is worse than what its training began with; `push` is the command that does it all the
    same. Raises GateError with the numbers, and where both adapters are."""
    record, measurements = load_run(path)
    verdict = verdict_of(record, measurements)
    if not verdict.refuses:
        return
    after = final_adapter(path, record)
    kept = f"the warm-up's adapter, {path / 'warmup' / 'adapter'}" if verdict.against == "warm-up" else "the student as it was, without an adapter"
    raise GateError(
        f"nothing was pushed: the distilled student is {verdict.text}\n"
        + "".join(f"  {one.text}\n" for one in verdict.worse)
        + f"The one to keep is {kept}; the distilled one is kept too, in {after}.\n"
        f"To publish it all the same: {push}\nTo judge by something else, set gate.metric and gate.guards (docs/recipe.md)"
    )


def final_adapter(path: Path, record: Mapping[str, Any]) -> Path:
    """Folder of the adapter that the run leaves: after the last round, or after preference tuning."""
    if record["recipe"].get("preference"):
        return path / "preference" / "adapter"
    return path / f"round_{record['rounds']}" / "adapter"
