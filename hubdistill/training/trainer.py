"""The distillation trainer: transformers' Trainer with the contrastive loss, through its public hooks only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback, TrainingArguments

from hubdistill.errors import TrainingError
from hubdistill.losses.budget import whole_budget
from hubdistill.losses.chunked import Head, Responses
from hubdistill.losses.contrastive import LossPreset, contrastive_loss, response_gaps
from hubdistill.losses.schedules import AlphaCurriculum, beta_at
from hubdistill.modalities.base import Batch, Reading, rows_of
from hubdistill.models.hardware import main_memory
from hubdistill.models.load import base_of, head_of
from hubdistill.models.pair_attention import pair_attention
from hubdistill.pairs.join import Pair, Pairs
from hubdistill.training.order import WorksAhead, loader
from hubdistill.training.reference import Likelihoods
from hubdistill.training.teachers import Teacher
from hubdistill.training.telemetry import Telemetry

if TYPE_CHECKING:
    from peft import PeftModel
    from torch.utils.data import DataLoader

LR_WARMUP = 0.1  # share of all steps of all rounds


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a round lies in the whole run; rounds count from 1."""

    round: int
    rounds: int

    def progress(self, step: float, steps: int) -> float:
        """Share of all rounds that is done after `step` of this round's `steps`."""
        return (self.round - 1 + step / max(steps, 1)) / self.rounds


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """What the loss needs besides the student: the teacher, how both read prompts, the common vocabulary, the settings."""

    teacher: Teacher
    reading: Reading
    vocab: int
    preset: LossPreset
    position: Position
    curriculum: AlphaCurriculum
    shared: frozenset[str] = frozenset()  # who reads the prompt of a pair once, of "teacher" and "student" (prefix.py)
    reference: Likelihoods | None = None  # where the loss is held against the student before the round

    def reference_logps(self, prompt_ids: Sequence[str]) -> torch.Tensor | None:
        """Log-probabilities (N,) of the tokens of a micro-batch before the round, in its order; None without a reference."""
        if self.reference is None:
            return None
        return torch.cat([part for side in zip(*(self.reference[one] for one in prompt_ids), strict=True) for part in side])


def learning_rate_factor(progress: float) -> float:
    """Linear warm-up over the first tenth of all rounds, then a cosine to zero (the paper does not name a schedule)."""
    if progress < LR_WARMUP:
        return progress / LR_WARMUP
    return 0.5 * (1 + math.cos(math.pi * (progress - LR_WARMUP) / (1 - LR_WARMUP)))


@dataclass(frozen=True)
class MicroBatch:
    """Pairs as rows: all teacher responses, then all student responses. Of `nobody` it has weight 0."""

    batch: Batch
    prompt_ids: tuple[str, ...]  # of the pairs
    nobody: bool = False


@dataclass(frozen=True)
class PairCollator:
    """Pairs -> micro-batch, of the sides that the loss trains on. Nobody's is that of `pairs[0]`: what goes through the
    motions must be of the usual kind."""

    reading: Reading
    pairs: Sequence[Pair]
    shared: frozenset[str] = frozenset()  # as Distillation's
    sides: tuple[bool, bool] = (True, True)

    def __call__(self, picked: Sequence[Pair | None]) -> dict[str, MicroBatch]:
        found = [pair for pair in picked if pair is not None]
        pairs = found or [self.pairs[0]]
        rows = rows_of(pairs, self.sides)
        return {"micro": MicroBatch(self.reading.collate(rows, self.shared), tuple(pair.prompt_id for pair in pairs), not found)}


