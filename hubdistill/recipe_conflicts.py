"""Checks of a recipe whose blocks are each valid: fields that contradict others, or that have no effect beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hubdistill.losses.contrastive import resolve
from hubdistill.recipe_checks import Problem, is_local
from hubdistill.recipe_wording import nearest
from hubdistill.shipped import SHIPPED
from hubdistill.specs import PROGRAMS, RUNS_PROGRAMS
from hubdistill.yaml_lines import KeyPath, show

if TYPE_CHECKING:
    from hubdistill.losses.contrastive import LossPreset
    from hubdistill.recipe import Recipe
    from hubdistill.specs import EvaluationSpec, SourceSpec


def check_together(recipe: Recipe) -> Iterator[Problem]:
    """Fields that contradict or ignore each other, in a recipe whose blocks are each valid."""
    yield from _models(recipe)
    yield from _prompts(recipe)
    yield from _images(recipe)
    yield from _server(recipe)
    yield from _warmup(recipe)
    yield from _loss(recipe)
    yield from _preference(recipe)
    yield from _evaluate(recipe)
    yield from _gate(recipe)
    yield from _publish(recipe)


def _models(recipe: Recipe) -> Iterator[Problem]:
    for block, spec in (("teacher", recipe.teacher), ("student", recipe.student)):
        if spec.revision and (is_local(spec.model) or spec.model.startswith(("pypi:", "toy:"))):
            yield (block, "revision"), f"is for models on the Hub, and '{show(spec.model)}' is not there; remove it"


def _prompts(recipe: Recipe) -> Iterator[Problem]:
    for path, source in _sources(recipe):
        for key in ("config", "revision", "streaming", "split"):
            on_disk = is_local(source.dataset) or source.dataset.startswith(SHIPPED)
            if on_disk and key in source.model_fields_set and getattr(source, key) not in (None, False, "train"):
                yield (*path, key), "is for data sets on the Hub, and the data set is a local file; remove it"


def _sources(recipe: Recipe) -> Iterator[tuple[KeyPath, SourceSpec]]:
    """Every block that names a data set."""
    yield ("prompts",), recipe.prompts
    if recipe.preference:
        yield ("preference",), recipe.preference
    yield from ((("evaluate", index, "questions"), one.questions) for index, one in enumerate(recipe.evaluate) if one.questions)


def _images(recipe: Recipe) -> Iterator[Problem]:
    vision = _reads_images(recipe.target.kind)
    if recipe.prompts.image_column and not vision:
        yield ("prompts", "image_column"), f"has no effect, the target '{recipe.target.kind}' reads no images; remove it, or write target: {{kind: vlm}}"
    for path, source in _sources(recipe):
        for key in ("image_pixels", "damaged_images"):
            if getattr(source, key) != type(source).model_fields[key].default and source.image_column is None:
                yield (*path, key), "has no effect without image_column; add image_column, or remove it"
    for key in ("vision_tower", "projector"):
        if getattr(recipe.lora, key) and not vision:
            yield ("lora", key), f"has no effect, the target '{recipe.target.kind}' has none; remove it, or write target: {{kind: vlm}}"


def _server(recipe: Recipe) -> Iterator[Problem]:
    server, teacher = recipe.sampling.server, recipe.teacher.model
    if server is None:
        return
    if _reads_images(recipe.target.kind):
        yield ("sampling", "server"), f"is asked in text alone, and the target '{recipe.target.kind}' reads images; remove it"
    if server.model is None and (is_local(teacher) or teacher.startswith(("pypi:", "toy:"))):
        yield ("sampling", "server"), f"lacks model: '{show(teacher)}' is a name of this machine; write the name that the server gives the teacher"


def _reads_images(kind: str) -> bool:
    from hubdistill.targets import target_named

    return target_named(kind).modality.own_view


def _warmup(recipe: Recipe) -> Iterator[Problem]:
    if recipe.warmup.kind == "none":
        for key in sorted(recipe.warmup.model_fields_set - {"kind"}):
            if getattr(recipe.warmup, key) != type(recipe.warmup).model_fields[key].default:
                yield ("warmup", key), "has no effect with kind: none; remove it, or write kind: sft"


def _loss(recipe: Recipe) -> Iterator[Problem]:
    loss = recipe.loss
    preset = resolve(loss.model_dump())
    if loss.beta_end is not None and preset.beta != "linear":
        yield ("loss", "beta_end"), f"has no effect with the '{preset.beta}' schedule; remove it, or write beta: linear"
    if loss.beta_end is not None and preset.beta == "linear" and loss.beta_end < 0.5:
        yield (
            ("loss", "beta_end"),
            f"the ramp starts at 0.5, so {loss.beta_end:g} would run it backwards; write 0.5 to 1",
        )
    for key, beta in (("fixed_responses", "full"), ("student_responses", "off")):
        if getattr(loss, key) is not None and preset.beta == beta:
            yield ("loss", key), f"has no effect: with beta '{beta}' these responses are not trained on; remove it"
    yield from _interleaved(recipe, preset)
    yield from _policy_gradient(preset)
    if preset.sides[1] and preset.student_responses == "replay" and recipe.train.prompts_per_round is not None:
        yield ("train", "prompts_per_round"), f"leaves the preset '{preset.name}' nothing to replay: each round asks other prompts, so none has a response of an earlier one; remove it, or write loss.student_responses: round"
    preference = preset.preference != "off"
    for key in ("alpha", "mix_grad", "beta", "beta_end", "reduction", "anchor") if preference else ("strength",):
        if getattr(loss, key) is not None:
            yield ("loss", key), f"has no effect with the preset '{preset.name}'; remove it"
    kinds = {kind for kind, trained in zip(preset.kinds, preset.sides, strict=True) if trained}
    for key, by in (("alpha", {"skl", "srkl", "jsd"}), ("mix_grad", {"srkl"}), ("anchor", {"skl", "srkl"})):
        # anchor: off is what such a preset has anyway
        if not preference and getattr(loss, key) not in (None, "off") and not kinds & by:
            yield ("loss", key), f"has no effect with the preset '{preset.name}', whose divergence is {' and '.join(sorted(kinds))}; remove it"
    off = preset.anchor == "off"
    for key in ("alpha_range", "nonpositive_gap"):
        if off and getattr(loss, key) is not None:
            yield (
                ("loss", key),
                "has no effect while alpha is constant (anchor: off); remove it, or write anchor: frozen",
            )
    low, high = preset.alpha_low, preset.alpha_high
    if not off and loss.alpha is not None and not low <= loss.alpha <= high:
        yield (
            ("loss", "alpha"),
            f"{loss.alpha:g} is outside alpha_range [{low:g}, {high:g}]; widen alpha_range, or write anchor: off",
        )


def _preference(recipe: Recipe) -> Iterator[Problem]:
    if recipe.preference is None:
        return
    if _reads_images(recipe.target.kind):
        yield ("preference",), f"is tuned on text alone, and the target '{recipe.target.kind}' reads images; remove it"
    elif recipe.preference.image_column:
        yield ("preference", "image_column"), "has no effect, preferences are read as text alone; remove it"


def _policy_gradient(preset: LossPreset) -> Iterator[Problem]:
    """Its importance weights are those of what the responses were drawn from, which has to be known."""
    if not preset.policy_gradient:
        return
    why = f"the preset '{preset.name}' weighs tokens by what they were drawn from"
    if preset.beta != "full":
        yield ("loss", "beta"), f"{why}, the student before the round and a share of the teacher; remove it"
    if preset.student_responses not in ("round", "interleaved"):
        yield ("loss", "student_responses"), f"{why}, and responses of earlier rounds were drawn from another student; write round or interleaved"
    if preset.student_responses == "interleaved" and preset.acceptance != "mixed":
        yield ("loss", "acceptance"), f"{why}, and with '{preset.acceptance}' that is no mixture of both models; write mixed"


def _interleaved(recipe: Recipe, preset: LossPreset) -> Iterator[Problem]:
    """Responses that both models write together: what decides them, and what can write them."""
    loss, sampling = recipe.loss, recipe.sampling
    if not preset.interleaved:
        for key in ("acceptance", "top_k", "epsilon", "teacher_share"):
            if getattr(loss, key) is not None:
                yield ("loss", key), "has no effect: no responses are interleaved; remove it, or write student_responses: interleaved"
        return
    for key, rule in (("top_k", "top_k"), ("epsilon", "typical"), ("teacher_share", "mixed")):
        if getattr(loss, key) is not None and preset.acceptance != rule:
            yield ("loss", key), f"has no effect with acceptance: {preset.acceptance}; remove it, or write acceptance: {rule}"
    if all(preset.sides) and preset.fixed_responses == preset.student_responses:
        yield ("loss", "fixed_responses"), "both responses of a pair would be the same one, as student_responses is interleaved too; change one of them"
    why = "student and teacher write the responses of the loss together (interleaved), token by token"
    if sampling.engine != "transformers":
        yield ("sampling", "engine"), f"{why}, and {sampling.engine} has one model at a time; write transformers"
    if sampling.server:
        yield ("sampling", "server"), f"{why}, and no server gives single tokens of the teacher's choice; remove it"
    if _reads_images(recipe.target.kind):
        yield ("loss", "student_responses"), f"{why}, which the target '{recipe.target.kind}' cannot, since each of its models reads prompts in its own way; choose another preset, or write student_responses: round"


def _evaluate(recipe: Recipe) -> Iterator[Problem]:
    for index, one in enumerate(recipe.evaluate):
        if one in recipe.evaluate[:index] or (one.questions is None and one.kind != "benchmark" and one.kind in [before.kind for before in recipe.evaluate[:index] if before.questions is None]):
            yield ("evaluate", index), f"'{one.kind}' is listed twice; keep one"
        if one.kind == "vqa" and not _reads_images(recipe.target.kind):
            yield ("evaluate", index), f"'vqa' asks about images, and the target '{recipe.target.kind}' reads none; remove it, or write target: {{kind: vlm}}"
        if recipe.target.kind != "drafter" and (unused := [key for key in ("draft_tokens", "timed") if getattr(one, key) != type(one).model_fields[key].default]):
            yield ("evaluate", index, unused[0]), "has no effect: only the target 'drafter' decodes with drafts; remove it"
        if one.kind == "judge" and _reads_images(recipe.target.kind):
            yield ("evaluate", index), f"'judge' reads text alone, and the target '{recipe.target.kind}' is about images; remove it"
        if one.kind == "benchmark" and _reads_images(recipe.target.kind):
            yield ("evaluate", index), f"'benchmark' asks text, and the target '{recipe.target.kind}' is about images; remove it"
        if one.task in PROGRAMS and not one.allow_code_execution:
            yield ("evaluate", index, "allow_code_execution"), f"is false, and '{one.task}' {RUNS_PROGRAMS}; nothing is run unless you write allow_code_execution: true"
        if one.kind == "benchmark" and any(before.kind == "benchmark" and _called(before) == _called(one) for before in recipe.evaluate[:index]):
            yield ("evaluate", index), f"'{one.task}' is asked twice under one name; keep one, or give its file another name"
        if one.judge and one.judge.against == "reference" and one.questions and not one.questions.response_column:
            yield ("evaluate", index, "questions", "response_column"), "is null, and the judge holds answers against the data's own; name their column, or write judge.against: teacher or student"
        if one.kind == "vqa" and one.questions and not one.questions.response_column:
            yield ("evaluate", index, "questions", "response_column"), "is null, and 'vqa' needs the right answers; name their column"
        if one.kind == "vqa" and one.questions and not one.questions.image_column:
            yield ("evaluate", index, "questions"), "name no images, and 'vqa' measures what an image is worth; name their column in image_column"
        if one.kind == "vqa" and one.questions is None and not recipe.prompts.image_column:
            yield ("evaluate", index), "'vqa' asks the held-out prompts, and they have no images; name their column in prompts.image_column, or add `questions`"
        if one.kind == "vqa" and one.questions is None and not recipe.prompts.response_column:
            yield ("evaluate", index), "'vqa' needs known answers; add `questions`, or name the column of the prompts' answers in prompts.response_column"
    if not recipe.prompts.heldout and any(one.questions is None and one.kind != "benchmark" for one in recipe.evaluate):
        yield ("prompts", "heldout"), "is 0 and evaluate needs held-out prompts (only `benchmark`, and `vqa` and `judge` with `questions`, do without); write 200, or evaluate: []"


def _called(one: EvaluationSpec) -> tuple[str | None, str | None]:
    """What results call a benchmark by: its task, and the last part of its data's name."""
    return one.task, None if one.dataset is None else Path(one.dataset).name


