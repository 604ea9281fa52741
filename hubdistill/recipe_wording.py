"""Turns what pydantic reports about a recipe into sentences for people: the key, what is wrong, and the fix."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from hubdistill.yaml_lines import Document, Mark, Path, show

Blocks = Mapping[str, type[BaseModel]]  # top-level key -> the model of its block

# Names from other trainers, tried where plain spelling distance finds nothing.
_OTHER_NAMES = {
    "lr": "learning_rate", "r": "rank", "lora_alpha": "alpha", "epochs": "rounds", "num_train_epochs": "rounds", "batch_size": "pairs_per_step",
    "max_new_tokens": "max_tokens", "max_length": "max_tokens", "target_modules": "modules", "path": "dataset", "name": "dataset", "repo_id": "repo",
    "hub_model_id": "repo", "model_name_or_path": "model", "torch_dtype": "dtype", "report_to": "tracker", "max_samples": "count", "method": "preset",
    "field": "column", "type": "kind", "skew": "alpha", "subset": "config",
}  # fmt: skip
_PATTERN_FIXES = {
    "repo": "write ORG/NAME, for example me/Qwen2-1.5B-distilled-lora",
    "base_repo": "write ORG/NAME, for example me/Qwen2-1.5B-pruned",
    "device": "write auto, cpu, mps, cuda or cuda:0",
    "tag": "use letters, digits, '.', '_' and '-', for example v1.0",
}
_BOUNDS = {
    "greater_than_equal": ("ge", "must be at least {}"),
    "greater_than": ("gt", "must be more than {}"),
    "less_than_equal": ("le", "must be at most {}"),
    "less_than": ("lt", "must be less than {}"),
}


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant, or None."""
    known = {name.lower().replace("-", "_"): name for name in names}
    clean = word.lower().replace("-", "_").strip()
    found = difflib.get_close_matches(clean, known, n=1, cutoff=0.6)
    return known.get(clean) or (known[found[0]] if found else None)


def unknown_key(key: str, siblings: Iterable[str], blocks: Blocks) -> str:
    """The message for a key that its block does not have."""
    names = list(siblings)
    guess = nearest(key, names) or (_OTHER_NAMES.get(key) if _OTHER_NAMES.get(key) in names else None)
    if guess:
        return f"unknown key; did you mean '{guess}'?"
    home = next((block for block, model in blocks.items() if key in model.model_fields), None)
    if home:
        return f"unknown key here; did you mean '{home}.{key}'?"
    return f"unknown key; remove it, or use one of: {', '.join(names)}"


def field_model(annotation: Any) -> type[BaseModel] | None:
    """The block that a field holds, through `| None` and `tuple[X, ...]`; None for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in typing.get_args(annotation) if (model := field_model(part))), None)


def expected(annotation: Any, many: bool = False) -> str:
    """What a field wants, in words: "a whole number or a list of whole numbers"."""
    plain = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    if annotation in plain:
        word = plain[annotation]
        return (
            word + "s" * (annotation in (int, float)) if many else f"a {word}" if annotation in (int, float) else word
        )
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return f"one of: {', '.join(map(str, args))}"
    if origin is tuple:
        size = "" if args[-1] is Ellipsis else f"{len(args)} "
        items = "blocks" if field_model(args[0]) else expected(args[0], many=True)
        return f"a list of {size}{items}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(expected(part) for part in args if part is not type(None))
    if origin is typing.Annotated:
        return expected(args[0])
    return "a block of keys"


def got(value: Any) -> str:
    """The value that was found, in words."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the text '{show(value)}'"
    if isinstance(value, tuple | list):
        return "a list"
    return "a block of keys" if isinstance(value, dict) else show(value)


def wrong_type(annotation: Any, value: Any, mark: Mark) -> str:
    """ "wants a number, got the text '5'; remove the quotes" and its relatives."""
    return f"wants {expected(annotation)}, got {got(value)}; {_type_fix(annotation, value, mark)}"


def _type_fix(annotation: Any, value: Any, mark: Mark) -> str:
    wants = expected(annotation)
    if isinstance(value, str) and mark.quoted and "number" in wants and _is_number(value):
        return "remove the quotes"
    if isinstance(value, str) and "true or false" in wants:
        return "write true or false, without quotes"
    if "text" in wants and isinstance(value, bool | int | float):
        return f"put it in quotes: '{mark.raw}'"
    if "list" in wants and isinstance(value, str | int | float) and field_model(annotation) is None:
        return f"put it in brackets: [{show(mark.raw)}]"
    if "list" in wants:
        return "write a list: [{kind: divergence}]" if field_model(annotation) else "write a list in brackets: [a, b]"
    if "block" in wants:
        return "write its keys below it, indented, or as {key: value}"
    if "whole" in wants and isinstance(value, float):
        return "write it without a decimal point or exponent"
    if "number" in wants and isinstance(value, str):
        return (
            "write a plain decimal number such as 10 (no units, no '_', no leading 0)"
            if "whole" in wants
            else "write a plain decimal number such as 0.5 or 5e-5"
        )
    return f"write {wants}"


def _is_number(text: str) -> bool:
    from hubdistill.yaml_lines import resolve_scalar

    return isinstance(resolve_scalar(text), int | float) and not isinstance(resolve_scalar(text), bool)


def sentence(error: Mapping[str, Any], name: str, field: FieldInfo | None, mark: Mark) -> str:
    """One pydantic error as a sentence; `name` is the last key of its path and `field` its definition, if there is one."""
    kind, value, ctx = error["type"], error["input"], error.get("ctx", {})
    annotation = field.annotation if field else None
    if kind == "missing":
        return f"missing; add it: {field.description}" if field and field.description else "missing; add this block"
    if kind == "literal_error" and isinstance(value, str):
        return _not_one_of(value, _choices(annotation))
    if kind in _BOUNDS:
        limit, words = _BOUNDS[kind]
        return f"{words.format(_plain(ctx[limit]))}, got {mark.raw or got(value)}; change the number"
    if kind == "finite_number":
        return f"wants a finite number, got {show(mark.raw) or got(value)}; write a plain number"
    if kind == "string_pattern_mismatch":
        return f"'{show(value)}' does not fit; {_PATTERN_FIXES.get(name, 'must match ' + str(ctx.get('pattern')))}"
    if kind == "string_too_short" or (kind == "too_short" and not value):
        return "must not be empty; write a value or remove the key"
    if kind == "string_too_long":
        return f"is longer than {ctx['max_length']} characters; shorten it"
    if kind in ("value_error", "hubdistill"):
        return str(ctx["error"]) if "error" in ctx else error["msg"]
    return wrong_type(annotation, value, mark)


def _plain(number: float) -> str:
    return f"{number:g}" if abs(number) < 1e6 else str(number)


def _choices(annotation: Any) -> list[str]:
    if typing.get_origin(annotation) is typing.Literal:
        return [str(choice) for choice in typing.get_args(annotation)]
    return [choice for part in typing.get_args(annotation) for choice in _choices(part)]


def _not_one_of(value: str, choices: list[str]) -> str:
    guess = nearest(value, choices)
    hint = f"did you mean '{guess}'?" if guess else "choose one of these"
    return f"'{show(value)}' is not one of: {', '.join(choices)}; {hint}"


def known_path(loc: tuple[Any, ...], document: Document) -> tuple[Path, tuple[Any, ...]]:
    """Split a pydantic location into the path that the document has, and the rest (union tags, a missing key)."""
    for end in range(len(loc), -1, -1):
        if loc[:end] in document.marks:
            return loc[:end], loc[end:]
    return (), loc
