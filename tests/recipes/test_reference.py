"""docs/recipe.md and docs/recipe.schema.json are up to date, and the schema agrees with the reader."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hubdistill import recipe_reference
from hubdistill.recipe import Recipe
from hubdistill.shipped import list_recipes
from hubdistill.specs import QuestionsSpec
from hubdistill.yaml_lines import parse
from tests.recipes.test_corpus import BASE, Case, cases, with_base

SCHEMA: dict[str, Any] = json.loads((recipe_reference.DOCS / "recipe.schema.json").read_text(encoding="utf-8"))
ANNOTATIONS = {"title", "description", "default", "$schema", "$defs"}
TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}

LIMITS: dict[str, tuple[Any, Callable[[Any, Any], Any]]] = {  # keyword -> types it speaks of, the rule
    "minItems": (list, lambda value, limit: len(value) >= limit),
    "maxItems": (list, lambda value, limit: len(value) <= limit),
    "minLength": (str, lambda value, limit: len(value) >= limit),
    "maxLength": (str, lambda value, limit: len(value) <= limit),
    "pattern": (str, lambda value, limit: re.search(limit, value)),
    "minimum": ((int, float), lambda value, limit: value >= limit),
    "maximum": ((int, float), lambda value, limit: value <= limit),
    "exclusiveMinimum": ((int, float), lambda value, limit: value > limit),
    "exclusiveMaximum": ((int, float), lambda value, limit: value < limit),
}


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether `value` is valid; a small JSON-schema validator of its own, for the keywords that occur in ours."""
    return all(_holds(word, wanted, value, schema) for word, wanted in schema.items() if word not in ANNOTATIONS)


def _holds(word: str, wanted: Any, value: Any, schema: dict[str, Any]) -> bool:
    match word:
        case "$ref":
            return fits(value, SCHEMA["$defs"][wanted.removeprefix("#/$defs/")])
        case "anyOf":
            return any(fits(value, option) for option in wanted)
        case "type":
            return isinstance(value, TYPES[wanted]) and (wanted == "boolean" or not isinstance(value, bool))
        case "enum":
            return value in wanted
        case "const":
            return bool(value == wanted)
        case "properties":
            return not isinstance(value, dict) or all(
                fits(value[key], inner) for key, inner in wanted.items() if key in value
            )
        case "required":
            return not isinstance(value, dict) or set(wanted) <= set(value)
        case "additionalProperties":
            return wanted is False and (not isinstance(value, dict) or set(value) <= set(schema["properties"]))
        case "items":
            return not isinstance(value, list) or all(fits(item, wanted) for item in value)
        case "prefixItems":
            return not isinstance(value, list) or all(
                fits(item, inner) for item, inner in zip(value, wanted, strict=False)
            )
        case _ if word in LIMITS:
            kinds, holds = LIMITS[word]
            return isinstance(value, bool) or not isinstance(value, kinds) or bool(holds(value, wanted))
    raise AssertionError(f"the schema uses '{word}', which this validator does not know")


def test_the_files_are_up_to_date() -> None:
    assert recipe_reference.main(["--check"]) == 0, "run: python -m hubdistill.recipe_reference"


def test_a_stale_file_is_found_and_rewritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recipe_reference, "DOCS", tmp_path)
    assert recipe_reference.main(["--check"]) == 1
    assert "out of date" in capsys.readouterr().err
    assert recipe_reference.main([]) == 0
    assert recipe_reference.main(["--check"]) == 0
    (tmp_path / "recipe.md").write_text("old")
    assert recipe_reference.main(["--check"]) == 1


def test_every_key_has_a_row_with_a_meaning() -> None:
    text = (recipe_reference.DOCS / "recipe.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) >= 45
    for row in rows:
        meaning = row.rsplit(" | ", 1)[1].removesuffix(" |")
        assert len(meaning) > 10, row
    assert [line.split("`")[1] for line in text.splitlines() if line.startswith("## `")] == list(Recipe.model_fields)


def test_blocks_inside_blocks_have_their_keys_too() -> None:
    text = (recipe_reference.DOCS / "recipe.md").read_text(encoding="utf-8")
    section = text.partition("### `evaluate[].questions`, optional\n")[2].partition("\n#")[0]
    found = [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")]
    assert found == list(QuestionsSpec.model_fields)


@pytest.mark.parametrize("path", [recipe.path for recipe in list_recipes()], ids=lambda path: path.stem)
def test_shipped_recipes_fit_the_schema(path: Path) -> None:
    document = yaml.safe_load(re.sub(r"(?m)#.*$", "", path.read_text(encoding="utf-8")))
    assert fits(document, SCHEMA)


def structural(case: Case) -> bool:
    """Whether the case is wrong by types and names alone, which is what a schema can see."""
    signs = r"unknown key|wants (?!a finite)|missing;|not one of|: must (be|not)|does not fit|is longer than"
    return not case.overrides and any(re.search(signs, line) for line in case.expected)


@pytest.mark.parametrize("case", [case for case in cases("blocks.txt") if structural(case)], ids=lambda case: case.name)
def test_the_schema_refuses_what_the_reader_refuses(case: Case) -> None:
    document = json.loads(json.dumps(parse(with_base(case.lines), "a.yaml").value))
    assert not fits(document, SCHEMA)


def test_the_schema_takes_the_base_of_the_corpus() -> None:
    assert fits(yaml.safe_load(BASE), SCHEMA)