def _gate(recipe: Recipe) -> Iterator[Problem]:
    given, default = recipe.gate, type(recipe.gate)()
    if (given.metric, given.guards) == (default.metric, default.guards):
        return
    from hubdistill.evaluation.heldout import UNITS  # brings torch, for recipes that say more than most

    for key, names in (("metric", [given.metric]), ("guards", given.guards)):
        for name in [name for name in names if name not in UNITS]:
            guess = nearest(name, UNITS)
            hint = f"did you mean '{guess}'?" if guess else f"choose from {', '.join(UNITS)}"
            yield ("gate", key), f"'{show(name)}' is no metric; {hint}"


def _publish(recipe: Recipe) -> Iterator[Problem]:
    publish, student = recipe.publish, recipe.student
    if publish is None:
        return
    names = {key: repo for key in ("repo", "base_repo", "merged_repo") if (repo := getattr(publish, key))}
    for key, repo in names.items():
        if re.search(r"--|\.\.|\./|-/|[.-]$|\.git$", repo):
            yield ("publish", key), f"'{repo}' is refused by the Hub; no '--' or '..', and no '-', '.' or '.git' at the end of a name"
        for role, model in (("student", student.model), ("teacher", recipe.teacher.model)):
            if repo.casefold() == model.casefold():  # to the Hub both are one name
                yield ("publish", key), f"is the {role}'s own repository, and a push would write over it; name another one"
    if publish.tag and (".." in publish.tag or publish.tag.endswith((".", ".lock"))):
        yield ("publish", "tag"), f"'{publish.tag}' is not a git tag; use a form such as v1.0"
    unpublished = student.layers is not None or is_local(student.model) or student.model.startswith(("pypi:", "toy:"))
    if unpublished and publish.base_repo is None:
        yield (
            ("publish", "repo"),
            "an adapter needs a base that others can load, and this student is pruned or local; add publish.base_repo",
        )
    if not unpublished and publish.base_repo is not None:
        yield ("publish", "base_repo"), "has no effect, the student's base is on the Hub already; remove it"
    own = {key: repo.casefold() for key, repo in names.items()}
    if own.get("base_repo") == own["repo"]:
        yield ("publish", "base_repo"), "is the adapter's own repo; name another one"
    yield from _publish_merged(recipe, own)


def _publish_merged(recipe: Recipe, own: Mapping[str, str]) -> Iterator[Problem]:
    merged, key = own.get("merged_repo"), ("publish", "merged_repo")
    if merged is None:
        return
    if merged in (own["repo"], own.get("base_repo")):
        yield key, "is the repo of the adapter or of its base; name another one"
    if recipe.target.kind == "int4":
        yield key, "a model in 4 bit cannot hold the adapter merged in; remove it"
    if recipe.student.trust_remote_code:
        yield key, "the student's code is in its own repository, and a merged copy would lack it; remove it"
