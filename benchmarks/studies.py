"""What the studies share: plots as files, cells of one setting in a folder, means over seeds, and two losses against each other."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean


def keep_settings(folder: Path, recipe: Path, overrides: Sequence[str]) -> None:
    """Note what the cells of a folder are made with. Exits where they are of something else: a table must not mix them."""
    settings = {"recipe": hashlib.sha256(recipe.read_bytes()).hexdigest(), "overrides": sorted(overrides)}
    file = folder / "settings.json"
    if file.is_file() and json.loads(file.read_text(encoding="utf-8")) != settings:
        raise SystemExit(f"{folder} holds cells of other settings ({file}); give another --output")
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings), encoding="utf-8")


def on_white(svg: str) -> str:
    """A plot of the reports as a file of its own: dark on white, whatever the page around it is."""
    return re.sub(r"^<svg ([^>]*)>", r'<svg color="#222" font-family="sans-serif" \1><rect width="100%" height="100%" fill="#fff"/>', svg)


def seeds_of(values: Iterable[float], digits: int) -> str:
    """The mean over seeds, and each seed in brackets."""
    found = list(values)
    return f"{mean(found):.{digits}f} ({', '.join(f'{value:.{digits}f}' for value in found)})" if found else "–"


def duel(ours: Sequence[dict[str, float]], theirs: Sequence[dict[str, float]]) -> str:
    """Mean difference with its 95 % interval, of prompt -> value by seed; a prompt's seeds stay together in a resample."""
    from hubdistill.evaluation.statistics import mean_and_interval

    by_prompt: dict[str, list[float]] = {}
    for one, other in zip(ours, theirs, strict=True):
        for prompt in one.keys() & other.keys():
            by_prompt.setdefault(prompt, []).append(one[prompt] - other[prompt])
    if not by_prompt:
        return ""
    value, low, high = mean_and_interval([mean(by_prompt[prompt]) for prompt in sorted(by_prompt)])
    return f"{value:+.4f} [{low:+.4f}, {high:+.4f}]"
