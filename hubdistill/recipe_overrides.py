"""`key=value` on the command line: put into the parsed recipe before it is validated, so both meet the same checks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hubdistill.recipe_wording import got
from hubdistill.yaml_lines import MAX_BYTES, Document, KeyPath, Mark, YamlProblem, parse_value, show


def apply_override(document: Document, override: str) -> None:
    """Put one `key=value` into the document; a problem is recorded under the override's own name."""
    place = f"override '{show(override, 80)}'"
    order = MAX_BYTES + max(mark.order for mark in document.marks.values())  # after every line, in the order given
    mark = Mark(place, order)
    key, equals, raw = override.partition("=")
    path = _key_path(key.strip())
    if not equals or not path:
        document.problems.append(((), mark, "is not key=value; write for example train.rounds=2"))
        return
    if not raw.strip():
        document.problems.append((path, mark, "has no value; write null to put the default back"))
        return
    try:
        value = parse_value(raw, place)
    except YamlProblem as problem:
        document.problems.append((path, mark, f"the value is {problem}"))
        return
    document.problems += [((*path, *inner), Mark(place, order), message) for inner, _, message in value.problems]
    message = _set(document, path, value, mark)
    if message:
        document.problems.append((path, mark, message))


def _key_path(key: str) -> KeyPath:
    """ "evaluate[0].kind" -> ("evaluate", 0, "kind"); empty when it is not a key."""
    if not re.fullmatch(r"[^\s.\[\]]+(\[\d{1,4}\]|\.[^\s.\[\]]+)*", key):
        return ()
    return tuple(int(index) if index else word for index, word in re.findall(r"\[(\d+)\]|([^\s.\[\]]+)", key))


def _set(document: Document, path: KeyPath, value: Document, mark: Mark) -> str | None:
    """Set `path`, making blocks on the way; None when done, else what is wrong. A null removes the key."""
    root = _with(document.value, path, value.value)
    if isinstance(root, str):
        return root
    document.value = root
    for old in [old for old in document.marks if old[: len(path)] == path]:
        del document.marks[old]
    document.problems = [
        problem for problem in document.problems if problem[0][: len(path)] != path or problem[1] == mark
    ]
    for end in range(1, len(path)):
        document.marks.setdefault(path[:end], mark)
    for inner, at in value.marks.items():
        document.marks[(*path, *inner)] = Mark(mark.place, mark.order, at.raw, at.quoted)
    document.marks.setdefault(path, mark)
    return None


def _with(node: Any, path: KeyPath, value: Any) -> Any:
    """A copy of `node` with `value` at `path`; a str when the path cannot exist."""
    head, rest = path[0], path[1:]
    if isinstance(head, int):
        if not isinstance(node, tuple) or head >= len(node):
            return (
                f"there is no item [{head}]; it has {len(node)}"
                if isinstance(node, tuple)
                else "is not a list; remove the [number]"
            )
        inner = _with(node[head], rest, value) if rest else value
        return inner if rest and isinstance(inner, str) else (*node[:head], inner, *node[head + 1 :])
    if node is not None and not isinstance(node, dict):
        return f"'{show(str(head))}' is no key of {got(node)}; check the dots in the key"
    block: Mapping[str, Any] = node or {}
    if rest:
        inner = _with(block.get(head), rest, value)
        return inner if isinstance(inner, str) else {**block, head: inner}
    kept = {key: old for key, old in block.items() if key != head}
    return kept if value is None else {**block, head: value}
