"""Whether a run fits a device, and the cheapest change of the recipe with which it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hubdistill.estimate.machines import GIB, GPUS, Machine
from hubdistill.estimate.memory import StageMemory, memory_of

if TYPE_CHECKING:
    from hubdistill.plan import Plan
    from hubdistill.recipe import Recipe


CLASS = 8 * GIB


@dataclass(frozen=True)
class Change:
    """A change of the recipe that saves memory: `key=value` as it is written, and the recipe with it."""

    text: str
    apply: Callable[[Recipe], Recipe]
    useful: Callable[[Plan], bool]

    @property
    def key(self) -> str:
        return self.text.split("=")[0]


def _set(block: str, **values: Any) -> Callable[[Recipe], Recipe]:
    return lambda recipe: recipe.model_copy(update={block: getattr(recipe, block).model_copy(update=values)})


def _resident(plan: Plan) -> bool:
    return plan.recipe.teacher.placement == "resident" and plan.recipe.train.distributed.strategy == "ddp"


def _more_than(size: int) -> Callable[[Plan], bool]:
    return lambda plan: plan.recipe.sampling.batch_size > size and plan.recipe.sampling.engine == "transformers"


def _more_pairs_than(size: int) -> Callable[[Plan], bool]:
    def useful(plan: Plan) -> bool:
        train = plan.recipe.train
        return train.micro_batch > size and train.pairs_per_step % (size * plan.processes) == 0

    return useful


# The cheapest first, in time: less at once costs little, a layer at a time costs most.
CHANGES = (
    *(Change(f"sampling.batch_size={size}", _set("sampling", batch_size=size), _more_than(size)) for size in (32, 16, 8, 4, 2, 1)),
    *(Change(f"train.micro_batch={size}", _set("train", micro_batch=size), _more_pairs_than(size)) for size in (8, 4, 2, 1)),
    Change("train.gradient_checkpointing=true", _set("train", gradient_checkpointing=True), lambda plan: not plan.recipe.train.gradient_checkpointing),
    Change("teacher.placement=cached", _set("teacher", placement="cached"), _resident),
    Change("teacher.placement=offload", _set("teacher", placement="offload"), _resident),
)  # fmt: skip


def held(stage: StageMemory, plan: Plan, machine: Machine) -> int:
    """Bytes that a stage takes of the device: on a CPU the processes share the memory."""
    shared = plan.processes if machine.kind == "cpu" and stage.name in ("warm-up", "training", "the teacher reads") else 1
    return stage.total * shared


def too_large(plan: Plan, machine: Machine, stages: Sequence[StageMemory]) -> list[StageMemory]:
    """The stages that do not fit."""
    return [stage for stage in stages if held(stage, plan, machine) > machine.memory]


@dataclass(frozen=True)
class Fix:
    """Changes of a recipe, as they are written, and the plan with them."""

    text: str
    plan: Plan


def cheapest_fix(plan: Plan, machine: Machine) -> Fix | None:
    """Changes, as few and as cheap as will do, under which every stage fits; None where none do."""
    changes = next((changes for changes in _tried(plan) if _fits(plan, machine, changes)), None)
    if changes is None:
        return None
    changes = _relaxed(plan, machine, changes)
    return Fix(" ".join(change.text for change in changes), _changed(plan, changes))


def _changed(plan: Plan, changes: Sequence[Change]) -> Plan:
    for change in changes:
        plan = replace(plan, loaded=replace(plan.loaded, recipe=change.apply(plan.recipe)))
    return plan


def _fits(plan: Plan, machine: Machine, changes: Sequence[Change]) -> bool:
    changed = _changed(plan, changes)
    return not too_large(changed, machine, memory_of(changed, machine))


def _tried(plan: Plan) -> Iterator[list[Change]]:
    """One change after another, each alone, and then beside those before it that it does not replace."""
    useful = [change for change in CHANGES if change.useful(plan)]
    yield from ([change] for change in useful)
    together: dict[str, Change] = {}
    for change in useful:
        together[change.key] = change
        if len(together) > 1:
            yield list(together.values())


def _relaxed(plan: Plan, machine: Machine, changes: list[Change]) -> list[Change]:
    """The same, each left out or as mild as it can be beside the others."""
    for change in list(changes):
        for milder in (None, *(one for one in CHANGES if one.key == change.key and one.useful(plan))):
            others = [milder if one is change else one for one in changes]
            if milder is change or _fits(plan, machine, kept := [one for one in others if one]):
                changes = changes if milder is change else kept
                break
    return changes


def smallest_gpu(plan: Plan) -> Machine | None:
    """The GPU of the smallest class, of 16, 24, 40, ... GiB, that the run fits on, with a price if one has it; None where it fits none."""
    fitting = (gpu for gpu in sorted(GPUS, key=lambda gpu: (round(gpu.memory / CLASS), gpu.usd_per_hour or 1e9)) if not too_large(plan, gpu, memory_of(plan, gpu)))
    return next(fitting, None)
