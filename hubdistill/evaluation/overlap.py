"""ROUGE-L between a model's own response and the teacher's (rouge-score)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from hubdistill.pairs.store import Response

WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+")


def rouge_l(tokenizer: Any, own: Iterable[Response], teacher: Iterable[Response]) -> dict[str, float]:
    """Per-prompt ROUGE-L F1 (0 to 1) over `Words`; prompts that only one side answered are left out."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=Words())
    reference = {response.prompt_id: _text(tokenizer, response) for response in teacher}
    return {
        response.prompt_id: scorer.score(reference[response.prompt_id], _text(tokenizer, response))["rougeL"].fmeasure
        for response in own
        if response.prompt_id in reference
    }


class Words:
    """Words in lower case, stemmed as rouge-score does where they are ASCII; each ideograph or kana is a word.

    rouge-score's own tokenizer drops every letter beyond a to z, so that two equal Chinese responses score 0.
    """

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self.stem = PorterStemmer().stem

    def tokenize(self, text: str) -> list[str]:
        return [self.stem(word) if word.isascii() and len(word) > 3 else word for word in WORD.findall(text.lower())]


def _text(tokenizer: Any, response: Response) -> str:
    return tokenizer.decode(list(response.response_ids), skip_special_tokens=True)
