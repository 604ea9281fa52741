"""Time, money and disk of a run, with every prompt and every response at its limit.

A matrix product with n weights takes 2 n operations a token. Frozen weights need no gradient of their own, so backward takes
as much as forward. P, R prompt and response tokens; V vocabulary, D hidden size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hubdistill.estimate.machines import Machine
from hubdistill.estimate.memory import Sizes
from hubdistill.estimate.weights import BYTES, count
from hubdistill.evaluation.budget import ROWS
from hubdistill.losses.contrastive import INTERLEAVED
from hubdistill.plan_checks import judgements

if TYPE_CHECKING:
    from hubdistill.models.sources import ModelFacts
    from hubdistill.plan import Plan
    from hubdistill.probe import Probed

FULL_PRECISION = 12  # how much slower products in float32 are on a GPU, about, for all of the table
REACHED = 0.4  # share of a device's peak products that training reaches; guessed, and what --probe replaces
READ = 0.6  # share of its peak bandwidth that decoding reaches
LAUNCH = {"cuda": 0.7e-3, "cpu": 0.0}  # seconds a layer and token in which transformers starts kernels: 20.7 ms over 30 layers (docs/benchmarks.md)
VLLM_BATCH = 256  # prompts that vLLM answers at once
EVALUATED = 3  # subjects at most: student, warm-up, distilled
START, DISK = 1.5, 1e9  # seconds of a stage besides its work, and bytes a second at which weights are read: guessed from runs of 135M models


@dataclass(frozen=True)
class Rates:
    """Seconds of the units that a run is made of."""

    pair: float  # a pair of training
    response: dict[str, float]  # who -> a response
    row: float  # a row of warm-up
    scored: float  # a held-out prompt of a subject: its own response and the teacher's, read by both


def guessed(plan: Plan, machine: Machine) -> Rates:
    """From the sizes of the models and the speed of the device."""
    sizes, recipe = Sizes(plan, machine.kind), plan.recipe
    student, teacher = sizes.counts("student"), sizes.counts("teacher")
    prompt, response, passes = recipe.prompts.max_tokens, recipe.sampling.max_tokens, 3 if recipe.train.gradient_checkpointing else 2

    def read(who: str, tokens: int, passes: int = 1, together: int = recipe.train.micro_batch) -> float:
        counts = sizes.counts(who)
        return passes * max(2 * counts.blocks * tokens / _speed(sizes, machine, who), counts.layers * LAUNCH[machine.kind] / together)

    def pair(who: str) -> int:
        return prompt + 2 * response if sizes.shared(who) else 2 * (prompt + response)

    vocab = plan.vocab or student.vocab
    products = 2 * response * vocab * (2 * student.hidden + teacher.hidden) / _speed(sizes, machine, "student")
    return Rates(
        pair=read("student", pair("student"), passes) + read("teacher", pair("teacher")) + 2 * products,
        response={who: _response(sizes, machine, who) for who in ("teacher", "student")},
        row=read("student", prompt + response, passes),
        scored=2 * (sum(read(who, prompt + response, together=ROWS) for who in ("student", "teacher")) + products),
    )


def _speed(sizes: Sizes, machine: Machine, who: str) -> float:
    """Operations a second."""
    slower = FULL_PRECISION if machine.kind == "cuda" and sizes.dtype(who) == "float32" else 1
    return machine.tflops * 1e12 * REACHED / slower


def _response(sizes: Sizes, machine: Machine, who: str) -> float:
    """Seconds of one response, in batches: each token reads the weights once for the whole batch."""
    recipe, counts = sizes.plan.recipe, sizes.counts(who)
    vllm = recipe.sampling.engine == "vllm"
    batch = VLLM_BATCH if vllm else recipe.sampling.batch_size
    if sizes.plan.most_prompts:
        batch = min(batch, sizes.plan.most_prompts)
    speed = _speed(sizes, machine, who)
    moved = sizes.weights(who) / (machine.gb_per_second * 1e9 * READ)
    token = max(moved, 2 * batch * (counts.blocks + counts.head) / speed, 0 if vllm else LAUNCH[machine.kind] * counts.layers)
    prompt = 2 * counts.blocks * recipe.prompts.max_tokens / speed
    return prompt + token * recipe.sampling.max_tokens / batch


def probed(plan: Plan, machine: Machine, found: Probed) -> Rates:
    """From what the probe measured; from guesses where it measured nothing."""
    recipe, rates = plan.recipe, guessed(plan, machine)
    pair = found.micro_batch / recipe.train.micro_batch
    batch = recipe.sampling.batch_size
    answered = {who: token * recipe.sampling.max_tokens / batch for who, token in found.token.items()}
    share = pair / rates.pair
    return Rates(pair, rates.response | answered, share * rates.row, share * rates.scored)


def seconds_of(plan: Plan, rates: Rates) -> dict[str, float] | None:
    """About how many seconds each kind of stage takes over the whole run, with nothing left out; None where the number of prompts is not known."""
    recipe, prompts = plan.recipe, plan.most_prompts
    if prompts is None:
        return None
    rounds, share = recipe.train.rounds, 1 / plan.processes
    asked = recipe.prompts.heldout * bool(recipe.evaluate)
    first, second = plan.preset.sides
    teacher_sets, student_sets, common_sets = _sets(plan)
    by_teacher, by_student, by_both = _responses(plan, prompts)
    each = min(prompts, recipe.train.prompts_per_round or prompts)
    most = recipe.train.tokens / (2 * recipe.sampling.max_tokens) if recipe.train.tokens else each * (first + second) / 2
    warm_up = 0.0 if recipe.warmup.kind == "none" else recipe.warmup.epochs * prompts * rates.row
    stages = teacher_sets + student_sets + 2 * common_sets + rounds + 1 + bool(warm_up) + EVALUATED * bool(asked)
    return {
        "loading": stages * (START + max(map(_file_bytes, (plan.teacher, plan.student))) / DISK),
        "sampling": ((by_teacher + by_both) * rates.response["teacher"] + (by_student + by_both) * rates.response["student"]) * (share if recipe.sampling.engine == "transformers" else 1),
        "warm-up": warm_up * share,
        "training": rounds * most * rates.pair * share,
        "evaluation": asked * (rates.response["teacher"] + EVALUATED * (rates.response["student"] + rates.scored)) + _judged(plan) * rates.response["student"],
    }


def _sets(plan: Plan) -> tuple[int, int, int]:
    """Response sets that are sampled over the whole run: the teacher's, the student's, and those that both write together."""
    recipe, preset, rounds = plan.recipe, plan.preset, plan.recipe.train.rounds
    first, second = preset.sides
    warm_up = recipe.warmup.kind == "sft" and recipe.warmup.responses == "teacher"
    teacher = (rounds if recipe.sampling.resample_teacher else 1) if first and preset.fixed_responses == "teacher" else int(warm_up)
    student = {"initial": 1, INTERLEAVED: 0}.get(preset.student_responses, rounds) if second else 0
    return teacher, student, rounds * preset.interleaved


def _judged(plan: Plan) -> float:
    """Answers that judges are shown, as responses of the rounds' length; how long a judge takes to compare them nobody here knows."""
    recipe = plan.recipe
    found = zip(judgements(recipe, plan.prompts, plan.questions), (one for one in recipe.evaluate if one.judge), strict=True)
    return sum((told["verdicts_at_most"] or 0) / 2 * one.max_tokens / recipe.sampling.max_tokens for told, one in found)


