"""The forecast of a run on a device: does it fit, how long does it take, what does it cost. `hubdistill plan` prints it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from hubdistill.errors import DoesNotFit, InputError
from hubdistill.estimate.costs import Rates, disk_of, dollars, guessed, probed, seconds_of
from hubdistill.estimate.fit import cheapest_fix, held, smallest_gpu, too_large
from hubdistill.estimate.machines import GIB, GPUS, Machine, gpu_named, priced, this_machine
from hubdistill.estimate.memory import Sizes, StageMemory, memory_of

if TYPE_CHECKING:
    from hubdistill.plan import Plan
    from hubdistill.probe import Probed

SMALL = 100  # a device with so many times the memory of the teacher's weights is not asked whether a run fits when it starts


@dataclass(frozen=True)
class Forecast:
    """What a run takes of a machine at most; `measured` are the bytes that a probe found, by stage."""

    plan: Plan
    machine: Machine
    chosen: bool  # whether the run would be on it: named, or the device that is here
    stages: list[StageMemory]
    rates: Rates
    measured: Mapping[str, int]

    def taken(self, stage: StageMemory) -> int:
        """Bytes of a stage: as measured where the probe did."""
        return max(self.measured.get(stage.name, 0), 0) or held(stage, self.plan, self.machine)

    @property
    def peak(self) -> StageMemory:
        return max(self.stages, key=self.taken)

    @property
    def fits(self) -> bool:
        return self.taken(self.peak) <= self.machine.memory

    def require_fit(self) -> None:
        """Raises DoesNotFit with the cheapest change of the recipe, and the smallest GPU that does."""
        if problem := self.problem() if self.chosen else None:
            raise DoesNotFit(problem)

    def problem(self) -> str | None:
        """What does not fit, and what would; None where all does."""
        if self.fits:
            return None
        fix, gpu = cheapest_fix(self.plan, self.machine), smallest_gpu(self.plan)
        ways = [f"the cheapest change with which it does: {fix.text}{self._slower(fix.plan)}"] if fix else ["no setting of the recipe changes that"]
        ways += [f"the smallest GPU of the table that it fits as it is: {gpu.name}"] if gpu else []
        return f"{self.peak.name} takes {gib(self.taken(self.peak))} at most, and {self.machine.name} has {gib(self.machine.memory)}; {'; '.join(ways)}"

    def _slower(self, changed: Plan) -> str:
        times = [seconds_of(plan, guessed(plan, self.machine)) for plan in (self.plan, changed)]
        ratio = sum(times[1].values()) / sum(times[0].values()) if times[0] and times[1] else 1
        return f" (about {ratio:.1f} times as long)" if ratio >= 1.1 else ""

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, for `plan --json`: bytes at most; seconds and US dollars as guessed or probed."""
        seconds = seconds_of(self.plan, self.rates)
        return {
            "machine": asdict(self.machine),
            "memory": [{"stage": stage.name, "bytes": held(stage, self.plan, self.machine), "parts": stage.parts, "other_device": stage.other_device,
                        "measured": self.measured.get(stage.name)} for stage in self.stages],
            "fits": self.fits,
            "disk": disk_of(self.plan, self.machine.kind),
            "seconds": seconds,
            "usd": dollars(self.machine, seconds),
            "gpus": [_on(self.plan, self.machine if gpu.name == self.machine.name else gpu) for gpu in GPUS],
        }  # fmt: skip


def forecast(plan: Plan, gpu: str | None = None, usd_per_hour: float | None = None, found: Probed | None = None) -> Forecast:
    """On a GPU of the table, or on the device that the recipe would use here. Where that is a CPU which is too small and
    which nobody asked for, on the smallest GPU that will do. Raises InputError for a config that no model can be made of."""
    machine, chosen = (gpu_named(gpu), True) if gpu else _here(plan)
    if not chosen and (teacher_alone(plan, machine) > machine.memory or too_large(plan, machine, memory_of(plan, machine))):
        machine = smallest_gpu(plan) or machine
    machine = priced(machine, usd_per_hour)
    stages = memory_of(plan, machine)
    rates = probed(plan, machine, found) if found else guessed(plan, machine)
    return Forecast(plan, machine, chosen, stages, rates, measured_bytes(plan, machine, found, stages) if found else {})


def memory_problem(plan: Plan) -> str | None:
    """What of a run may not fit the device that is here, for who starts it; None where all does, where models are too small for it to be
    worth the seconds, and where no forecast can be made of their architecture."""
    machine, _ = _here(plan)
    try:
        if SMALL * teacher_alone(plan, machine) < machine.memory:
            return None
        return Forecast(plan, machine, True, memory_of(plan, machine), guessed(plan, machine), {}).problem()
    except InputError:
        return None


def teacher_alone(plan: Plan, machine: Machine) -> int:
    """Bytes of the teacher's weights, which some stage holds: quickly found."""
    return Sizes(plan, machine.kind).weights("teacher")


def _here(plan: Plan) -> tuple[Machine, bool]:
    """The device that is here, and whether that is the one the recipe means."""
    device = plan.recipe.train.device
    try:
        machine = this_machine(device)
    except InputError:  # the recipe names a device that this machine does not have
        return this_machine("cpu"), False
    return machine, device != "auto" or machine.kind != "cpu"


def measured_bytes(plan: Plan, machine: Machine, found: Probed, stages: list[StageMemory]) -> dict[str, int]:
    """What a probe measured, with keys and values of the tokens that it did not sample."""
    known = {stage.name: stage for stage in stages}
    sizes = {name: (peaks.main if machine.kind == "cpu" else peaks.device) for name, peaks in found.memory.items()}
    length = plan.recipe.prompts.max_tokens + plan.recipe.sampling.max_tokens
    missing = 1 - (plan.recipe.prompts.max_tokens + found.sampled) / length
    return {name: size + int(known[name].parts.get("keys and values", 0) * missing) for name, size in sizes.items() if size}


def _on(plan: Plan, gpu: Machine) -> dict[str, Any]:
    stages, seconds = memory_of(plan, gpu), seconds_of(plan, guessed(plan, gpu))
    return {"name": gpu.name, "memory": gpu.memory, "takes": max(held(stage, plan, gpu) for stage in stages), "fits": not too_large(plan, gpu, stages),
            "seconds": sum(seconds.values()) if seconds else None, "usd": dollars(gpu, seconds), "usd_per_hour": gpu.usd_per_hour}  # fmt: skip


def gib(size: float) -> str:
    """Bytes for people."""
    return f"{size / GIB:.1f} GiB"
