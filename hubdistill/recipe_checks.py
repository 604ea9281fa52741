"""Checks of single values that need more than a field's type: secrets, `${VAR}`, paths. recipe_conflicts.py has those of several fields."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubdistill.errors import MissingError
from hubdistill.recipe_wording import nearest
from hubdistill.shipped import SHIPPED, find_data, list_recipes
from hubdistill.yaml_lines import KeyPath, show

Problem = tuple[KeyPath, str]

SECRET = "looks like a secret token (not shown); remove it and revoke it, recipes are published: `hf auth login` or HF_TOKEN holds the token"
DATA_SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")
# Names such as org/hf_instruction_data or sk-learn-2 are no secrets: tokens are long runs without separators.
_SECRET = re.compile(
    r"(?<![A-Za-z0-9_-])(?:hf_[A-Za-z0-9]{20,}|sk-(?:[A-Za-z0-9]{1,10}-){0,3}(?=[A-Za-z0-9]*[0-9])[A-Za-z0-9]{20,}|(?:AKIA|ASIA)[0-9A-Z]{12,}"
    r"|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|xox[abprs]-[\w-]{10,}|AIza[\w-]{30,}|glpat-[\w-]{16,})|-----BEGIN [A-Z ]*PRIVATE KEY"
)
_VARIABLE = re.compile(r"\$\{[^}]*\}|^\$[A-Za-z_]\w*")
_HUB_ID = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?(?<![.-])")


@dataclass(frozen=True)
class Context:
    """Where the recipe lies and whose it is."""

    folder: Path
    origin: str
    allow_remote_code: bool


def secret_lines(text: str) -> list[int]:
    """Numbers of the lines that hold what looks like a token."""
    return [number for number, line in enumerate(text.split("\n"), 1) if _SECRET.search(line)]


def secret_overrides(overrides: Sequence[str]) -> list[str]:
    """The keys (themselves cleaned) of overrides that hold what looks like a token."""
    return [_SECRET.sub("***", override.partition("=")[0]) for override in overrides if _SECRET.search(override)]


def is_local(value: str) -> bool:
    """Whether a `model` or `dataset` value names a local path and not something on the Hub."""
    return value in (".", "..") or value.startswith(("./", "../", "/", "~")) or value.lower().endswith(DATA_SUFFIXES)


def local_path(value: str, folder: Path) -> Path | None:
    """The local path that `value` names, relative ones resolved against `folder`; None for the Hub and `pypi:`."""
    if not is_local(value):
        return None
    # os.path and not pathlib: it keeps `~nobody`, loops of links and NUL bytes as names that do not exist
    return Path(os.path.abspath(os.path.join(folder, os.path.expanduser(value))))


def similar_recipe(file: Path) -> str:
    """A hint for a recipe file that is not there: the nearest name beside it, or the nearest shipped recipe."""
    folder = file.parent
    near = nearest(file.name, [name for name in _names(folder) if name.endswith((".yaml", ".yml"))])
    if near:
        return f"did you mean '{folder / near}'?"
    guess = nearest(str(file).removesuffix(".yaml"), [recipe.name for recipe in list_recipes()])
    return (
        f"did you mean the shipped recipe '{guess}'?"
        if guess
        else "check the path; `hubdistill recipes` lists the shipped ones"
    )


def check_values(value: Any, context: Context) -> Iterator[Problem]:
    """Checks of single values; they work on a recipe that is otherwise invalid, so that all problems come at once."""
    yield from _variables(value, ())
    sampling = value.get("sampling")
    if context.origin == "hub" and isinstance(sampling, dict) and sampling.get("server") is not None:
        yield ("sampling", "server"), "refused in a recipe from the Hub: your prompts, and a key of yours, would go to an address that others chose; copy the recipe, read it, and run the copy"
    evaluate = value.get("evaluate")
    for index, one in enumerate(evaluate if isinstance(evaluate, list | tuple) else ()):
        if context.origin == "hub" and isinstance(one, dict) and one.get("judge") is not None:
            yield ("evaluate", index, "judge"), "refused in a recipe from the Hub: your prompts, and a key of yours, would go to an address that others chose; copy the recipe, read it, and run the copy"
        if context.origin == "hub" and isinstance(one, dict) and one.get("allow_code_execution"):
            yield ("evaluate", index, "allow_code_execution"), "refused in a recipe from the Hub: whether programs that models write are run on this machine is yours to say; copy the recipe, read it, and run the copy"
    for path, inner in _blocks(value):
        key = "dataset" if path[-1] in ("prompts", "questions", "preference") or path[0] == "evaluate" else "model"
        if isinstance(inner.get(key), str) and inner[key] and not _VARIABLE.search(inner[key]):
            yield from _source((*path, key), inner[key], context)
        if inner.get("trust_remote_code") is True and context.origin == "hub" and not context.allow_remote_code:
            yield (
                (*path, "trust_remote_code"),
                "refused in a recipe from the Hub; read that code first, then pass --allow-remote-code",
            )


def _blocks(value: Any) -> Iterator[tuple[KeyPath, dict[str, Any]]]:
    """The blocks that name a model or a data set, in a recipe that may be invalid."""
    found: list[tuple[KeyPath, Any]] = [((block,), value.get(block)) for block in ("teacher", "student", "prompts", "preference")]
    evaluate = value.get("evaluate")
    found += [(("evaluate", index, "questions"), one.get("questions")) for index, one in enumerate(evaluate if isinstance(evaluate, list | tuple) else ()) if isinstance(one, dict)]
    found += [(("evaluate", index), one) for index, one in enumerate(evaluate if isinstance(evaluate, list | tuple) else ()) if isinstance(one, dict) and one.get("kind") == "benchmark"]
    yield from ((path, inner) for path, inner in found if isinstance(inner, dict))


def _variables(value: Any, path: KeyPath) -> Iterator[Problem]:
    if isinstance(value, str) and _VARIABLE.search(value):
        yield (
            path,
            f"'{show(value)}' stays as it is, variables are not replaced; write the value, or override it: {'.'.join(map(str, path))}=...",
        )
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, tuple) else ()
    for key, inner in items:
        yield from _variables(inner, (*path, key))


def _source(path: KeyPath, value: str, context: Context) -> Iterator[Problem]:
    wants_file = path[-1] == "dataset"
    if wants_file and value.startswith(SHIPPED):
        try:
            find_data(value.removeprefix(SHIPPED))
        except MissingError as problem:
            yield path, show(str(problem), 200)
        return
    local = local_path(value, context.folder)
    if local is None:
        yield from _hub_id(path, value, wants_file)
    elif context.origin == "hub":
        yield (
            path,
            f"'{show(value)}' is a local path, refused in a recipe from the Hub; use a Hub id, or run your own copy of the recipe",
        )
    elif not os.path.exists(local):
        yield path, f"'{show(value)}' is not there (looked for {show(str(local), 200)}); {_near_file(local)}"
    elif wants_file and (os.path.isdir(local) or local.suffix.lower() not in DATA_SUFFIXES):
        yield path, f"'{show(value)}' is not a data file; name a file that ends in {', '.join(DATA_SUFFIXES)}"
    elif not wants_file and not os.path.isdir(local):
        yield path, f"'{show(value)}' is a file; name the folder that holds config.json"


def _hub_id(path: KeyPath, value: str, wants_file: bool) -> Iterator[Problem]:
    if value.startswith("toy:") and not wants_file:
        return  # there or not, find_model says with the names
    if value.startswith("pypi:") and not wants_file:
        if not re.fullmatch(r"pypi:[A-Za-z0-9][\w.-]*", value):
            yield path, f"'{show(value)}' names no package; write pypi:PACKAGE"
    elif url := re.match(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/(?:datasets/)?([\w.-]+/[\w.-]+)", value):
        yield path, f"is a web address; write the Hub id '{url[1]}'"
    elif not _HUB_ID.fullmatch(value):
        yield path, f"'{show(value)}' is not a Hub id; write ORG/NAME, or a local path that starts with ./"


def _near_file(path: Path) -> str:
    if not os.path.isdir(path.parent):
        return "its folder does not exist either; paths are relative to the recipe"
    near = nearest(path.name, _names(path.parent))
    return f"did you mean '{show(near)}'?" if near else "paths are relative to the recipe"


def _names(folder: Path) -> list[str]:
    """What lies in a folder; nothing for one that cannot be listed, for these names are hints only."""
    return os.listdir(folder) if os.path.isdir(folder) and os.access(folder, os.R_OK) else []
