"""The numbers of a comparison, from the run directories of its cells.

A value is a mean over held-out prompts; a prompt's value is its mean over the seeds that measured it, so that a resample takes
a prompt with all its seeds. Intervals and tests speak of other prompts, not of other seeds: each seed's mean stands beside.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from hubdistill import __version__
from hubdistill.compare.cells import Comparison
from hubdistill.compare.pages import PAGE, RESULT, write_pages
from hubdistill.compare.steady import CELLS
from hubdistill.errors import InputError
from hubdistill.evaluation.heldout import ON_OWN, ON_TEACHER, ON_TRUTH, UNITS
from hubdistill.evaluation.judge import WIN_RATE
from hubdistill.evaluation.questions import RIGHT_ANSWERS, SCORE
from hubdistill.evaluation.statistics import ENOUGH, holm, mean_and_interval, paired_p
from hubdistill.files import write_json
from hubdistill.finished import undamaged
from hubdistill.losses.contrastive import INTERLEAVED
from hubdistill.models.sources import read_json

BEFORE = ("student", "warm-up")  # what every method started from
COMPARED = (("kl", ON_TEACHER), ("agreement", ON_TEACHER), ("nll", ON_TRUTH), ("kl", ON_OWN), ("rouge_l", ON_OWN), ("acceptance", ON_TEACHER))
BySeed = dict[int, dict[str, float]]  # seed -> prompt id -> value


def collected(comparison: Comparison) -> dict[str, Any]:
    """Everything that the report says, JSON-able; also written to the folder."""
    return collected_in(comparison.folder, comparison.record())


def write_again(folder: Path) -> Path:
    """Write the pages of a comparison, finished or not, anew; -> the HTML page. Raises InputError for damaged files, and where no
    method is done."""
    with undamaged(folder / CELLS):
        write_pages(folder, collected_in(folder, read_json(folder / CELLS)))
    return folder / PAGE


def collected_in(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """The same from the folder alone; `record` is Comparison.record(). Of a comparison that is not finished: the methods that are
    done in its first seed, with the seeds in which all of these are done, so that all means are over the same prompts. Raises
    InputError where none is."""
    cells = {(one["name"], seed): folder / f"seed_{seed}" / one["folder"] for seed in record["seeds"] for one in record["methods"]}
    done = {cell for cell, path in cells.items() if (path / "run.json").is_file()}
    first = next((seed for seed in record["seeds"] if any(seed == other for _, other in done)), None)
    if first is None:
        raise InputError(f"{folder}: no method is done yet, and there is nothing to show; go on with the comparison")
    methods = [one for one in record["methods"] if (one["name"], first) in done]
    names = [one["name"] for one in methods]
    seeds = [seed for seed in record["seeds"] if all((name, seed) in done for name in names)]
    values = {name: {seed: read_json(cells[name, seed] / "evaluation" / "values.json") for seed in seeds} for name in names}
    asked = [(metric, on, by_subject(values, f"{metric}, {on}")) for metric, on in _metrics(values[names[0]].values())]
    found = {
        "hubdistill": __version__,
        "recipe": record["recipe"],
        "teacher": record["teacher"],
        "student": record["student"],
        "reference": names[0],
        "seeds": seeds,
        "enough": ENOUGH,
        "unfinished": [f"{name} with seed {seed}" for name, seed in cells if (name, seed) not in done],
        "methods": [_method(one["name"], one["overrides"], [cells[one["name"], seed] for seed in seeds]) for one in methods],
        "metrics": [compared(metric, on, subjects, names) for metric, on, subjects in asked if comparable(subjects, names)],
        "curves": {name: curves([cells[name, seed] / "metrics.jsonl" for seed in seeds]) for name in names},
    }
    write_json(folder / RESULT, found)
    return found


def _metrics(values: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What was measured: first what methods are compared by, then sets of questions."""
    names = [key for one in values for key in one]
    others = [(metric, on) for metric, _, on in (name.partition(", ") for name in names) if metric in (*RIGHT_ANSWERS, WIN_RATE, SCORE)]
    return list(dict.fromkeys([one for one in COMPARED if ", ".join(one) in names] + others))


def comparable(found: Mapping[str, BySeed], methods: Sequence[str]) -> bool:
    """Whether each method shares prompts with the first: of some a judge may have given no verdict."""
    return all(any(one.keys() & found[methods[0]][seed].keys() for seed, one in found[name].items()) for name in methods)


