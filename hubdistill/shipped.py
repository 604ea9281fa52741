"""Finds the recipes and model-card templates that ship with hubdistill, in a checkout and in an installed wheel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hubdistill.errors import MissingError

SHIPPED = "shipped:"  # begins a `prompts.dataset` that comes with hubdistill


@dataclass(frozen=True)
class ShippedRecipe:
    """A shipped recipe: `name` is what `hubdistill run` takes, `about` its first comment line."""

    name: str
    path: Path
    about: str


def recipes_root() -> Path:
    """The folder of shipped recipes. Raises MissingError when the installation is damaged."""
    return _root("recipes")


def model_cards_root() -> Path:
    """The folder of model-card templates. Raises MissingError when the installation is damaged."""
    return _root("model_cards")


def list_recipes() -> tuple[ShippedRecipe, ...]:
    """All shipped recipes by name, for example `quickstart` and `text/qwen2-1.5b_from_qwen2-7b`."""
    root = recipes_root()
    files = sorted(root.rglob("*.yaml"))
    return tuple(ShippedRecipe(file.relative_to(root).with_suffix("").as_posix(), file, _about(file)) for file in files)


def find_recipe(name: str) -> Path | None:
    """The file of the shipped recipe called `name` (with or without .yaml), or None."""
    wanted = name.removesuffix(".yaml")
    return next((recipe.path for recipe in list_recipes() if recipe.name == wanted), None)


def find_data(name: str) -> Path:
    """The data file that `shipped:NAME` means. Raises MissingError listing what there is."""
    files = {file.name: file for file in sorted((recipes_root() / "data").glob("*.jsonl"))}
    if name not in files:
        raise MissingError(f"{SHIPPED}{name}: no such file ships with hubdistill; there is {', '.join(files)}")
    return files[name]


def _root(folder: str) -> Path:
    package = Path(__file__).resolve().parent
    # hatchling puts the folders inside the package (see force-include); in a checkout they lie beside it.
    for candidate in (package / folder, package.parent / folder):
        if candidate.is_dir():
            return candidate
    raise MissingError(
        f"the folder '{folder}' of hubdistill is missing; reinstall it: pip install --force-reinstall hubdistill"
    )


def _about(file: Path) -> str:
    with file.open(encoding="utf-8") as lines:
        first = next(lines, "").strip()
    return first.lstrip("# ") if first.startswith("#") else ""
