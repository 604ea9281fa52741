"""What the base image brings, so that the image adds to it and replaces nothing of it.

    python3 base.py record FILE PINS     write pip constraints: the base's own versions, and of PINS what the base lacks
    python3 base.py compare FILE         end with 1 if a distribution of the base is another one now, or gone

vLLM's image has torch, transformers and vLLM built for one another; a second torch would cost gigabytes and break vLLM.
Runs in the base's Python during the build, on the standard library and `packaging`, which transformers needs as well.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import distributions
from pathlib import Path

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

MARK = "# not in the base"  # what stands above it is the base's own
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def installed() -> dict[str, str]:
    """Name -> version of every distribution that this Python finds; of two with one name that which is imported."""
    found: dict[str, str] = {}
    for one in distributions():
        if one.name:
            found.setdefault(canonicalize_name(one.name), one.version)
    return found


def record(file: Path, pins: Path) -> None:
    """Write the constraints to `file`. A version that pip cannot read (some of a Linux distribution's) is left out."""
    base = {name: version for name, version in installed().items() if _readable(version)}
    rest = [line for line in pins.read_text().splitlines() if (name := NAME.match(line)) and canonicalize_name(name[0]) not in base]
    file.write_text("\n".join([*(f"{name}=={base[name]}" for name in sorted(base)), MARK, *rest, ""]))


def compare(file: Path) -> list[str]:
    """What became of the base's distributions: a line for each that is another version now, or gone."""
    before = dict(line.split("==") for line in file.read_text().split(MARK)[0].split())
    now = installed()
    return [f"{name}: {version} in the base, {now.get(name, 'gone')} now" for name, version in before.items() if now.get(name) != version]


def _readable(version: str) -> bool:
    try:
        Version(version)
    except InvalidVersion:
        return False
    return True


if __name__ == "__main__":
    command, *files = sys.argv[1:]
    if command == "record":
        record(Path(files[0]), Path(files[1]))
    elif changed := compare(Path(files[0])):
        sys.exit("\n".join(["distributions of the base image were replaced:", *changed]))
