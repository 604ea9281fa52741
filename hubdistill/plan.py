"""The plan: everything about a run that can be known before weights load. `hubdistill plan RECIPE` prints it.

A recipe that cannot work fails here, in seconds, not after an hour of sampling.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubdistill import __version__
from hubdistill.errors import HubdistillError, RecipeError
from hubdistill.evaluation.questions import question_sets
from hubdistill.files import digest_of
from hubdistill.losses.contrastive import LossPreset, resolve
from hubdistill.losses.schedules import beta_table
from hubdistill.models.pruned import pruned_facts
from hubdistill.models.sharing import Sharing, sharing_of
from hubdistill.models.sources import NOT_RESOLVED, ModelFacts, find_model
from hubdistill.pairs.prompt_sources import SourceFacts, check_source
from hubdistill.plan_checks import (
    check_adapter,
    check_distributed,
    check_judges,
    check_lengths,
    check_publish,
    check_readers,
    check_server,
    check_settings,
    check_stored,
    check_vllm,
    judgements,
    planned_processes,
    vocabulary_of,
)
from hubdistill.recipe import LoadedRecipe, Recipe
from hubdistill.targets import target_named
from hubdistill.targets.base import Target

if TYPE_CHECKING:
    from hubdistill.losses.schedules import BetaTable
    from hubdistill.specs import ServerSpec


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A recipe with everything resolved; numbers of prompts and steps are upper bounds until the prompts are read."""

    loaded: LoadedRecipe
    target: Target
    teacher: ModelFacts
    student_source: ModelFacts  # what student.model names
    student: ModelFacts  # the adapter's base: the same, or its pruned copy
    prompts: SourceFacts
    questions: tuple[SourceFacts, ...]  # of the evaluations that ask a set of their own
    preferences: SourceFacts | None  # of the preference stage
    preset: LossPreset
    most_prompts: int | None  # training prompts at most; None where the data set does not say
    steps: int | None  # optimiser steps a round, at most
    processes: int
    vocab: int | None  # common vocabulary; None where a tokenizer could not be read offline
    warnings: tuple[str, ...]

    @property
    def recipe(self) -> Recipe:
        return self.loaded.recipe

    @property
    def base_dir(self) -> Path:
        return self.loaded.path.parent

    @property
    def accumulation(self) -> int:
        """Micro-batches of one process in an optimiser step."""
        train = self.recipe.train
        return train.pairs_per_step // (train.micro_batch * self.processes)

    @property
    def prompts_per_step(self) -> int:
        """Prompts whose responses an optimiser step holds, over all processes."""
        return self.recipe.train.pairs_per_step * self.preset.prompts_per_pair

    @property
    def resolved(self) -> bool:
        """Whether every model and data set is pinned, so that the plan can be run."""
        return NOT_RESOLVED not in (self.teacher.commit, self.student.commit, *(facts.commit for facts in self.data))

    @property
    def data(self) -> list[SourceFacts]:
        """Every data set: the prompts', the questions', the preferences'."""
        return [self.prompts, *self.questions, *([self.preferences] if self.preferences else [])]

    def schedule(self, steps: int) -> BetaTable:
        """Beta over the rounds."""
        return beta_table(self.preset.beta, rounds=self.recipe.train.rounds, steps=steps, end=self.preset.beta_end)

    @property
    def quantization(self) -> dict[str, Any] | None:
        """How the student is quantised; None where it is not."""
        return self.target.quantization(self.recipe.target.options)

    @property
    def sharing(self) -> dict[str, Sharing]:
        """Whether each model reads the prompt of a pair once while training, by its config."""
        return {"teacher": sharing_of(self.teacher), "student": sharing_of(self.student)}

    def served(self, who: str) -> ServerSpec | None:
        """The server that answers the rounds' prompts for a model, where one does."""
        return self.recipe.sampling.server if who == "teacher" else None

    @property
    def served_as(self) -> str:
        """The name of the teacher on the server."""
        server = self.recipe.sampling.server
        return (server.model if server else None) or self.recipe.teacher.model

    def number_format(self, who: str) -> str:
        """What, besides its commit, decides a model's numbers."""
        if who == "teacher":
            return self.recipe.teacher.dtype
        return self.recipe.student.dtype + (f" {digest_of([self.quantization])[:16]}" if self.quantization else "")

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, for plan.json and `--json`."""
        recipe = self.recipe
        table = self.schedule(self.steps or 100)
        return {
            "hubdistill": __version__,
            "recipe": recipe.model_dump(mode="json"),
            "overrides": list(self.loaded.overrides),
            "teacher": _model(self.teacher),
            "student": _model(self.student),
            "prompts": asdict(self.prompts),
            "questions": [asdict(facts) for facts in self.questions],
            "preferences": asdict(self.preferences) if self.preferences else None,
            "judges": judgements(recipe, self.prompts, self.questions),
            "loss": asdict(self.preset),
            "rounds": recipe.train.rounds,
            "prompts_at_most": self.most_prompts,
            "steps_per_round_at_most": self.steps,
            "processes": self.processes,
            "micro_batches_per_step": self.accumulation,
            "prompt_read_once": {who: asdict(answer) for who, answer in self.sharing.items()},
            "common_vocabulary": self.vocab,
            "beta": [asdict(row) for row in table.rows],
            "alpha": ["alpha_0 for all" if r == 1 or self.preset.anchor == "off" else f"curriculum ({self.preset.anchor} anchor)"
                      for r in range(1, recipe.train.rounds + 1)],
            "warnings": list(self.warnings),
            "digest": self.digest,
        }  # fmt: skip

    @property
    def digest(self) -> str:
        """Changes whenever anything changes that a result could depend on (where it is published is not)."""
        blocks = self.recipe.model_dump(mode="json", exclude={"publish"})
        return digest_of([blocks, self.teacher.commit, self.student.commit, *(facts.commit for facts in self.data), __version__])


def _model(facts: ModelFacts) -> dict[str, Any]:
    names = ("architectures", "model_type", "hidden_size", "num_hidden_layers", "vocab_size", "max_position_embeddings")
    inner = facts.text_config
    return {"reference": facts.reference, "kind": facts.kind, "commit": facts.commit, "license": facts.license,
            "config": {name: inner.get(name, facts.config.get(name)) for name in names}}  # fmt: skip


def make_plan(loaded: LoadedRecipe, *, offline: bool = False, elsewhere: bool = False, ask_server: bool = False) -> Plan:
    """Resolve models and data, and check everything that needs no weights.

    Raises RecipeError with every problem found; `offline` leaves what is not cached unresolved instead, and
    `elsewhere` does not ask for what only the machine that will run it must have. `ask_server` asks the recipe's servers for
    the teacher and the judges; a run does so when it needs them, for by then one may have done its work, and another may not be there yet.
    """
    recipe, processes = loaded.recipe, planned_processes(loaded.recipe)
    problems = check_settings(recipe, processes, elsewhere=elsewhere)
    found = _resolve(loaded, offline, problems)
    teacher, source, student, prompts = found
    questions, preferences = _check_questions(loaded, offline, problems), _check_preferences(loaded, offline, problems)
    target = target_named(recipe.target.kind)
    if teacher and source and student:
        problems += target.check(teacher, student, recipe.target.options)
        problems += check_lengths(recipe, {"teacher": teacher, "student": student})
        problems += check_stored(recipe, student)
        problems += check_vllm(recipe, target, teacher, student, elsewhere=elsewhere)
        problems += check_publish(recipe, student)
        problems += check_distributed(recipe, target, {"teacher": teacher, "student": student}, processes)
        problems += check_adapter(recipe, student) if recipe.lora.modules else []  # else `run` does, which needs torch anyway
    if prompts and prompts.rows is not None and prompts.rows <= recipe.prompts.heldout:
        problems.append(f"prompts.heldout: {recipe.prompts.heldout} of {prompts.rows} rows leaves nothing to train on; lower it")
    if prompts and prompts.responses is False and recipe.warmup.kind == "sft" and recipe.warmup.responses == "ground_truth":
        problems.append("warmup.responses: the first prompts have no ground-truth response; name their column in prompts.response_column, or write warmup.responses: teacher")
    preset = resolve(recipe.loss.model_dump())
    if prompts and prompts.responses is False and preset.sides[0] and preset.fixed_responses == "data":
        problems.append(f"loss.preset: {preset.name} trains on the data set's responses, and the first prompts have none; name their column in prompts.response_column, or write loss.fixed_responses: teacher")
    problems += [] if problems else check_readers(target, {"teacher": teacher, "student": source})
    problems += [] if problems else check_judges(recipe, prompts, questions)
    problems += [] if problems or not ask_server else check_server(recipe)
    vocab = None if problems else vocabulary_of(teacher, source, offline, problems)
    if problems:
        raise RecipeError([f"{loaded.path}: {problem}" for problem in problems])
    most = _most_prompts(recipe.prompts.count, prompts.rows, recipe.prompts.heldout)
    of_a_round = min(most, recipe.train.prompts_per_round or most) if most else 0
    steps = math.ceil(of_a_round / (recipe.train.pairs_per_step * preset.prompts_per_pair)) if most and not recipe.train.tokens else None
    plan = Plan(loaded=loaded, target=target, teacher=teacher, student_source=source, student=student, prompts=prompts, questions=questions, preferences=preferences, preset=preset,
                most_prompts=most, steps=steps, processes=processes, vocab=vocab, warnings=())  # fmt: skip
    return Plan(**{**plan.__dict__, "warnings": tuple(_warnings(plan, offline))})


def _resolve(loaded: LoadedRecipe, offline: bool, problems: list[str]) -> tuple[ModelFacts, ModelFacts, ModelFacts, SourceFacts]:
    recipe, base = loaded.recipe, loaded.path.parent
    found: list[Any] = []
    steps = (
        ("teacher.model", lambda: find_model(recipe.teacher, base, offline=offline)),
        ("student.model", lambda: find_model(recipe.student, base, offline=offline)),
        ("student.layers", lambda: pruned_facts(found[1], recipe.student.layers) if recipe.student.layers and found[1] else found[1]),
        ("prompts.dataset", lambda: check_source(recipe.prompts, None if loaded.origin == "hub" else base, offline=offline)),
    )
    for key, step in steps:
        try:
            found.append(step())
        except HubdistillError as problem:
            problems += _under(key, problem)
            found.append(None)
    return tuple(found)  # type: ignore[return-value]


def _check_questions(loaded: LoadedRecipe, offline: bool, problems: list[str]) -> tuple[SourceFacts, ...]:
    """The sets of questions that evaluations name."""
    found = []
    for _, spec in question_sets(loaded.recipe.evaluate):
        try:
            found.append(check_source(spec, None if loaded.origin == "hub" else loaded.path.parent, offline=offline))
        except HubdistillError as problem:
            problems += _under(f"{spec.key}.dataset", problem)
    return tuple(found)


def _check_preferences(loaded: LoadedRecipe, offline: bool, problems: list[str]) -> SourceFacts | None:
    """The data of the preference stage."""
    preference = loaded.recipe.preference
    if preference is None:
        return None
    try:
        found = check_source(preference, None if loaded.origin == "hub" else loaded.path.parent, offline=offline)
    except HubdistillError as problem:
        problems += _under("preference.dataset", problem)
        return None
    if found.rows is not None and found.rows <= preference.heldout:
        problems.append(f"preference.heldout: {preference.heldout} of {found.rows} rows leaves nothing to train on; lower it")
    return found


def _under(key: str, problem: HubdistillError) -> list[str]:
    """Each line of a problem, under the key that it is about: that of a column, which it names itself, else `key`."""
    block, _, field = key.rpartition(".")
    own = re.compile(rf"{re.escape(block)}\.(\w+_column|column|{field}): ")
    return [line if own.match(line) else f"{key}: {line}" for line in str(problem).splitlines()]


def _most_prompts(count: int | None, rows: int | None, heldout: int) -> int | None:
    if rows is None:
        return count
    return min(count or rows, rows - heldout)


def _warnings(plan: Plan, offline: bool) -> list[str]:
    table = plan.schedule(plan.steps or 100)
    found = [table.warning] if table.warning else []
    if not plan.resolved:
        found.append("offline: what is marked 'not resolved' is pinned when the recipe runs online")
    if plan.vocab is None:
        found.append("the vocabularies were not compared: a tokenizer is not in the cache")
    if plan.target.modality.own_view and not plan.recipe.prompts.image_column:
        found.append("prompts.image_column is not given: no prompt has an image, and nothing is learnt about them")
    proof = plan.target.proof
    if proof and proof not in {spec.kind for spec in plan.recipe.evaluate}:
        found.append(f"evaluate does not ask for {proof}: the run will not measure what a {plan.target.name} is for; add `- {{kind: {proof}}}`")
    if not plan.student.license and plan.student.config and not offline:  # a card is not asked for offline
        found.append(f"{plan.student.reference} states no licence: the card will say so")
    return found
