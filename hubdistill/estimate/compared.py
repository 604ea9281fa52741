"""What a run took beside what was forecast; every run records it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hubdistill.errors import HubdistillError
from hubdistill.estimate.machines import this_machine
from hubdistill.estimate.memory import memory_of

if TYPE_CHECKING:
    from hubdistill.plan import Plan

# stages of a run directory -> of the forecast
STAGES = {r"round_\d+-(teacher|student)": r"the \1 answers", r"warmup": "warm-up", r"round_\d+-train": "training", r"evaluate": "evaluation"}


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


def _name(stage: str) -> str:
    return next((re.sub(pattern, name, stage) for pattern, name in STAGES.items() if re.fullmatch(pattern, stage)), "")
