"""What training tells about itself: sums over micro-batches and processes, turned into means once per log line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from hubdistill.files import write_atomically
from hubdistill.losses.contrastive import summarise, telemetry

if TYPE_CHECKING:
    from accelerate import Accelerator

    from hubdistill.losses.chunked import Responses, Tokens
    from hubdistill.losses.contrastive import LossPreset
    from hubdistill.losses.schedules import AlphaCurriculum


PADDING = ("padding", "input_tokens")


class Telemetry:
    """Adds up the method's quantities on the device; `take` moves them to the host in one transfer."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._sums: torch.Tensor | None = None
        self._beta = 0.0

    def add(self, tokens: Tokens, responses: Responses, preset: LossPreset, beta: float, *, padding: tuple[int, int] = (0, 1), weight: float = 1.0) -> None:
        """Add one micro-batch; one of nobody has weight 0, since all processes reduce the same sums. `padding`: tokens of the
        student's input that are padding, and all of them."""
        totals = telemetry(tokens, responses, preset)
        totals |= {name: totals["teacher/tokens"].new_tensor(count) for name, count in zip(PADDING, padding, strict=True)}
        values = torch.stack([value.float() for value in totals.values()]) * weight
        self._names, self._beta = list(totals), beta
        self._sums = values if self._sums is None else self._sums + values

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """Means since the last call, over all processes, and beta; empty before the first micro-batch."""
        if self._sums is None:
            return {}
        values = accelerator.reduce(self._sums, reduction="sum").tolist()
        self._sums = None
        totals = dict(zip(self._names, values, strict=True))
        padded, all_tokens = (totals.pop(name) for name in PADDING)
        return {"beta": self._beta, "padding": padded / all_tokens} | summarise(totals)


class RoundBookkeeping(TrainerCallback):
    """Moves the alpha curriculum's anchor at each step, saves it beside every checkpoint, and writes the metrics file."""

    STATE = "curriculum.json"

    def __init__(self, curriculum: AlphaCurriculum, metrics: Path, round: int, progress=None):
        self.curriculum, self.metrics, self.round, self.progress = curriculum, metrics, round, progress

    def on_train_begin(self, args, state, control, **kwargs):
        if self.progress and state.global_step:  # resumed
            self.progress(state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        self.curriculum.end_step()
        if self.progress:
            self.progress(1)

    def on_save(self, args, state, control, **kwargs):
        found = self.curriculum.state_dict()
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_atomically(folder / self.STATE, json.dumps(found).encode())

    def on_log(self, args, state, control, **kwargs):
        # The trainer's own history survives a resume, so the file is written from it and never holds a step twice.
        if state.is_world_process_zero:
            rows = [{"round": self.round, **row} for row in state.log_history if "train_runtime" not in row]
            write_atomically(self.metrics, metrics_lines(rows))


def metrics_lines(rows: list[dict[str, Any]]) -> bytes:
    """Rows as JSON lines."""
    return "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows).encode()
