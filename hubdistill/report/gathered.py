"""What a run directory holds so far, for its report: of a finished run, of one that goes on, and of one that was cut off."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubdistill.errors import MissingError
from hubdistill.evaluation.lengths import measured_by_length
from hubdistill.evaluation.statistics import Measurement
from hubdistill.finished import load_run, undamaged
from hubdistill.losses.contrastive import INTERLEAVED
from hubdistill.models.sources import read_json
from hubdistill.rundir import MANIFESTS, MARKER


@dataclass(frozen=True)
class Gathered:
    """`record` is run.json, None of a run that is not finished; `stages` are the manifests of stages that are done, in their
    order; `warmup` and `rounds` the rows that training logged. What an earlier recipe left in the folder is not among them."""

    folder: Path
    plan: Mapping[str, Any]
    record: Mapping[str, Any] | None
    measurements: tuple[Measurement, ...]
    stages: Mapping[str, Mapping[str, Any]]
    warmup: list[dict[str, Any]]
    rounds: list[dict[str, Any]]

    @property
    def name(self) -> str:
        return str(self.record["name"]) if self.record else self.folder.resolve().name

    @property
    def recipe(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.plan["recipe"]
        return found

    def by_length(self) -> list[dict[str, Any]]:
        """Results by the length of the prompt (evaluation/lengths.py)."""
        return measured_by_length(self.folder, self.recipe["train"]["seed"]) if self.measurements else []

    def examples(self) -> dict[str, Any] | None:
        """What everyone said on held-out prompts; None where nothing was sampled for it."""
        path = self.folder / "evaluation" / "examples.json"
        if self.record is None or not path.is_file():
            return None
        with undamaged(path):
            return read_json(path)


def gather(folder: Path) -> Gathered:
    """Read a run directory. Raises MissingError for a folder that holds no run, InputError for damaged files."""
    if not (folder / MARKER).is_file():
        raise MissingError(f"{folder} holds no run ({MARKER} is missing); name a run directory, or make one: hubdistill run RECIPE --output {folder}")
    with undamaged(folder / MARKER):
        plan = read_json(folder / MARKER)
        rounds = int(plan["rounds"])
    record, measurements = load_run(folder) if _finished(folder, plan) else (None, ())
    stages = dict(_done(folder, rounds, bool(plan["recipe"].get("preference"))))
    warmup = _logged(folder / "warmup" / "metrics.jsonl") if "warmup" in stages and plan["recipe"]["warmup"]["kind"] != "none" else []
    reached = [number for number in range(1, rounds + 1) if f"round_{number}-train" in stages or _trains(folder / f"round_{number}")]
    return Gathered(folder, plan, record, measurements, stages, warmup, [row for number in reached for row in _logged(folder / f"round_{number}" / "metrics.jsonl")])


def _trains(folder: Path) -> bool:
    """Whether a round is being trained, or was cut off, and what it logged is of this training: newer than its beginning."""
    stamp, metrics = folder / "checkpoints" / "inputs", folder / "metrics.jsonl"
    return stamp.is_file() and metrics.is_file() and metrics.stat().st_mtime >= stamp.stat().st_mtime


def _finished(folder: Path, plan: Mapping[str, Any]) -> bool:
    """run.json is written last, and taken away when the run begins again with another recipe."""
    path = folder / "run.json"
    if not path.is_file():
        return False
    with undamaged(path):
        return bool(read_json(path)["digest"] == plan["digest"])


def _done(folder: Path, rounds: int, tuned: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Stages in their order, up to the first that has to be done (again): those after it are of an earlier recipe."""
    for name in _order(rounds):
        path = folder / MANIFESTS / f"{name}.json"
        if path.is_file():
            with undamaged(path):
                yield name, read_json(path)
        elif re.search(r"^(prompts|warmup|evaluate)$|-train$", name) or (name == "preference" and tuned) or _begun(folder, name):
            return


def _order(rounds: int) -> list[str]:
    of_round = [f"round_{number}-{what}" for number in range(1, rounds + 1) for what in ("teacher", "student", INTERLEAVED, "train")]
    return ["prompts", "before-training", of_round[0], "warmup", "data-responses", *of_round[1:], "preference", "evaluate"]


def _begun(folder: Path, name: str) -> bool:
    """Whether responses are being sampled now."""
    number, _, who = name.partition("-")
    return (folder / number / f"{who}.partial").is_dir()


def _logged(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with undamaged(path):
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
