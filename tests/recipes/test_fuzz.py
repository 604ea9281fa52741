"""Damaged recipes never give anything but RecipeError: characters, lines and values changed at random, with a fixed seed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from hubdistill.errors import RecipeError
from hubdistill.recipe import load_recipe
from tests.recipes.test_corpus import BASE

JUNK = [
    "{", "}", "[", "]", ":", ": ", ",", "&a ", "*a", "!!x ", "- ", "? ", "#", "|", ">", "%", "@", "`", "'", '"', "\\", "\t", "\n", "---\n", "...\n",
    "<<: ", "~", "null", "true", "0x1", "1e9", "-1", ".nan", "é", "\u2028", "\u200b", "\U0001f600", "${X}", "$X", " ", "  ", "0", "x" * 300,
]  # fmt: skip
KEYS = [
    "train",
    "train.rounds",
    "evaluate",
    "evaluate[0]",
    "evaluate[0].kind",
    "target",
    "target.kind",
    "publish",
    "publish.repo",
    "student.layers",
    "a",
    "",
    "[0]",
    ".",
]


def damaged(text: str, source: random.Random) -> str:
    """`text` with one to four pieces replaced, put in, or cut out."""
    for _ in range(source.randint(1, 4)):
        at = source.randrange(len(text) + 1)
        text = text[:at] + source.choice([*JUNK, ""]) + text[at + source.choice([0, 0, 1, 3, 12]) :]
    return text


def outcome(path: Path, overrides: list[str], origin: str) -> int:
    """1 when it loads, 0 for a RecipeError that keeps its promises."""
    try:
        load_recipe(path, overrides, origin=origin)  # type: ignore[arg-type]
    except RecipeError as error:
        problems = error.problems
    else:
        return 1
    assert problems
    for problem in problems:
        assert problem.isprintable(), problem
        assert problem.startswith((str(path), "override ", "... and ")), problem
        assert len(problem) < 600
    return 0


@pytest.mark.parametrize("seed", range(8))
def test_damaged_recipes(seed: int, tmp_path: Path) -> None:
    source = random.Random(seed)
    path = tmp_path / "a.yaml"
    loaded = 0
    for _ in range(60):
        path.write_text(damaged(BASE, source), encoding="utf-8")
        loaded += outcome(path, [], source.choice(["file", "hub"]))
    assert loaded < 60


@pytest.mark.parametrize("seed", range(4))
def test_damaged_overrides(seed: int, tmp_path: Path) -> None:
    source = random.Random(1000 + seed)
    path = tmp_path / "a.yaml"
    path.write_text(BASE)
    loaded = 0
    for _ in range(60):
        overrides = [
            damaged(f"{source.choice(KEYS)}={source.choice(JUNK)}", source) for _ in range(source.randint(1, 3))
        ]
        loaded += outcome(path, overrides, "file")
    assert loaded < 60
