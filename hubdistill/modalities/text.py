"""Text: both models read prompts through the teacher's tokenizer, so teacher and student read the very same rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hubdistill.errors import InputError
from hubdistill.modalities.base import Inputs, Modality, Side, TokenRow
from hubdistill.pairs.padding import padded

if TYPE_CHECKING:
    from hubdistill.models.sources import ModelFacts


def load_reader(facts: ModelFacts, teacher: Any = None) -> Any:
    """The model's tokenizer."""
    from hubdistill.models.load import load_tokenizer

    return load_tokenizer(facts)


def encode_prompt(tokenizer: Any, messages: Sequence[Mapping[str, Any]], images: Sequence[Any] = ()) -> list[int]:
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


def inputs(tokenizer: Any, rows: Sequence[TokenRow], pad_id: int, side: Side, open_image: Callable[[str], Any]) -> Inputs:
    """Padded ids and mask."""
    ids, mask = padded([row.ids for row in rows], pad_id, side)
    return Inputs({"input_ids": ids, "attention_mask": mask})


def arguments(model: Any, inputs: Inputs) -> dict[str, Any]:
    """The tokens, as they are."""
    return dict(inputs.tokens)


TEXT = Modality(name="text", own_view=False, pipeline_tag="text-generation", load_reader=load_reader, encode_prompt=encode_prompt, inputs=inputs, arguments=arguments,
                plain_arguments=arguments)  # fmt: skip
