"""Turns what pydantic reports about a recipe into sentences for people: the key, what is wrong, and the fix."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from hubdistill.yaml_lines import Document, KeyPath, Mark, resolve_scalar, show

Blocks = Mapping[str, type[BaseModel]]  # top-level key -> the model of its block

# Names from other trainers, tried where plain spelling distance finds nothing.
_OTHER_NAMES = {
    "lr": "learning_rate", "r": "rank", "lora_alpha": "alpha", "epochs": "rounds", "num_train_epochs": "rounds", "batch_size": "pairs_per_step",
    "max_new_tokens": "max_tokens", "max_length": "max_tokens", "target_modules": "modules", "path": "dataset", "name": "dataset", "repo_id": "repo",
    "hub_model_id": "repo", "model_name_or_path": "model", "torch_dtype": "dtype", "report_to": "tracker", "max_samples": "count", "method": "preset",
    "field": "column", "type": "kind", "skew": "alpha", "subset": "config",
}  # fmt: skip
# And of what is measured: 'rouge' is nearer to 'judge' than to what it means.
_OTHER_VALUES = {"rouge": "overlap", "rouge_l": "overlap", "rougel": "overlap", "perplexity": "divergence", "win_rate": "judge", "alpaca_eval": "judge", "alpacaeval": "judge", "mt_bench": "judge"}
# What other trainers call columns, without `_column`.
_COLUMNS = {"answer": "response", "answers": "response", "label": "response", "target": "response", "output": "response", "completion": "response", "reference": "response",
            "img": "image", "picture": "image", "kind": "type", "category": "type", "group": "type"}  # fmt: skip
_PROMPTS = ("question", "prompt", "text", "input", "message", "messages", "instruction")
_PATTERN_FIXES = {
    "repo": "write ORG/NAME, for example me/Qwen2-1.5B-distilled-lora",
    "base_repo": "write ORG/NAME, for example me/Qwen2-1.5B-pruned",
    "device": "write auto, cpu, mps, cuda or cuda:0",
    "tag": "use letters, digits, '.', '_' and '-', for example v1.0",
}
_WORDS = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "words"),
    bool: ("true or false", ""),
}
_LIST_EXAMPLES = {int: "[0, 2, 4]", float: "[0.01, 0.1]", str: "[q_proj, v_proj]"}
_STRING_FIXES = {
    "true or false": "write true or false, without quotes",
    "a whole number": "write a plain decimal number such as 10 (no units, no '_', no leading 0)",
    "a number": "write a plain decimal number such as 0.5 or 5e-5",
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
    if guess := _meant(key, names):
        return f"unknown key; did you mean '{guess}'?"
    home = next((block for block, model in blocks.items() if key in model.model_fields), None)
    if home:
        return f"unknown key here; did you mean '{home}.{key}'?"
    return f"unknown key; remove it, or use one of: {', '.join(names)}"


def _meant(key: str, names: list[str]) -> str | None:
    """The key that was probably meant. What columns are called is compared without `_column`, which makes all of them alike."""
    stem = key.removesuffix("_column")
    stems = {name.removesuffix("_column"): name for name in names if name.endswith("_column")}
    if stems and stem != key:
        return stems.get(_COLUMNS.get(stem, "")) or (stems[near] if (near := nearest(stem, stems)) else "column" if stem in _PROMPTS else None)
    other = _OTHER_NAMES.get(key)
    return nearest(key, names) or (other if other in names else None) or stems.get(_COLUMNS.get(key, key))


def field_model(annotation: Any) -> type[BaseModel] | None:
    """The block that a field holds, through `| None` and `tuple[X, ...]`; None for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in typing.get_args(annotation) if (model := field_model(part))), None)


