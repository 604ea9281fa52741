"""What a run took beside what was forecast; every run records it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hubdistill.errors import HubdistillError
from hubdistill.estimate.costs import EVALUATED, guessed, seconds_of
from hubdistill.estimate.machines import this_machine
from hubdistill.estimate.memory import TOGETHER, memory_of
from hubdistill.losses.contrastive import INTERLEAVED

if TYPE_CHECKING:
    from hubdistill.plan import Plan

# stages of a run directory -> of the forecast
KINDS = {"sampling": rf"round_\d+-(teacher|student|{INTERLEAVED})", "warm-up": "warmup", "training": r"round_\d+-train", "evaluation": "evaluate"}
STAGES = {r"round_\d+-(teacher|student)": r"the \1 answers", rf"round_\d+-{INTERLEAVED}": TOGETHER,
          r"warmup": "warm-up", r"round_\d+-train": "training", r"evaluate": "evaluation"}  # fmt: skip


def compared(plan: Plan, memory: Mapping[str, Mapping[str, int]]) -> list[dict[str, Any]]:
    """Rows of stage, predicted and measured bytes of one process; of several rounds the largest. `memory` are the peaks of
    each stage (rundir.py). Empty where nothing can be predicted, or was measured."""
    try:
        machine = this_machine(plan.recipe.train.device)
        predicted = {stage.name: stage.total for stage in memory_of(plan, machine)}
    except HubdistillError:
        return []
    device = "main" if machine.kind == "cpu" else "device"
    measured: dict[str, int] = {}
    for stage, peaks in memory.items():
        name = _name(stage)
        elsewhere = plan.recipe.sampling.engine == "vllm" and name.endswith("answers")  # in a process of its own
        if name in predicted and device in peaks and not elsewhere:
            measured[name] = max(peaks[device], measured.get(name, 0))
    return [{"stage": name, "predicted": predicted[name], "measured": measured[name]} for name in predicted if name in measured]


def times(plan: Plan, seconds: Mapping[str, float]) -> list[dict[str, Any]]:
    """Rows of kind of stage, predicted and measured seconds, and their sum; `seconds` are of each stage (rundir.py). The
    prediction has every response at its limit. Empty where nothing can be predicted."""
    try:
        predicted = seconds_of(plan, guessed(plan, this_machine(plan.recipe.train.device)))
    except HubdistillError:
        return []
    if predicted is None:
        return []
    of = {kind: [value for stage, value in seconds.items() if re.fullmatch(pattern, stage)] for kind, pattern in KINDS.items()}
    loads = {kind: len(values) + EVALUATED * (kind == "evaluation") for kind, values in of.items() if values}  # of models
    share = predicted["loading"] / sum(loads.values()) if loads else 0.0
    rows = [{"stage": kind, "predicted": predicted[kind] + share * number, "measured": sum(of[kind])} for kind, number in loads.items()]
    return [*rows, {"stage": "together", **{what: sum(float(row[what]) for row in rows) for what in ("predicted", "measured")}}] if rows else []


def _name(stage: str) -> str:
    return next((re.sub(pattern, name, stage) for pattern, name in STAGES.items() if re.fullmatch(pattern, stage)), "")
