"""Updating a card that is on the Hub already: hand-written text and metadata stay, ours is replaced."""

from __future__ import annotations

import re
from typing import Any

import yaml

from hubdistill.errors import InputError

START, END = "<!-- hubdistill:start -->", "<!-- hubdistill:end -->"
_METADATA = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)(?:\r?\n)?^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
# A marker counts only alone on its line: text inside a sentence or a code block cannot be taken for one.
_OURS = re.compile(rf"^{re.escape(START)}[ \t]*\r?$.*^{re.escape(END)}[ \t]*\r?$", re.DOTALL | re.MULTILINE)
_LICENSE = ("license", "license_name", "license_link")
_LARGEST = 1 << 20  # bytes of a card; the Hub shows no more


def split_card(card: str) -> tuple[dict[str, Any], str]:
    """Metadata and body of a card; raises InputError where the metadata is no YAML mapping."""
    if len(card) > _LARGEST:
        raise InputError("README.md is larger than 1 MiB. Shorten it, or replace it with --overwrite-card.")
    found = _METADATA.match(card)
    if found is None:
        return {}, card
    try:
        metadata = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 2}" if where else ""
        raise InputError(
            f"README.md: its metadata is not valid YAML{line}. Correct it on the Hub, or replace the card with --overwrite-card."
        ) from error
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, dict):
        raise InputError(
            "README.md: its metadata is not a mapping of keys to values. Correct it on the Hub, or replace the card with --overwrite-card."
        )
    return metadata, card[found.end() :]


def merge_card(existing: str, new: str, *, name: str = "") -> str:
    """`new` put into `existing`: the text between the markers is replaced, or appended where there are no markers yet.

    Results in the old `model-index` under `name` (our own, of an earlier push) go, even where the new card has none.
    """
    if not existing.strip():
        return new
    old_data, old_body = split_card(existing)
    new_data, new_body = split_card(new)
    ours = _OURS.search(new_body)
    if ours is None:
        raise InputError(
            f"the new card lacks the lines {START} and {END}; render it with hubdistill.hub.card.render_card."
        )
    block = ours[0].replace("\r", "")
    body, replaced = _OURS.subn(lambda _: block, old_body, count=1)
    if not replaced:
        body = f"{old_body.rstrip()}\n\n{block}\n" if old_body.strip() else f"\n{block}\n"
    return (
        f"---\n{dump(_merge_metadata(old_data, new_data, name))}---\n{body if body.startswith(chr(10)) else chr(10) + body}"
    )


def _merge_metadata(old: dict[str, Any], new: dict[str, Any], name: str) -> dict[str, Any]:
    """Facts of the run win; license, language and keys that only people set are kept; lists of tags and datasets grow."""
    kept = {*(_LICENSE if "license" in old else ()), *(("language",) if "language" in old else ())}
    merged = {**old, **{key: value for key, value in new.items() if key not in kept}}
    for key in ("tags", "datasets"):
        values = [*_items(old.get(key)), *_items(new.get(key))]
        if values:
            merged[key] = [value for n, value in enumerate(values) if value not in values[:n]]
    if "model-index" in old:
        merged["model-index"] = _merge_index(_items(old["model-index"]), _items(new.get("model-index")), name)
        if not merged["model-index"]:
            del merged["model-index"]
    return merged


def _merge_index(old: list[Any], new: list[Any], name: str) -> list[Any]:
    # A list and not a set: in a card that people wrote, a name can be anything, also what cannot be hashed.
    ours = [*filter(None, [name]), *(entry["name"] for entry in new)]
    return [entry for entry in old if not (isinstance(entry, dict) and entry.get("name") in ours)] + new


def _items(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def dump(metadata: dict[str, Any]) -> str:
    """Metadata as YAML; one way for new and merged cards, so that an unchanged card stays the same byte for byte."""
    return yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=float("inf"))
