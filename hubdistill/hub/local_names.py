"""What stands for the files and folders of this machine in everything that is published: `./BASENAME`, never a path."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# Where a path begins and ends in a sentence or an override: `..` inside `../x`, or 0.5 for `.`, is not one.
_BEFORE, _AFTER = r"(?<![\w./~-])", r"(?![\w/-]|\.[\w./])"
_ANY_PATH = re.compile(_BEFORE + r"(?:\.{0,2}|~\w*)/[^\s'\",{}\[\]]*")


def short_name(reference: str, location: str = "") -> str:
    """`./BASENAME` of a model folder; of its `location` where the reference (`..`, `~`) has no name of its own."""
    name = Path(reference).name
    if name in ("", ".", "..") or name.startswith("~"):
        name = Path(location).name
    return f"./{name or 'model'}"


def short_names(models: Iterable[tuple[str, str]], files: Iterable[str]) -> dict[str, str]:
    """Path -> what is published in its place, for local `models` (reference, location) and data `files`."""
    found = {file: Path(file).name for file in files}
    for reference, location in models:
        found[reference] = found[location] = short_name(reference, location)
    return {path: short for path, short in found.items() if path and path != short}


def without_paths(value: Any, names: Mapping[str, str]) -> Any:
    """`value` (anything JSON-able) with every path of `names` replaced, also within longer texts."""
    if isinstance(value, str):
        return _in_text(value, names)
    if isinstance(value, Mapping):
        return {key: without_paths(item, names) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_paths(item, names) for item in value]
    return value


def _in_text(text: str, names: Mapping[str, str]) -> str:
    if not names:
        return text
    # The longest first: a path can begin with another one.
    paths = "|".join(re.escape(path) for path in sorted(names, key=len, reverse=True))
    return re.sub(f"{_BEFORE}(?:{paths}){_AFTER}", lambda found: names[found[0]], text)


def override_without_paths(override: str, names: Mapping[str, str]) -> str:
    """An override `key=value` that names no path, not even one that a later override replaced."""
    key, equals, value = _in_text(override, names).partition("=")
    if value.startswith(("/", "./", "../", "~/")):  # all of it, for a path can hold blanks
        return key + equals + short_name(value)
    return key + equals + _ANY_PATH.sub(lambda found: short_name(found[0]), value)
