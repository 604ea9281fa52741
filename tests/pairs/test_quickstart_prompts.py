"""The shipped quickstart prompts are what recipes/data/README.md says they are."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path

FILE = Path(__file__).parents[2] / "recipes" / "data" / "quickstart_prompts.jsonl"


def _prompts() -> list[str]:
    rows = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
    assert all(set(row) == {"prompt"} for row in rows)
    return [row["prompt"] for row in rows]


def test_seven_hundred_short_distinct_prompts() -> None:
    prompts = _prompts()
    assert len(prompts) == 700
    assert len({re.sub(r"\W+", " ", prompt).lower().strip() for prompt in prompts}) == 700
    assert all(5 <= len(prompt.split()) <= 30 for prompt in prompts)
    assert all(prompt == prompt.strip() and prompt.isprintable() for prompt in prompts)


def test_no_two_share_more_than_four_fifths_of_their_words() -> None:
    words = [set(re.findall(r"[a-z0-9']+", prompt.lower())) for prompt in _prompts()]
    alike = [(a, b) for a, b in combinations(words, 2) if len(a & b) > 0.8 * len(a | b)]
    assert alike == []
