"""The teacher while training: what it makes of responses, and its head. Loaded, or read back from files (states.py)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import torch

from hubdistill.losses.chunked import Head
from hubdistill.modalities.base import Batch, Reading
from hubdistill.models.load import head_of
from hubdistill.models.pair_attention import pair_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hubdistill.training.states import States


class Teacher(Protocol):
    """N response tokens of all rows of a batch together, D the teacher's hidden size."""

    @property
    def head(self) -> Head:
        """Turns hidden states into logits; on the device that the student trains on."""
        ...

    def hidden(self, batch: Batch, prompt_ids: Sequence[str]) -> torch.Tensor:
        """Hidden states (N, D) before the head, without grad; `prompt_ids` name the pairs of the batch."""
        ...


@dataclass(frozen=True)
class LoadedTeacher:
    """A model that reads the rows. All processes call it in step where it is spread over them."""

    model: PreTrainedModel
    reading: Reading
    device: torch.device  # the student's

    @cached_property
    def head(self) -> Head:
        # Kept: where the teacher has a device of its own, this is a copy of up to a gigabyte.
        return moved(head_of(self.model), self.device)

    @torch.no_grad()
    def hidden(self, batch: Batch, prompt_ids: Sequence[str]) -> torch.Tensor:
        with pair_attention(self.model) if batch.teacher.tree is not None else nullcontext():
            return self.reading.hidden(self.model, batch.teacher, batch.teacher_rows_N, batch.teacher_columns_N)


@dataclass(frozen=True)
class CachedTeacher:
    """A teacher that has read everything before; its model is not loaded."""

    head: Head
    by_teacher: States | None  # of the teacher's responses; None where the round does not train on them
    by_student: States | None

    def hidden(self, batch: Batch, prompt_ids: Sequence[str]) -> torch.Tensor:
        return torch.cat([states.of(prompt_id) for states in (self.by_teacher, self.by_student) if states for prompt_id in prompt_ids])


def moved(head: Head, device: torch.device) -> Head:
    """A head on a device."""
    return replace(head, weight=head.weight.to(device), bias=None if head.bias is None else head.bias.to(device))
