"""ROUGE-L between a model's own response and the teacher's (rouge-score)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hubdistill.pairs.store import Response


def rouge_l(tokenizer: Any, own: Iterable[Response], teacher: Iterable[Response]) -> dict[str, float]:
    """Per-prompt ROUGE-L F1 (0 to 1), with stemming; prompts that only one side answered are left out."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    reference = {response.prompt_id: _text(tokenizer, response) for response in teacher}
    return {
        response.prompt_id: scorer.score(reference[response.prompt_id], _text(tokenizer, response))["rougeL"].fmeasure
        for response in own
        if response.prompt_id in reference
    }


def _text(tokenizer: Any, response: Response) -> str:
    return tokenizer.decode(list(response.response_ids), skip_special_tokens=True)
