"""Text: one tokenizer for both models, so teacher and student read the very same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hubdistill.errors import InputError
from hubdistill.modalities.base import Batch, Modality, Row

if TYPE_CHECKING:
    import torch


def encode_prompt(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Render the conversation up to where the assistant speaks, as token ids.

    Raises InputError when the tokenizer has no chat template, or the template refuses the messages.
    """
    from jinja2.exceptions import TemplateError

    if tokenizer.chat_template is None:
        raise InputError("the teacher's tokenizer has no chat template; use the instruction-tuned model as the teacher")
    try:
        return list(tokenizer.apply_chat_template([dict(message) for message in messages], add_generation_prompt=True, return_dict=True)["input_ids"])
    except TemplateError as problem:
        roles = ", ".join(message["role"] for message in messages)
        raise InputError(f"the teacher's chat template refuses a prompt with the roles {roles} ({problem}); use prompts that it accepts") from problem


def collate(rows: Sequence[Row], pad_id: int) -> Batch:
    """Rows [prompt | response], padded on the right (position ids are then 0, 1, 2, ... without being given)."""
    import torch

    width = max(len(row.prompt_ids) + len(row.response_ids) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    row_numbers, columns = [], []
    for i, row in enumerate(rows):
        end = len(row.prompt_ids) + len(row.response_ids)
        ids[i, :end] = torch.tensor(row.prompt_ids + row.response_ids)
        mask[i, :end] = 1
        row_numbers.append(torch.full((len(row.response_ids),), i))
        columns.append(torch.arange(len(row.prompt_ids), end))
    rows_N, columns_N = torch.cat(row_numbers), torch.cat(columns)
    inputs = {"input_ids": ids, "attention_mask": mask}
    return Batch(
        student=inputs,
        teacher=inputs,
        student_rows_N=rows_N,
        student_columns_N=columns_N - 1,
        teacher_rows_N=rows_N,
        teacher_columns_N=columns_N - 1,
        labels_N=ids[rows_N, columns_N],
        lengths_B=torch.tensor([len(row.response_ids) for row in rows]),
        from_student_B=torch.tensor([row.from_student for row in rows]),
    )


def hidden(model: torch.nn.Module, inputs: dict[str, torch.Tensor], rows_N: torch.Tensor, columns_N: torch.Tensor) -> torch.Tensor:
    """Hidden states (N, D) of the positions that predict the response tokens, before the head."""
    from hubdistill.models.load import last_hidden

    return last_hidden(model, **inputs)[rows_N, columns_N]


TEXT = Modality(name="text", encode_prompt=encode_prompt, collate=collate, hidden=hidden)