def by_subject(values: Mapping[str, Mapping[int, Any]], key: str) -> dict[str, BySeed]:
    """Subject -> seed -> prompt -> value; subjects are those before training, and the methods.

    A seed may have nothing: none of the prompts that it held out has a response in the data set.
    """
    first = next(iter(values.values()))
    before = {name: {seed: one.get(key, {}).get(name, {}) for seed, one in first.items()} for name in BEFORE}
    after = {name: {seed: one.get(key, {}).get("distilled", {}) for seed, one in found.items()} for name, found in values.items()}
    return {name: found for name, found in before.items() if any(found.values())} | after


def compared(metric: str, on: str, found: Mapping[str, BySeed], methods: Sequence[str]) -> dict[str, Any]:
    """A metric's rows: mean with interval, each seed's mean, and of each method the paired difference to the first with its p,
    adjusted (Holm) for the methods that are compared."""
    unit, better = UNITS[metric]
    reference = found[methods[0]]
    rows = {name: _row(seeds) for name, seeds in found.items()}
    tests = {name: _difference(found[name], reference) for name in methods[1:]}
    adjusted = holm({name: one["p"] for name, one in tests.items()})
    for name, one in tests.items():
        rows[name]["difference"] = one | {"p_adjusted": adjusted[name]}
    return {"metric": metric, "on": on, "unit": unit, "better": better, "rows": {name: row for name, row in rows.items()}}


def _row(seeds: BySeed) -> dict[str, Any]:
    pooled = _pooled(seeds)
    value, low, high = mean_and_interval(list(pooled.values()))
    return {"value": value, "low": low, "high": high, "n": len(pooled), "by_seed": [mean(one.values()) if one else None for one in seeds.values()]}


def _difference(seeds: BySeed, reference: BySeed) -> dict[str, Any]:
    """This method minus the reference, on the prompts and seeds that both have."""
    apart = {seed: {prompt: one[prompt] - reference[seed][prompt] for prompt in one.keys() & reference[seed].keys()} for seed, one in seeds.items()}
    pooled = list(_pooled(apart).values())
    value, low, high = mean_and_interval(pooled)
    measured = [one for one in apart.values() if one]
    same_sign = sum(mean(one.values()) * value > 0 for one in measured)
    return {"value": value, "low": low, "high": high, "p": paired_p(pooled), "seeds_alike": same_sign, "seeds": len(measured)}


def _pooled(seeds: BySeed) -> dict[str, float]:
    """Prompt -> its mean over seeds, in the order of the prompts' ids."""
    found: dict[str, list[float]] = {}
    for one in seeds.values():
        for prompt, value in one.items():
            found.setdefault(prompt, []).append(value)
    return {prompt: mean(found[prompt]) for prompt in sorted(found)}


def _method(name: str, overrides: Sequence[str], folders: Iterable[Path]) -> dict[str, Any]:
    """What a method trained on, and for how long, by seed."""
    records = [read_json(folder / "run.json") for folder in folders]
    rounds = [[row for stage, row in record["stages"].items() if stage.endswith("-train")] for record in records]
    seconds = [sum(taken for stage, taken in record["seconds"].items() if stage.endswith(("-train", "-student", f"-{INTERLEAVED}"))) for record in records]
    return {
        "name": name,
        "overrides": list(overrides),
        "loss": records[0]["loss"],
        "tokens": [sum(row["tokens"] for row in one) for one in rounds],
        "steps": [sum(row["steps"] for row in one) for one in rounds],
        "seconds": seconds,
    }


def curves(files: Sequence[Path]) -> dict[str, list[float]]:
    """NLL under the student of the responses that it trained on, the fixed ones and its own, step by step: mean over seeds.

    Where seeds have different numbers of steps, each round is as long as the shortest, so that no mean is over two rounds.
    """
    runs = [[row for row in map(json.loads, file.read_text(encoding="utf-8").splitlines()) if row.get("round", 0) >= 1] for file in files]
    steps = [step for number in sorted({row["round"] for run in runs for row in run})
             for step in zip(*([row for row in run if row["round"] == number] for run in runs), strict=False)]  # fmt: skip
    found = {}
    for side in ("teacher", "student"):
        key = f"{side}/student_nll"
        if steps and all(key in row for step in steps for row in step):
            found[side] = [mean(row[key] for row in step) for step in steps]
    return found
