"""Where the time of whole optimiser steps goes, as `hubdistill run` takes them: data, models, loss, optimiser, metrics, the trainer's own.

    python benchmarks/round_profile.py                                  # round 1 of the quickstart, on its own responses: minutes on 2 cores
    python benchmarks/round_profile.py --recipe RECIPE prompts.count=32 train.device=cuda

Samples as the recipe says, then times the training of round 1 by parts. Parts do not overlap: what one calls of another counts for the other.
On a CPU: CPU time of the process over all threads, kernel time included; on CUDA, where every part waits for the device, the wall clock.
The warm-up is left out (it changes the adapter, not what a step costs), and so are the files that are written after the last step.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import date
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: its threads would spin, and spinning is CPU time

import torch

TRAINER = "the trainer's own"
MODELS_AND_LOSS = ("teacher, forward", "student, forward", "loss and its gradient", "student, backward")


class Clock:
    """Seconds of each part, without those of parts that it calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._running: list[str] = []
        self._since = 0.0

    def _now(self) -> float:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def _turn(self) -> None:
        """Book what has passed on the innermost part."""
        now = self._now()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now

    def timed(self, work: Callable[..., Any], part: str | Callable[[], str]) -> Callable[..., Any]:
        """The same function with its time booked on a part; `part` may depend on when it is called. Outside the trainer's, nothing is booked."""

        def wrapped(*arguments: Any, **named: Any) -> Any:
            name = part if isinstance(part, str) else part()
            if not self._running and name != TRAINER:
                return work(*arguments, **named)
            self._turn()
            self._running.append(name)
            try:
                return work(*arguments, **named)
            finally:
                self._turn()
                self._running.pop()

        return wrapped


@contextmanager
def watched() -> Iterator[Clock]:
    """Every training of a round inside is timed."""
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer

    from hubdistill.modalities.base import Reading
    from hubdistill.training import trainer
    from hubdistill.training.telemetry import RoundBookkeeping, Telemetry

    clock = Clock()
    parts: list[tuple[Any, str, str | Callable[[], str]]] = [
        (trainer.ContrastiveTrainer, "train", TRAINER),
        (trainer.ContrastiveTrainer, "get_batch_samples", "data"),
        (Reading, "hidden", lambda: MODELS_AND_LOSS[torch.is_grad_enabled()]),
        (trainer, "contrastive_loss", MODELS_AND_LOSS[2]),
        (Accelerator, "backward", MODELS_AND_LOSS[3]),
        (Accelerator, "clip_grad_norm_", "optimiser"),
        (AcceleratedOptimizer, "step", "optimiser"),
        (AcceleratedOptimizer, "zero_grad", "optimiser"),
        (Telemetry, "add", "metrics and logging"),
        (trainer, "response_gaps", "metrics and logging"),
        (trainer.ContrastiveTrainer, "log", "metrics and logging"),
        (RoundBookkeeping, "on_step_end", "metrics and logging"),
        (trainer.ContrastiveTrainer, "_save_checkpoint", "checkpoints"),
    ]
    with ExitStack() as stack:
        stack.enter_context(patch.object(trainer.ContrastiveTrainer, "works_ahead", False))  # data made in a thread would be booked on what runs meanwhile
        for owner, name, part in parts:
            stack.enter_context(patch.object(owner, name, clock.timed(getattr(owner, name), part)))
        yield clock


def first_round(recipe: str, overrides: Sequence[str], folder: Path) -> tuple[Clock, int, str]:
    """Run a recipe to the end of its first round; parts, optimiser steps, and how its micro-batches are cut."""
    from hubdistill.console import ConsoleReporter, calm_libraries
    from hubdistill.hub.asked import Asked
    from hubdistill.plan import make_plan
    from hubdistill.run import Run
    from hubdistill.rundir import RunDirectory

    calm_libraries()
    plan, reporter = make_plan(Asked(recipe, ["warmup={kind: none}", *overrides]).load()), ConsoleReporter()
    with RunDirectory(folder, reporter.stage).locked() as directory, watched() as clock:
        Run(plan, directory, reporter).distil("train", 1)
    reporter.stop()
    steps = len((folder / "round_1" / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    train = plan.recipe.train
    return clock, steps, f"{plan.teacher.reference} teaches {plan.student.reference}, {train.pairs_per_step} pairs a step, {train.micro_batch} a micro-batch"


def table(seconds: dict[str, float], steps: int) -> list[str]:
    """Markdown; the last line is what is neither model nor loss."""
    whole = sum(seconds.values())
    outside = whole - sum(seconds.get(part, 0.0) for part in MODELS_AND_LOSS)
    lines = ["| part | time a step | share |", "|---|---|---|"]
    lines += [f"| {part} | {value / steps * 1e3:.1f} ms | {value / whole:.1%} |" for part, value in sorted(seconds.items(), key=lambda item: -item[1])]
    return [*lines, f"| *outside models and loss* | {outside / steps * 1e3:.1f} ms | {outside / whole:.1%} |", f"| *all, {steps} steps* | {whole / steps * 1e3:.1f} ms | |"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="quickstart", help="a shipped one or a file")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the recipe")
    args = parser.parse_intermixed_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        clock, steps, how = first_round(args.recipe, args.overrides, Path(folder) / "run")
    where = torch.cuda.get_device_name() if torch.cuda.is_initialized() else f"{args.threads} threads, {platform.machine()}"
    print(f"{date.today()}, {where}, torch {torch.__version__}: {how}\n")
    print("\n".join(table(clock.seconds, steps)))


if __name__ == "__main__":
    main()