class ContrastiveTrainer(WorksAhead, Trainer):
    """One round of DistiLLM-2: one pass over the round's pairs with eq. 2 of the paper.

    The loss is normalised over all pairs of an optimiser step (on all processes), so it does not depend on how they
    are cut into micro-batches.
    """

    loss_is_scaled_for_ga = True

    def __init__(self, model: PeftModel, args: TrainingArguments, pairs: Pairs, distillation: Distillation, *,
                 optimizer_state: dict[str, Any] | None = None, callbacks: Sequence[TrainerCallback] = ()):  # fmt: skip
        self.distillation = distillation
        self.telemetry = Telemetry()
        self._optimizer_state = optimizer_state
        self._step_size = (0, 0, 0)  # pairs, teacher-response tokens, student-response tokens in the optimiser step
        self._pairs = pairs
        super().__init__(model=model, args=args, train_dataset=pairs, callbacks=list(callbacks))  # type: ignore[arg-type]

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The pairs, dealt out to the processes."""
        settings = self.distillation
        once = settings.shared >= {"teacher", "student"}  # a prompt that one of them reads twice makes a row for each response
        lengths = getattr(self._pairs, "lengths" if once else "widths", [1] * len(self._pairs))  # a probe's are all of one
        return loader(self._pairs, PairCollator(settings.reading, self._pairs, settings.shared, settings.preset.sides), self.args, lengths)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """AdamW, continued from the previous round: its moments, not its learning rate."""
        optimizer = super().create_optimizer(model)
        if self._optimizer_state is not None:
            optimizer.load_state_dict(self._optimizer_state)
            for group in optimizer.param_groups:
                group["lr"] = self.args.learning_rate
                group.pop("initial_lr", None)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """One schedule over all rounds, entered where this round begins."""
        position, optimizer = self.distillation.position, optimizer or self.optimizer
        assert optimizer is not None, "the Trainer makes the optimiser first"
        self.lr_scheduler = LambdaLR(optimizer, lambda step: learning_rate_factor(position.progress(step + 0.5, num_training_steps)))
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_batch_samples(self, epoch_iterator, num_batches: int, device: torch.device):
        """Fetch the micro-batches of an optimiser step and count what they hold, on all processes."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = [0, 0, 0]
        for batch in (sample["micro"].batch for sample in samples if not sample["micro"].nobody):
            counts[0] += len(batch.lengths_B) // sum(self.distillation.preset.sides)
            counts[1] += int(batch.lengths_B[~batch.from_student_B].sum())
            counts[2] += int(batch.lengths_B[batch.from_student_B].sum())
        total = self.accelerator.reduce(torch.tensor(counts, device=device), reduction="sum")
        self._step_size = tuple(int(count) for count in total.tolist())  # type: ignore[assignment]
        return samples, None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; a student that reads prompts once does so from here to the last backward pass, which may run its blocks again."""
        with pair_attention(self.model) if "student" in self.distillation.shared else nullcontext():
            return super().train(*args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        """Eq. 2 on one micro-batch. Raises TrainingError with the prompt ids when it is not a finite number."""
        settings = self.distillation
        micro: MicroBatch = inputs["micro"]
        batch, device = micro.batch, self.args.device
        responses = Responses(
            student_ND=settings.reading.hidden(model, batch.student, batch.student_rows_N, batch.student_columns_N),
            teacher_ND=settings.teacher.hidden(batch, micro.prompt_ids).to(device),
            labels_N=batch.labels_N.to(device),
            lengths_B=batch.lengths_B,
            from_student_B=batch.from_student_B.to(device),
        )
        beta = beta_at(
            settings.preset.beta, round=settings.position.round, rounds=settings.position.rounds,
            step=self.state.global_step, steps=self.state.max_steps, end=settings.preset.beta_end,
        )  # fmt: skip
        pairs, *tokens = self._step_size
        loss, per_token = contrastive_loss(
            responses, self._student_head, settings.teacher.head, settings.preset, beta=beta,
            alpha=settings.curriculum.rule(), pairs=pairs, side_tokens=(tokens[0], tokens[1]), vocab=settings.vocab,
            whole_bytes=whole_budget(device.type, main_memory()), reference_logp_N=settings.reference_logps(micro.prompt_ids),
        )  # fmt: skip
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1} of round {settings.position.round}, on prompts "
                f"{', '.join(micro.prompt_ids)}; lower train.learning_rate and run again (the samples are kept)"
            )
        if not micro.nobody:
            settings.curriculum.observe(response_gaps(per_token, responses), responses.from_student_B)
        self.telemetry.add(per_token, responses, settings.preset, beta, padding=batch.student.padding, weight=float(not micro.nobody))
        # The Trainer's backward averages gradients over processes; the loss is already a share of the global sum.
        return loss * (0 if micro.nobody else self.accelerator.num_processes)

    @cached_property
    def _student_head(self) -> Head:
        # It is frozen; where it is spread over processes, it is gathered once.
        return head_of(base_of(self.model))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the method's telemetry since the last log."""
        super().log(logs | self.telemetry.take(self.accelerator), start_time)
