"""The recipe that goes into an adapter's repository, so that others can run it: pinned, and without paths of this machine."""

from __future__ import annotations

from typing import Any

from hubdistill import __version__
from hubdistill.hub.local_names import short_names
from hubdistill.plan import Plan
from hubdistill.recipe import dump_resolved
from hubdistill.shipped import SHIPPED
from hubdistill.specs import PublishSpec


def public_names(plan: Plan) -> dict[str, str]:
    """Path of this machine -> what is published in its place."""
    models = [(facts.reference, facts.location) for facts in (plan.teacher, plan.student_source) if facts.kind == "local"]
    data = [facts.reference for facts in (plan.prompts, *plan.questions) if facts.kind == "local" and not facts.reference.startswith(SHIPPED)]
    return short_names(models, data)


def files_of_this_machine(plan: Plan) -> list[str]:
    """What the recipe names that only this machine has; without it nobody else can run the recipe as it is."""
    sources: list[Any] = [plan.teacher, plan.student_source, plan.prompts, *plan.questions]
    return sorted({facts.reference for facts in sources if facts.kind == "local" and not facts.reference.startswith(SHIPPED)})


def pinned_recipe(plan: Plan, publish: PublishSpec | None = None) -> str:
    """The recipe with all values spelled out, every Hub revision pinned and no path of this machine; without `publish` unless it is given, so that who reruns it pushes nothing."""
    recipe, names = plan.recipe, public_names(plan)
    pins = {}

    def pinned(spec: Any, key: str, facts: Any) -> Any:
        return spec.model_copy(update={"revision": facts.commit} if facts.kind == "hub" else {key: names.get(facts.reference, facts.reference)})

    for name, key, facts in (("teacher", "model", plan.teacher), ("student", "model", plan.student_source), ("prompts", "dataset", plan.prompts)):
        pins[name] = pinned(getattr(recipe, name), key, facts)
    sets = iter(plan.questions)
    pins["evaluate"] = tuple(one.model_copy(update={"questions": pinned(one.questions, "dataset", next(sets))}) if one.questions else one for one in recipe.evaluate)
    header = f"# Made by hubdistill {__version__} from the recipe '{plan.loaded.name}': every default spelled out, every revision pinned.\n"
    return header + dump_resolved(recipe.model_copy(update={**pins, "publish": publish}))
