"""Results by the length of the prompt as a table of the card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hubdistill.hub.markdown import Markdown, text
from hubdistill.hub.results import METRICS, SUBJECTS, in_words, interval, number


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """The table by the length of the prompt, and what it is of."""

    what: Markdown
    header: tuple[Markdown, ...]
    rows: tuple[tuple[Markdown, ...], ...]


def lengths(found: Sequence[Mapping[str, Any]]) -> Lengths | None:
    """The first metric by the length of the prompt, with how this adapter differs from what it started from; None where there is none."""
    if not found:
        return None
    one = found[0]
    subjects = [name for name in SUBJECTS if any(name in bucket["subjects"] for bucket in one["buckets"])]
    header = ("prompt tokens", "n", *(SUBJECTS[name] for name in subjects), "this adapter minus what it started from")
    rows = [[prompt_tokens(bucket), str(bucket["n"]), *(_mean(bucket["subjects"].get(name)) for name in subjects), _bucket_difference(bucket, one["better"])] for bucket in one["buckets"]]
    return Lengths(what=text(f"{METRICS[one['metric']]} on {one['on']} ({one['unit']}, {one['better']} is better)"), header=tuple(map(text, header)), rows=tuple(tuple(map(text, row)) for row in rows))


def prompt_tokens(bucket: Mapping[str, Any]) -> str:
    """The shortest and the longest prompt of a part."""
    return str(bucket["shortest"]) if bucket["shortest"] == bucket["longest"] else f"{bucket['shortest']} to {bucket['longest']}"


def _mean(found: Sequence[float] | None) -> str:
    return f"{number(found[0])} {interval(found[1], found[2])}" if found else "–"


def _bucket_difference(bucket: Mapping[str, Any], better: str) -> str:
    one = bucket["difference"]
    if one is None:
        return "–"
    return f"{'+' if one['value'] > 0 else ''}{number(one['value'])} {interval(one['low'], one['high'])}: {in_words(one['low'], one['high'], better, bucket['n'])}"
