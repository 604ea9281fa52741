"""Whether a run fits a device, and the cheapest change of the recipe with which it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hubdistill.estimate.machines import GPUS, Machine
from hubdistill.estimate.memory import StageMemory, memory_of

if TYPE_CHECKING:
    from hubdistill.plan import Plan
    from hubdistill.recipe import Recipe


@dataclass(frozen=True)
class Change:
    """A change of the recipe that saves memory: `key=value` as it is written, and the recipe with it."""

    text: str
    apply: Callable[[Recipe], Recipe]
    useful: Callable[[Plan], bool]


def _set(block: str, **values: Any) -> Callable[[Recipe], Recipe]:
    return lambda recipe: recipe.model_copy(update={block: getattr(recipe, block).model_copy(update=values)})


def _resident(plan: Plan) -> bool:
    return plan.recipe.teacher.placement == "resident" and plan.recipe.train.distributed.strategy == "ddp"


def _more_than(size: int) -> Callable[[Plan], bool]:
    return lambda plan: plan.recipe.sampling.batch_size > size and plan.recipe.sampling.engine == "transformers"


# The cheapest first, in time: less at once costs little, a layer at a time costs most.
CHANGES = (
    *(Change(f"sampling.batch_size={size}", _set("sampling", batch_size=size), _more_than(size)) for size in (16, 8, 4, 1)),
    Change("train.micro_batch=1", _set("train", micro_batch=1), lambda plan: plan.recipe.train.micro_batch > 1),
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


def cheapest_fix(plan: Plan, machine: Machine) -> str | None:
    """Changes, as few and as cheap as will do, under which every stage fits; None where none do."""
    for changes in _tried(plan):
        changed = plan
        for change in changes:
            changed = replace(changed, loaded=replace(changed.loaded, recipe=change.apply(changed.recipe)))
        if not too_large(changed, machine, memory_of(changed, machine)):
            return " ".join(change.text for change in changes)
    return None


def _tried(plan: Plan) -> Iterator[list[Change]]:
    """One change after another, each alone, and then beside those before it that it does not replace."""
    useful = [change for change in CHANGES if change.useful(plan)]
    yield from ([change] for change in useful)
    together: dict[str, Change] = {}
    for change in useful:
        together[change.text.split("=")[0]] = change
        if len(together) > 1:
            yield list(together.values())


def smallest_gpu(plan: Plan) -> Machine | None:
    """The GPU with the least memory that the run fits on; None where it fits none."""
    fitting = (gpu for gpu in sorted(GPUS, key=lambda gpu: (gpu.memory, gpu.usd_per_hour or 1e9)) if not too_large(plan, gpu, memory_of(plan, gpu)))
    return next(fitting, None)
