"""The recipe that goes into an adapter's repository, so that others can run it: pinned, and without paths of this machine."""

from __future__ import annotations

from typing import Any

from hubdistill import __version__
from hubdistill.evaluation.judge import PATHS, judges
from hubdistill.hub.local_names import short_names
from hubdistill.plan import Plan
from hubdistill.recipe import dump_resolved
from hubdistill.shipped import SHIPPED
from hubdistill.specs import EndpointSpec, EvaluationSpec, PublishSpec

SERVER = "http://SERVER"  # in place of the address of one, which is nobody else's business


def public_names(plan: Plan) -> dict[str, str]:
    """Path of this machine, or address of a server of ours -> what is published in its place."""
    models = [(facts.reference, facts.location) for facts in (plan.teacher, plan.student_source) if facts.kind == "local"]
    data = [facts.reference for facts in plan.data if facts.kind == "local" and not facts.reference.startswith(SHIPPED)]
    data += [one.dataset for one in plan.recipe.evaluate if one.dataset and _is_file(one.dataset)]
    server = plan.recipe.sampling.server
    models += [(plan.served_as, "")] if server and "/" in plan.served_as[:2] else []  # a folder of the server's
    models += [(one.model, "") for one in judges(plan.recipe.evaluate) if one.model[:1] in PATHS]  # a folder of the judge's server
    servers: list[EndpointSpec] = [*([server] if server else []), *judges(plan.recipe.evaluate)]
    return short_names(models, data) | {one.url: SERVER for one in servers}


def _is_file(dataset: str) -> bool:
    return dataset.endswith((".jsonl", ".json")) or dataset.startswith((".", "/", "~"))


def _of_this_machine(one: EvaluationSpec) -> bool:
    """A benchmark that nobody else can ask, or that a recipe from the Hub may not have."""
    return one.kind == "benchmark" and bool(one.allow_code_execution or (one.dataset and _is_file(one.dataset)))


def files_of_this_machine(plan: Plan) -> list[str]:
    """What the published recipe names that only this machine has; without it nobody else can run the recipe as it is."""
    judged = [facts for one, facts in zip([one for one in plan.recipe.evaluate if one.questions], plan.questions, strict=True) if one.judge]
    sources: list[Any] = [plan.teacher, plan.student_source, *(facts for facts in plan.data if all(facts is not one for one in judged))]
    return sorted({facts.reference for facts in sources if facts.kind == "local" and not facts.reference.startswith(SHIPPED)})


def pinned_recipe(plan: Plan, publish: PublishSpec | None = None) -> str:
    """The recipe with all values spelled out, every Hub revision pinned, no path of this machine and no server; without `publish` unless it is given, so that who reruns it pushes nothing."""
    recipe, names = plan.recipe, public_names(plan)
    pins = {}

    def pinned(spec: Any, key: str, facts: Any) -> Any:
        return spec.model_copy(update={"revision": facts.commit} if facts.kind == "hub" else {key: names.get(facts.reference, facts.reference)})

    for name, key, facts in (("teacher", "model", plan.teacher), ("student", "model", plan.student_source), ("prompts", "dataset", plan.prompts)):
        pins[name] = pinned(getattr(recipe, name), key, facts)
    if recipe.preference:
        pins["preference"] = pinned(recipe.preference, "dataset", plan.preferences)
    sets = iter(plan.questions)
    evaluate = [one.model_copy(update={"questions": pinned(one.questions, "dataset", next(sets))}) if one.questions else one for one in recipe.evaluate]
    pins["evaluate"] = tuple(one for one in evaluate if one.judge is None and not _of_this_machine(one))
    served = f"# The teacher's responses came from a server, as {names.get(plan.served_as, plan.served_as)}; here sampling.engine samples them.\n" if recipe.sampling.server else ""
    served += "".join(f"# An evaluation is left out, for it needs a server: {names.get(one.model, one.model)} judged answers against the {one.against}.\n" for one in judges(recipe.evaluate))
    served += "".join(f"# An evaluation is left out: {one.task}, which {'runs programs that models write' if one.allow_code_execution else 'was read from a file'}.\n" for one in evaluate if _of_this_machine(one))
    pins["sampling"] = recipe.sampling.model_copy(update={"server": None})
    header = f"# Made by hubdistill {__version__} from the recipe '{plan.loaded.name}': every default spelled out, every revision pinned.\n"
    return header + served + dump_resolved(recipe.model_copy(update={**pins, "publish": publish}))
