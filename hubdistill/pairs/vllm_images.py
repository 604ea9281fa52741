"""Prompts with images, as vLLM takes them: one placeholder an image, which its own processor writes out again.

Our prompts are the ids that a model reads, with all tokens of each image. Both ways must end at the same ids, which the
worker checks before it samples (vllm_worker.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from hubdistill.errors import InputError
from hubdistill.pairs.store import Question

# Model types whose images are runs of one id, and which were compared with transformers token for token; not so Idefics3 and Gemma-3.
FAMILIES = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl")


@dataclass(frozen=True)
class Pictures:
    """Where a run keeps its images, and the id that stands for one in the prompts of a model."""

    folder: Path
    token: int

    def settings(self, questions: Sequence[Question]) -> dict[str, Any]:
        """What vLLM must know before it starts; its processor wants a tokenizer."""
        return {"limit_mm_per_prompt": {"image": max(1, *(len(question.images) for question in questions))}, "skip_tokenizer_init": False}

    def of(self, question: Question) -> dict[str, Any]:
        """What the worker is told of a prompt's images; nothing where it has none. Raises InputError where they cannot be told apart."""
        if not question.images:
            return {}
        return {"images": list(question.images), "short_ids": self._short(question)}

    def _short(self, question: Question) -> list[int]:
        runs = [(token, len(list(group))) for token, group in groupby(question.prompt_ids)]
        lengths, images = [length for token, length in runs if token == self.token], len(question.images)
        each = sum(lengths) // images  # of images without a gap between them, which then must be of one size
        if len(lengths) != images and any(length % each for length in lengths):
            raise InputError(f"sampling.engine: in prompt {question.prompt_id}, {images} images stand in {len(lengths)} places and differ in size, and vLLM could not tell them apart; write `sampling.engine: transformers`")
        short: list[int] = []
        for token, length in runs:
            short += [token] * (length if token != self.token else 1 if len(lengths) == images else length // each)
        return short
