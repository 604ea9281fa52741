"""Results by the length of the prompt, so that a student that loses on long prompts is seen.

The held-out prompts are parted by their tokens into three parts of about as many prompts; prompts of one length stay together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from hubdistill.evaluation.gate import BEGINNINGS
from hubdistill.evaluation.statistics import mean_and_interval, paired_difference
from hubdistill.pairs.prompts import read_prompts

PARTS = 3
# (metric, on) -> (unit, better), as heldout.py has them, which would bring torch
MEASURED = {
    ("kl", "teacher responses"): ("nats/token", "lower"),
    ("agreement", "teacher responses"): ("share", "higher"),
    ("kl", "own responses"): ("nats/token", "lower"),
    ("rouge_l", "own responses"): ("F1", "higher"),
    ("acceptance", "teacher responses"): ("share", "higher"),
}
Values = Mapping[str, Mapping[str, Mapping[str, float]]]  # "metric, on" -> subject -> prompt id -> value


def measured_by_length(run: Path, seed: int) -> list[dict[str, Any]]:
    """The same of a run directory; empty where nothing was measured on held-out prompts."""
    values, prompts = run / "evaluation" / "values.json", run / "prompts" / "heldout.parquet"
    if not (values.is_file() and prompts.is_file()):
        return []
    lengths = {prompt.id: len(prompt.prompt_ids) for prompt in read_prompts(prompts)}
    return by_length(json.loads(values.read_text(encoding="utf-8")), lengths, seed)


def by_length(values: Values, lengths: Mapping[str, int], seed: int = 0) -> list[dict[str, Any]]:
    """A row for each of MEASURED that was: `buckets` of shortest and longest prompt, in tokens, `n`, each subject's mean with
    its 95 % interval, and the paired difference of `distilled` to what it started from. JSON-able. Empty where all prompts
    are equally long."""
    parts = buckets(lengths)
    found = []
    for (metric, on), (unit, better) in MEASURED.items():
        by_subject = values.get(f"{metric}, {on}", {})
        rows = [_bucket(part, by_subject, lengths, seed) for part in parts if any(part & one.keys() for one in by_subject.values())]
        if len(rows) > 1:
            found.append({"metric": metric, "on": on, "unit": unit, "better": better, "buckets": rows})
    return found


def buckets(lengths: Mapping[str, int]) -> list[set[str]]:
    """Prompt ids by length, the shortest first, in at most PARTS parts; no part is empty."""
    ordered = sorted(lengths.values())
    bounds = sorted({ordered[len(ordered) * part // PARTS] for part in range(1, PARTS)}) if ordered else []
    edges = [0, *bounds, ordered[-1] + 1] if ordered else []
    parts = [{key for key, length in lengths.items() if low <= length < high} for low, high in pairwise(edges)]
    return [part for part in parts if part]


def _bucket(part: set[str], by_subject: Mapping[str, Mapping[str, float]], lengths: Mapping[str, int], seed: int) -> dict[str, Any]:
    of = {name: {key: one[key] for key in sorted(part & one.keys())} for name, one in by_subject.items()}
    of = {name: one for name, one in of.items() if one}
    before = next((name for name in BEGINNINGS if name in of), None)
    difference = asdict(paired_difference(of["distilled"], of[before], before, seed)) if before and "distilled" in of else None
    sizes = [lengths[key] for key in part]
    return {"shortest": min(sizes), "longest": max(sizes), "n": min(map(len, of.values())),
            "subjects": {name: list(mean_and_interval(list(one.values()), seed)) for name, one in of.items()}, "difference": difference}  # fmt: skip
