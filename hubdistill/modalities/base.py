"""What a modality is: how prompts become token ids, pairs become batches, and a batch becomes hidden states."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Row:
    """One response to train or measure on."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    from_student: bool = False


@dataclass(frozen=True)
class Batch:
    """Rows ready for both models.

    Legend: B rows, N response tokens of all rows together. Each model has inputs and positions of its own, since
    in a vision model the prompt may take another number of tokens; the labels are shared.
    """

    student: dict[str, torch.Tensor]  # what the student's forward takes
    teacher: dict[str, torch.Tensor]
    student_rows_N: torch.Tensor  # row and column of the hidden state that predicts each response token
    student_columns_N: torch.Tensor
    teacher_rows_N: torch.Tensor
    teacher_columns_N: torch.Tensor
    labels_N: torch.Tensor
    lengths_B: torch.Tensor  # response tokens of each row
    from_student_B: torch.Tensor  # bool


@dataclass(frozen=True, kw_only=True)
class Modality:
    """Three functions; all else is shared by text and vision."""

    name: str
    # (tokenizer or processor, chat messages) -> token ids of the rendered prompt
    encode_prompt: Callable[[Any, Sequence[Mapping[str, str]]], list[int]]
    # (rows, pad id) -> Batch
    collate: Callable[[Sequence[Row], int], Batch]
    # (model, inputs, rows_N, columns_N) -> hidden states (N, D)
    hidden: Callable[..., torch.Tensor]
