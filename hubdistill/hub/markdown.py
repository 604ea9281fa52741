"""Escaping of outside text for a card's Markdown: what is not of type `Markdown` is escaped when it is printed."""

from __future__ import annotations

import re
from typing import Any

# Control, zero-width and bidirectional characters: they hide or reorder text and have no place in a card.
_INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\xad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]+")
_SPECIAL = re.compile(r"([\\`*_\[\]|~$])")
_BLOCK_START = re.compile(r"^(?=[#+=-])|^(\d+)(?=[.)](?:\s|$))")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_URL = re.compile(r"https://[A-Za-z0-9.-]+(?:/[A-Za-z0-9._~/%#?=&+-]*)?")


class Markdown(str):
    """Text that is Markdown already and is printed as it is."""

    __slots__ = ()


def one_line(value: object, limit: int = 500) -> str:
    """`value` as one line of visible characters, shortened to `limit` characters."""
    line = " ".join(_INVISIBLE.sub(" ", str(value)).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def flat(value: Any) -> Any:
    """`value` with every text inside as one line, for metadata: a line of --- would end it for some readers."""
    if isinstance(value, dict):
        return {one_line(key): flat(one) for key, one in value.items()}
    if isinstance(value, list):
        return [flat(one) for one in value]
    return one_line(value) if isinstance(value, str) else value


def text(value: object) -> Markdown:
    """Outside text as plain Markdown text: no HTML, emphasis, link, table cell, heading or list can start in it."""
    if isinstance(value, Markdown):
        return value
    line = _SPECIAL.sub(r"\\\1", one_line(value))
    line = re.sub("[&<>]", lambda found: _ENTITIES[found[0]], line)
    return Markdown(_BLOCK_START.sub(lambda found: f"{found[1]}\\" if found[1] else "\\", line))


def code(value: object) -> Markdown:
    """Outside text as inline code, fenced by more backticks than it holds; not for table cells."""
    line = one_line(value, 200)
    if not line:
        return Markdown("")
    fence = "`" * (longest_run(line) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return Markdown(f"{fence}{pad}{line}{pad}{fence}")


def cell(value: object) -> Markdown:
    """Outside text as inline code in a table; as plain text where a pipe would end the cell inside the code."""
    return text(value) if "|" in str(value) else code(value)


def block(content: str, language: str = "") -> Markdown:
    """A fenced code block, its fence longer than any run of backticks inside."""
    fence = "`" * max(3, longest_run(content) + 1)
    return Markdown(f"{fence}{language}\n{content.rstrip()}\n{fence}")


def link(label: object, url: object) -> Markdown:
    """A link; only the label where `url` is not a plain https address."""
    return Markdown(f"[{text(label)}]({url})") if _URL.fullmatch(str(url)) else text(label)


def longest_run(content: str) -> int:
    """Length of the longest run of backticks."""
    return max((len(run) for run in re.findall("`+", content)), default=0)