def expected(annotation: Any) -> str:
    """What a field wants, in words: "a whole number or a list of whole numbers"."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in _WORDS:
        return _WORDS[annotation][0]
    if origin is typing.Literal:
        return f"one of: {', '.join(map(str, args))}"
    if origin is tuple:
        size = "" if args[-1] is Ellipsis else f"{len(args)} "
        return f"a list of {size}{_WORDS[args[0]][1] if args[0] in _WORDS else 'blocks'}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(expected(part) for part in args if part is not type(None))
    return expected(args[0]) if origin is typing.Annotated else "a block of keys"


def item_type(annotation: Any) -> Any:
    """X of `tuple[X, ...]`, through Annotated and unions; None when the field is no list."""
    if typing.get_origin(annotation) is tuple:
        return typing.get_args(annotation)[0]
    return next((item for part in typing.get_args(annotation) if (item := item_type(part)) is not None), None)


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
    """What was wanted, what was found, and what to write."""
    return f"wants {expected(annotation)}, got {got(value)}; {_type_fix(annotation, value, mark)}"


def _type_fix(annotation: Any, value: Any, mark: Mark) -> str:
    wants, item = expected(annotation), item_type(annotation)
    if isinstance(value, str) and mark.quoted and "number" in wants and _is_number(value):
        return "remove the quotes"
    if "text" in wants and isinstance(value, bool | int | float):
        return f"put it in quotes: '{show(mark.raw)}'"
    if item is str and isinstance(value, str):
        return f"put it in brackets: [{show(value)}]"
    if item is not None:
        return f"write a list in brackets, for example {_LIST_EXAMPLES.get(item, '[{kind: divergence}]')}"
    if "block" in wants:
        return "write its keys below it, indented, or as {key: value}"
    if "whole" in wants and isinstance(value, float):
        return "write it without a decimal point or exponent"
    if isinstance(value, str) and wants in _STRING_FIXES:
        return _STRING_FIXES[wants]
    return f"write {wants}"


def _is_number(text: str) -> bool:
    value = resolve_scalar(text)
    return isinstance(value, int | float) and not isinstance(value, bool)


def sentence(error: Mapping[str, Any], name: str, annotation: Any, about: str | None, mark: Mark) -> str:
    """One pydantic error as a sentence; `name`, `annotation` and `about` are those of the field at its path."""
    kind, value, ctx = error["type"], error["input"], error.get("ctx", {})
    if kind == "missing" and not isinstance(value, tuple):
        return f"missing; add it: {about}"
    if kind == "literal_error" and isinstance(value, str):
        return _not_one_of(value, _choices(annotation))
    if kind in _BOUNDS:
        limit, words = _BOUNDS[kind]
        return f"{words.format(plain(ctx[limit]))}, got {show(mark.raw) or got(value)}; change the number"
    if kind == "finite_number":
        return f"wants a finite number, got {show(mark.raw) or got(value)}; write a plain number"
    if kind == "string_pattern_mismatch":
        return f"'{show(value)}' does not fit; {_PATTERN_FIXES.get(name, 'must match ' + str(ctx.get('pattern')))}"
    if kind in ("string_too_short", "too_short") and not value:
        return "must not be empty; write a value or remove the key"
    if kind in ("too_short", "too_long", "missing"):
        return f"wants {expected(annotation)}, got a list of {len(value)}; write {_size(annotation)}"
    if kind == "string_too_long":
        return f"is longer than {ctx['max_length']} characters; shorten it"
    if kind == "value_error":
        return str(ctx["error"])
    if kind == "string_type" and value is None:
        return "has no value; write one, or remove the key"
    return str(error["msg"]) if kind == "hubdistill" else wrong_type(annotation, value, mark)


def _size(annotation: Any) -> int:
    if typing.get_origin(annotation) is tuple:
        return len(typing.get_args(annotation))
    return max((_size(part) for part in typing.get_args(annotation)), default=0)


def plain(number: float) -> str:
    """A limit without exponent: 2147483648, 0.5."""
    return f"{number:g}" if abs(number) < 1e6 else str(number)


def _choices(annotation: Any) -> list[str]:
    if typing.get_origin(annotation) is typing.Literal:
        return [str(choice) for choice in typing.get_args(annotation)]
    return [choice for part in typing.get_args(annotation) for choice in _choices(part)]


def _not_one_of(value: str, choices: list[str]) -> str:
    meant = _OTHER_VALUES.get(value.lower().replace("-", "_"))
    guess = meant if meant in choices else nearest(value, choices)
    hint = f"did you mean '{guess}'?" if guess else "choose one of these"
    return f"'{show(value)}' is not one of: {', '.join(choices)}; {hint}"


def known_path(loc: tuple[Any, ...], document: Document) -> tuple[KeyPath, tuple[Any, ...]]:
    """Split a pydantic location into the path that the document has, and the rest (union tags, a missing key)."""
    for end in range(len(loc), -1, -1):
        if loc[:end] in document.marks:
            return loc[:end], loc[end:]
    return (), loc
