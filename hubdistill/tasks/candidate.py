"""Who a benchmark is asked of, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hubdistill.pairs.sampling import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Scores = dict[str, dict[str, float]]  # score -> question -> value, 0 to 1


def quiet(done: int, tokens: int = 0) -> None:
    """No progress."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Who is asked; its model is loaded when an answer is missing. `identity` is what its answers depend on besides the questions: weights,
    their format, adapter."""

    name: str
    load: Callable[[], AbstractContextManager[PreTrainedModel]]
    tokenizer: Any
    stop_ids: tuple[int, ...]
    identity: tuple[str, ...]
    vocab: int | None = None  # ids that may be said; all that the model has without it
    batch_size: int = 8
    start: Callable[[str, int, str], None] = lambda label, total, unit: None
    progress: Progress = quiet

    @property
    def chat(self) -> bool:
        """Whether it is asked through a chat template."""
        return bool(self.tokenizer.chat_template)


@dataclass(frozen=True)
class Scored:
    """`values` of the questions that could be scored; `notes` say what could not, and how programs ended."""

    values: Scores
    notes: tuple[str, ...] = ()
