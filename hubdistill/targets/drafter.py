"""Target `drafter`: a small model learns to guess what a large one will say, for speculative decoding (section 6.4 of the paper)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from hubdistill.errors import InputError
from hubdistill.specs import EvaluationSpec, Spec
from hubdistill.targets import text
from hubdistill.targets.base import Outlook

if TYPE_CHECKING:
    from hubdistill.evaluation.heldout import HeldOut
    from hubdistill.evaluation.statistics import Measurement
    from hubdistill.models.sources import ModelFacts

TIMED = 8  # held-out prompts on which the passes of both models are timed before training


class DrafterOptions(Spec):
    """What to do where drafting cannot pay."""

    cannot_pay: Literal["stop", "ignore"] = Field("stop", description="`stop` ends the run before training where drafting would be slower than plain decoding even if every draft was accepted; `ignore` trains all the same.")


def check(teacher: ModelFacts, student: ModelFacts, options: DrafterOptions) -> list[str]:
    """Problems that make a drafter impossible, from the configs alone. That ids mean the same is compared by the plan."""
    problems = text.check(teacher, student, options)
    if problems or not (teacher.config and student.config):
        return problems
    rows = [facts.text_config.get("vocab_size") for facts in (teacher, student)]
    if rows[0] != rows[1]:
        problems.append(f"student.model: {student.reference} has {rows[1]} ids and its verifier {teacher.reference} has {rows[0]}; engines draft over one vocabulary alone, and chat tokens that the drafter lacks it can neither read nor propose; choose a drafter of the verifier's family")
    return problems or _check_models(teacher, student)


def _check_models(teacher: ModelFacts, student: ModelFacts) -> list[str]:
    """A drafter that is no smaller than its verifier gains nothing; and what was drafted in vain must be forgotten."""
    from hubdistill.models.layers import empty_model

    if teacher.trust_remote_code or student.trust_remote_code:
        return []
    sizes, problems = [], []
    for role, facts in (("teacher", teacher), ("student", student)):
        try:
            model = empty_model(facts, role)
        except InputError as problem:
            return [str(problem)]
        sizes.append(sum(weight.numel() for weight in model.parameters()))
        if model._is_stateful:  # transformers' own flag, by which it refuses assisted generation
            problems.append(f"{role}.model: {facts.reference} ({type(model).__name__}) keeps a running state that cannot go back over rejected drafts; choose a model with attention alone")
    return problems if problems or sizes[1] < sizes[0] else [
        f"student.model: {student.reference} has {sizes[1] / 1e6:.4g} M parameters and its verifier {teacher.reference} {sizes[0] / 1e6:.4g} M; a drafter must be smaller, or every draft costs more than the token itself"
    ]  # fmt: skip


def before(heldout: HeldOut, options: DrafterOptions) -> Outlook:
    """What a step of each costs here, and the acceptance from which drafting pays."""
    from hubdistill.evaluation.acceptance import measure_costs, outlook

    rows = list(heldout.teacher_responses.rows())
    with heldout.subjects[0].opened() as drafter:
        accepted = heldout.scorer.score(drafter, rows)["acceptance"]
        costs = measure_costs(heldout.scorer.teacher, drafter, [row.prompt_ids for row in rows[:TIMED]])
    said = outlook(costs, sum(accepted.values()) / len(accepted), len(accepted))
    stop = f"target: {said}. Choose a smaller drafter, or write `cannot_pay: ignore` under `target` where it is meant for another machine"
    return Outlook(stop=stop) if costs.break_even() is None and options.cannot_pay == "stop" else Outlook(note=said)


def evaluate(heldout: HeldOut, specs: tuple[EvaluationSpec, ...]) -> list[Measurement]:
    """What `text` measures, and decoding with each subject as drafter."""
    from hubdistill.evaluation.assisted import draft
    from hubdistill.evaluation.heldout import DRAFTED, summaries

    found = text.evaluate(heldout, specs)
    for spec in specs:
        if spec.kind == "acceptance":
            draft(heldout, spec.draft_tokens, spec.timed)
    return summaries(heldout, DRAFTED) + found


TARGET = replace(text.TARGET, name="drafter", options=DrafterOptions, check=check, evaluate=evaluate, before=before, proof="acceptance")
