"""Where a comparison may lie, and what must stay as it is meanwhile: a comparison takes hours, and its recipe is planned anew for every run in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hubdistill.errors import InputError, RunDirectoryError
from hubdistill.models.sources import NOT_RESOLVED, ModelFacts
from hubdistill.pairs.prompt_sources import SourceFacts
from hubdistill.plan import Plan

CELLS = "cells.json"  # what a comparison is of, written when it begins


def pinned(plan: Plan) -> list[str]:
    """Overrides that hold what comes from the Hub at the commits of `plan`: a branch may move before the last method trains."""
    found: dict[str, ModelFacts | SourceFacts] = {"teacher": plan.teacher, "student": plan.student_source, "prompts": plan.prompts}
    return [f"{block}.revision={facts.commit}" for block, facts in found.items() if facts.kind == "hub" and facts.commit != NOT_RESOLVED]


def require_ours(folder: Path) -> None:
    """Refuse a place that holds something else than a comparison, such as a run. Raises RunDirectoryError."""
    if folder.exists() and not folder.is_dir():
        raise RunDirectoryError(f"{folder} is a file; choose another --output")
    found = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")] if folder.exists() else []
    if found and not any(name == CELLS or name.startswith("seed_") for name in found):
        raise RunDirectoryError(f"{folder} holds other files ({sorted(found)[0]}) and no comparison of hubdistill; choose another --output")


def require_same(plan: Plan, first: Plan) -> None:
    """Refuse to go on with other settings, models or data than the methods before had. Raises InputError."""
    before, now = _shared(first), _shared(plan)
    changed = [name for name, value in now.items() if value != before[name]]
    if changed:
        raise InputError(
            f"{plan.loaded.path}: {', '.join(changed)} changed while methods were compared, so they would not be compared with the same; "
            "put it back, or run the command again, which redoes for all of them what depends on it"
        )


def _shared(plan: Plan) -> dict[str, Any]:
    """What all methods and seeds have in common, by the key that a user would look for."""
    blocks = plan.recipe.model_dump(mode="json", exclude={"publish", "loss"})
    for block in ("teacher", "student", "prompts"):
        blocks[block].pop("revision")  # pinned; what it names is below
    for key in ("seed", "tokens"):
        blocks["train"].pop(key)
    models = {"the teacher": plan.teacher.commit, "the student": plan.student.commit}
    return blocks | models | {"the data set": plan.prompts.commit, "the questions": [facts.commit for facts in plan.questions]}