def _responses(plan: Plan, prompts: int) -> tuple[int, int, int]:
    """The same as responses: a set that serves all rounds has all prompts, another those of its round."""
    each, (teacher, student, common) = min(prompts, plan.recipe.train.prompts_per_round or prompts), _sets(plan)
    whole = plan.preset.student_responses == "initial"
    return teacher * (each if plan.recipe.sampling.resample_teacher else prompts), student * (prompts if whole else each), common * each


def _file_bytes(facts: ModelFacts) -> int:
    return count(facts).all * BYTES.get(str(facts.saved_dtype).removeprefix("torch."), 4)


def disk_of(plan: Plan, kind: str) -> dict[str, int]:
    """Bytes on disk at most: what is downloaded, and what the run directory holds."""
    sizes, recipe = Sizes(plan, kind), plan.recipe
    found = {f"download of the {who}": _file_bytes(facts) for who, facts in (("teacher", plan.teacher), ("student", plan.student_source)) if facts.kind == "hub"}
    rounds, adapter = recipe.train.rounds, sizes.adapter
    # Of each round the adapter and two moments are kept; two checkpoints with the same while it trains.
    found["adapters and optimiser"] = (rounds + 2) * adapter * 12 + adapter * 4
    if plan.most_prompts is None:
        return found
    length = recipe.prompts.max_tokens + recipe.sampling.max_tokens
    found["responses"] = sum(_responses(plan, plan.most_prompts)) * length * 4
    if recipe.teacher.placement == "cached":
        states = plan.most_prompts * recipe.sampling.max_tokens * sizes.counts("teacher").hidden * BYTES[sizes.dtype("teacher")]
        # Those of the teacher's responses stay; those of the student's go after their round.
        found["the teacher's hidden states"] = states * (1 + (rounds if recipe.sampling.resample_teacher else 1))
    return found


def hours(seconds: dict[str, float] | None) -> float | None:
    return None if seconds is None else sum(seconds.values()) / 3600


def dollars(machine: Machine, seconds: dict[str, float] | None) -> float | None:
    """US dollars at most; None where no price or no time is known. The Hub bills by the minute."""
    if machine.usd_per_hour is None or seconds is None:
        return None
    return math.ceil(sum(seconds.values()) / 60) / 60 * machine.usd_per_hour
