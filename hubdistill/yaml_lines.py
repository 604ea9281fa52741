"""Reads the YAML of a recipe with a line number for every key, and refuses what a recipe never needs.

A recipe can come from a stranger's Hub repository, so there are no anchors or aliases (no "billion laughs"), no tags
(no `!!python/...`), no merge keys, and caps on size and depth. Plain scalars follow YAML 1.2's core rules, not 1.1's:
`1e-5` is a number; `no`, `010`, `1:30` and `2026-01-01` stay text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

MAX_BYTES = 256 * 1024
MAX_DEPTH = 20
MAX_VALUES = 5_000

KeyPath = tuple[str | int, ...]  # where a value is: ("evaluate", 0, "kind")

_WORDS: dict[str, Any] = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_WORDS |= {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,29})")  # longer ones stay text: a commit of 40 digits is not a number
_FLOAT = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]{0,29})(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,4})?")
_SPECIAL = re.compile(r"([-+]?)\.(inf|nan)", re.IGNORECASE)


class YamlProblem(Exception):
    """What makes the text unreadable as a recipe; `line` counts from 1."""

    def __init__(self, line: int, message: str):
        self.line = line
        super().__init__(message)


@dataclass(frozen=True)
class Mark:
    """Where a value was written, and how: `place` is `file:line` or `override '...'`."""

    place: str
    order: int
    raw: str = ""
    quoted: bool = False


@dataclass
class Document:
    """A parsed recipe: plain values (lists are tuples), a Mark per path, and the problems met so far as (path, text)."""

    value: Any = None
    marks: dict[KeyPath, Mark] = field(default_factory=dict)
    problems: list[tuple[KeyPath, Mark, str]] = field(default_factory=list)


def show(value: object, limit: int = 60) -> str:
    """`value` as safe, short text for a message: control characters escaped, long values cut."""
    text = repr(value)
    if isinstance(value, str):
        text = value if value.isprintable() else text[1:-1]
    return text if len(text) <= limit else text[:limit] + "..."


def dotted(path: KeyPath) -> str:
    """("evaluate", 0, "kind") -> "evaluate[0].kind"."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{show(part)}" if text else show(part)
    return text


def resolve_scalar(raw: str) -> Any:
    """The value of a plain (unquoted) scalar: None, bool, int, float (also inf and nan), or the text itself."""
    if raw in _WORDS:
        return _WORDS[raw]
    if _INT.fullmatch(raw):
        return int(raw)
    if _FLOAT.fullmatch(raw):
        return float(raw)
    special = _SPECIAL.fullmatch(raw)
    return float(special[1] + special[2]) if special else raw


def parse(text: str, source: str) -> Document:
    """Parse one YAML document; `source` is put before each line number. Raises YamlProblem when it cannot be read."""
    return _Builder(text, lambda line: f"{source}:{line}").document()


def parse_value(text: str, place: str) -> Document:
    """Parse the value of an override; every Mark has the same `place`. Raises YamlProblem when it cannot be read."""
    return _Builder(text, lambda line: place).document()


