"""Writes docs/recipe.md and docs/recipe.schema.json from the blocks in specs.py, so that they cannot disagree.

python -m hubdistill.recipe_reference            # write both
python -m hubdistill.recipe_reference --check    # exit 1 when they are out of date
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from hubdistill.errors import MissingError
from hubdistill.recipe import Recipe, TargetChoice, target_options
from hubdistill.recipe_wording import expected, field_model, item_type, plain
from hubdistill.specs import LossSpec

DOCS = Path(__file__).resolve().parent.parent / "docs"
HEAD = """\
# The recipe

Every key that a recipe can have. This page is generated (`python -m hubdistill.recipe_reference`); edit `hubdistill/specs.py`.

A recipe is one YAML file. Unknown keys are errors. Paths are relative to the recipe. `hubdistill run RECIPE key=value`
overrides a value: `train.rounds=2`, `student.layers=[0, 2]`, `evaluate[0].kind=overlap`; `publish=null` puts a default back.
Editors check a recipe as you type with the schema in `recipe.schema.json`: put
`# yaml-language-server: $schema=PATH_OF_YOUR_CHECKOUT/docs/recipe.schema.json` in its first line.

YAML is read by the rules of YAML 1.2: `1e-5` is a number, and `no`, `010`, `1:30` and dates are text. Anchors, aliases,
tags, merge keys and `${VARIABLES}` are refused, as are more than 256 KiB.

"""
SCHEMA_URL = "https://json-schema.org/draft/2020-12/schema"
_LIMITS = {
    "ge": "at least {}",
    "gt": "more than {}",
    "le": "at most {}",
    "lt": "less than {}",
    "max_length": "at most {} characters",
}


def markdown() -> str:
    """The text of docs/recipe.md."""
    return HEAD + "\n".join(_block(name, field) for name, field in Recipe.model_fields.items())


def schema() -> str:
    """The text of docs/recipe.schema.json."""
    document = {"$schema": SCHEMA_URL, **Recipe.model_json_schema(mode="validation"), "title": "hubdistill recipe"}
    document["$defs"]["TargetChoice"] = {
        "anyOf": [_target_schema(kind, options) for kind, options in target_options().items()]
    }
    document["$defs"].pop("Spec", None)
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _target_schema(kind: str, options: type[BaseModel]) -> dict[str, Any]:
    """The flat form `{kind: text, ...options}` that a recipe writes."""
    found = options.model_json_schema()
    properties = {"kind": {"const": kind}, **found.get("properties", {})}
    return {
        "type": "object",
        "title": kind,
        "description": found.get("description", ""),
        "properties": properties,
        "required": ["kind", *found.get("required", [])],
        "additionalProperties": False,
    }


def _block(name: str, field: FieldInfo) -> str:
    model = field_model(field.annotation)
    many = " (a list of these)" if item_type(field.annotation) else ""
    need = "required" if field.is_required() else "optional"
    about = (model.__doc__ or "").strip() if model and model is not TargetChoice else field.description
    rows = list(_target_rows() if model is TargetChoice else _rows(model)) if model else []
    inner = "".join(_inner(f"{name}{'[]' * bool(many)}", model)) if model and model is not TargetChoice else ""
    return f"## `{name}`{many}, {need}\n\n{about}\n\n{_table(rows)}\n{inner}"


def _inner(name: str, model: type[BaseModel]) -> Iterator[str]:
    """The blocks inside a block, each under its whole name."""
    for key, field in model.model_fields.items():
        if block := field_model(field.annotation):
            yield f"\n### `{name}.{key}`, {'required' if field.is_required() else 'optional'}\n\n{(block.__doc__ or '').strip()}\n\n{_table(_rows(block))}\n"
            yield from _inner(f"{name}.{key}", block)


def _table(rows: Iterable[str]) -> str:
    return "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows])


def _target_rows() -> Iterator[str]:
    kinds = ", ".join(target_options())
    yield f"| `kind` | one of: {kinds} | required | {TargetChoice.model_fields['kind'].description} |"
    for kind, options in target_options().items():
        for row in _rows(options):
            yield row.replace("| `", f"| ({kind}) `", 1)


def _rows(model: type[BaseModel]) -> Iterator[str]:
    for key, field in model.model_fields.items():
        meaning = (field.description or "").replace("|", "\\|")
        yield f"| `{key}` | {_type(field)} | {_default(field, model)} | {meaning} |"


def _type(field: FieldInfo) -> str:
    limits = [
        words.format(plain(getattr(item, name)))
        for item in field.metadata
        for name, words in _LIMITS.items()
        if isinstance(getattr(item, name, None), int | float)
    ]
    return ", ".join([expected(field.annotation), *limits])


def _default(field: FieldInfo, model: type[BaseModel]) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if isinstance(field.default, BaseModel):
        return "see below"
    unset = "from the preset" if model is LossSpec else "not set"
    return unset if field.default is None else f"`{json.dumps(field.default)}`"


def main(arguments: list[str]) -> int:
    """Write the two files, or compare them with `--check`; returns the exit code. Raises MissingError outside a checkout."""
    if not DOCS.is_dir():
        raise MissingError(f"{DOCS} is not there; run this in a checkout of hubdistill")
    wanted = {DOCS / "recipe.md": markdown(), DOCS / "recipe.schema.json": schema()}
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" in arguments:
        for path in stale:
            print(f"{path} is out of date; run: python -m hubdistill.recipe_reference", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(wanted[path], encoding="utf-8")
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