class _Builder:
    def __init__(self, text: str, place: Callable[[int], str]):
        self.text, self.place = text, place
        self.out = Document()
        self.values = 0
        self.events: Iterator[Any] = _events(text)

    def document(self) -> Document:
        next(self.events)  # StreamStart
        if isinstance(next(self.events), yaml.StreamEndEvent):
            return self.out
        self.out.value = self.node(next(self.events), ())
        next(self.events)  # DocumentEnd
        after = next(self.events)
        if isinstance(after, yaml.DocumentStartEvent):
            raise YamlProblem(
                _line(after), "a second YAML document starts here; keep one recipe per file, remove '---'"
            )
        return self.out

    def node(self, event: Any, path: KeyPath) -> Any:
        """Build the value that starts with `event`; its Mark is set unless its key already set one."""
        self.values += 1
        if self.values > MAX_VALUES:
            raise YamlProblem(_line(event), f"more than {MAX_VALUES} values; this is not a recipe")
        if len(path) > MAX_DEPTH:
            raise YamlProblem(_line(event), f"nested more than {MAX_DEPTH} levels deep; a recipe needs 3")
        raw, quoted = getattr(event, "value", None) or "", bool(getattr(event, "style", None))
        mark = self.mark(event, raw, quoted)
        self.out.marks[path] = mark
        self.refuse_extras(event, path, mark)
        if isinstance(event, yaml.AliasEvent):
            return None
        if isinstance(event, yaml.ScalarEvent):
            return raw if quoted else resolve_scalar(raw)
        return self.sequence(path) if isinstance(event, yaml.SequenceStartEvent) else self.mapping(path)

    def mark(self, event: Any, raw: str = "", quoted: bool = False) -> Mark:
        return Mark(self.place(_line(event)), _line(event), raw, quoted)

    def problem(self, path: KeyPath, mark: Mark, message: str) -> None:
        self.out.problems.append((path, mark, message))

    def refuse_extras(self, event: Any, path: KeyPath, mark: Mark) -> None:
        name = show(event.anchor or "", 30)
        if isinstance(event, yaml.AliasEvent):
            self.problem(path, mark, f"aliases are not allowed; write the value in place of '*{name}'")
        elif event.anchor:
            self.problem(path, mark, f"anchors are not allowed; remove '&{name}'")
        if getattr(event, "tag", None):
            self.problem(path, mark, f"tags are not allowed; remove '{show(_short_tag(event.tag), 40)}'")

    def sequence(self, path: KeyPath) -> tuple[Any, ...]:
        items: list[Any] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            items.append(self.node(event, (*path, len(items))))
        return tuple(items)

    def mapping(self, path: KeyPath) -> dict[str, Any]:
        found: dict[str, Any] = {}
        lines: dict[str, int] = {}
        while not isinstance(key := next(self.events), yaml.MappingEndEvent):
            mark = self.mark(key)
            name = self.key(key, mark)
            inner = (*path, name)
            if name in lines:
                self.problem(inner, mark, f"written twice (first on line {lines[name]}); keep one")
            value = self.node(next(self.events), inner)
            if name == "<<":
                self.problem(inner, mark, "merge keys are not allowed; write the keys out")
            at = self.out.marks[inner]
            self.out.marks[inner] = Mark(mark.place, mark.order, at.raw, at.quoted)
            lines.setdefault(name, mark.order)
            found[name] = value
        return found

    def key(self, event: Any, mark: Mark) -> str:
        if isinstance(event, yaml.ScalarEvent) and not event.anchor and not event.tag:
            return str(event.value)
        if isinstance(event, yaml.AliasEvent):
            raise YamlProblem(
                mark.order, f"a key must be a plain word, not an alias; write '*{show(event.anchor, 30)}' out"
            )
        raise YamlProblem(mark.order, "a key must be a plain word, with no list, block, tag or anchor; rewrite the key")


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _short_tag(tag: str) -> str:
    return tag.replace("tag:yaml.org,2002:", "!!")


def _events(text: str) -> Iterator[Any]:
    """PyYAML's events (the pure-Python parser: one wording everywhere), its errors as YamlProblem."""
    try:
        yield from yaml.parse(text, Loader=yaml.SafeLoader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        code = error.character if isinstance(error.character, int) else ord(error.character)
        raise YamlProblem(line, f"the character U+{code:04X} is not allowed in YAML; remove it") from error
    except yaml.MarkedYAMLError as error:
        raise _syntax(error, text) from error


def _syntax(error: yaml.MarkedYAMLError, text: str) -> YamlProblem:
    problem = error.problem or "not valid YAML"
    at_start, fix = next((rest for pattern, *rest in _SYNTAX_FIXES if re.search(pattern, problem)), (False, _CHECK))
    # For a bracket that is never closed, the place where it opens helps; the place where YAML gives up does not.
    mark: Any = (at_start and error.context_mark) or error.problem_mark or error.context_mark
    line = mark.line if mark else 0
    stop = error.problem_mark
    if stop and re.match(r" *\t", text[stop.index - stop.column : stop.index + 1]):
        return YamlProblem(line + 1, "a tab in the indentation; YAML is indented with spaces only")
    return YamlProblem(line + 1, f"not valid YAML ({problem}); {fix}")


_CHECK = "check quotes, brackets and indentation around this line"
_SYNTAX_FIXES: tuple[
    tuple[str, bool, str], ...
] = (  # part of PyYAML's message, whether its context's line is meant, the fix
    (
        r"mapping values are not allowed",
        False,
        "put text that holds ': ' in quotes; check indentation and colons here and one line up",
    ),
    (r"could not find expected ':'", True, "write `key: value`, with a space after the colon"),
    (r"expected <block end>", False, "line the key up with the others of its block"),
    (
        r"unexpected end of stream|expected ',' or|found unexpected",
        True,
        "close the quote or bracket that is still open",
    ),
    (r"cannot start any token", False, "put the text in quotes"),
)
