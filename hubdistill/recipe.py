"""The recipe: one YAML file that says everything about a distillation. `load_recipe` reads it and words every error.

loaded = load_recipe("recipes/quickstart.yaml", ["train.rounds=2"])
loaded.recipe.train.rounds
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from hubdistill import recipe_checks as checks
from hubdistill import recipe_wording as wording
from hubdistill.errors import RecipeError
from hubdistill.recipe_conflicts import check_together
from hubdistill.recipe_overrides import apply_override
from hubdistill.specs import (
    EvaluationSpec,
    GateSpec,
    LoraSpec,
    LossSpec,
    PreferenceSpec,
    PromptsSpec,
    PublishSpec,
    SamplingSpec,
    Spec,
    StudentSpec,
    TeacherSpec,
    TrainSpec,
    WarmupSpec,
)
from hubdistill.yaml_lines import MAX_BYTES, Document, KeyPath, Mark, YamlProblem, dotted, parse, show

Origin = Literal["file", "shipped", "hub"]
MAX_PROBLEMS = 20  # one screen


class TargetChoice(Spec):
    """What kind of distillation this is, with the keys that this kind adds. In YAML: `{kind: text, ...options}`."""

    kind: str = Field(description="Name of the target; `hubdistill recipes` lists recipes of each.")
    options: Spec = Field(description="The keys that the kind adds.")

    @model_validator(mode="before")
    @classmethod
    def _flat_to_options(cls, data: Any) -> Any:
        if not isinstance(data, dict) or isinstance(data.get("options"), Spec):
            return data
        rest = {key: value for key, value in data.items() if key != "kind"}
        options = target_options()
        kind = data.get("kind")
        if not isinstance(kind, str):
            raise _kind_error("missing" if "kind" not in data else "string_type", kind)
        if kind not in options:
            guess = wording.nearest(kind, options)
            hint = f"did you mean '{guess}'?" if guess else "choose one of these"
            message = f"'{show(kind)}' is not one of: {', '.join(options)}; {hint}"
            raise _kind_error(PydanticCustomError("hubdistill", "{message}", {"message": message}), kind)
        return {"kind": kind, "options": options[kind].model_validate(rest)}

    @model_serializer
    def _flat(self) -> dict[str, Any]:
        return {"kind": self.kind, **self.options.model_dump(mode="json")}


class Recipe(Spec):
    """Everything a run is made of; see docs/recipe.md."""

    target: TargetChoice = Field(description="What is distilled: `{kind: text}`, and the keys that the kind adds.")
    teacher: TeacherSpec = Field(description="The frozen teacher.")
    student: StudentSpec = Field(description="The student that gets the adapter.")
    prompts: PromptsSpec = Field(description="Where the prompts come from.")
    sampling: SamplingSpec = Field(SamplingSpec(), description="How both models answer the prompts.")
    warmup: WarmupSpec = Field(description="Fine-tuning before the first round: `{kind: sft}`, or `{kind: none}`.")
    loss: LossSpec = Field(description="The contrastive loss: `{preset: distillm2}`.")
    lora: LoraSpec = Field(description="The adapter: `{rank: 16, alpha: 16}`.")
    train: TrainSpec = Field(description="Rounds and optimisation: `{rounds: 3}`.")
    preference: PreferenceSpec | None = Field(None, description="Preference tuning after the last round: `{dataset: ORG/NAME}` with the columns prompt, chosen and rejected (targets text, int4 and drafter); none without it.")
    evaluate: tuple[EvaluationSpec, ...] = Field(
        description="Evaluations on held-out prompts: `[{kind: divergence}]`, or `[]`."
    )
    gate: GateSpec = Field(GateSpec(), description="What must not be worse for the run to be published.")
    publish: PublishSpec | None = Field(None, description="Where the adapter goes; nothing is pushed without it.")


@dataclass(frozen=True)
class LoadedRecipe:
    """A valid recipe and where it came from; `text` is the file verbatim."""

    recipe: Recipe
    path: Path
    text: str
    overrides: tuple[str, ...]
    name: str
    origin: Origin


def target_options() -> dict[str, type[Spec]]:
    """kind -> the spec of the keys it adds, from the registry of targets."""
    from hubdistill.targets import TARGETS

    return {target.name: target.options for target in TARGETS}


def load_recipe(
    path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    origin: Origin = "file",
    allow_remote_code: bool = False,
    name: str | None = None,
) -> LoadedRecipe:
    """Read, override and validate the recipe at `path`.

    `overrides` are `key=value`; `null` puts a key back to its default. `origin="hub"` is for a recipe somebody else
    wrote: no local paths, and no remote code unless `allow_remote_code`. `name` defaults to the file's name without
    its suffix. Raises RecipeError with every problem that was found, one line each.
    """
    file = Path(path)
    text = _read(file)
    document = _parse(text, str(path), overrides)
    recipe, problems = _validate(document)
    broken = [key for key, _, _ in problems]
    context = checks.Context(file.parent, origin, allow_remote_code)
    for key, message in checks.check_values(document.value, context):
        if not _covered(key, broken):
            problems.append((key, _mark(document, key), message))
    if recipe and not problems:
        problems = [(key, _mark(document, key), message) for key, message in check_together(recipe)]
    if recipe is None or problems:
        raise RecipeError(_render(problems))
    return LoadedRecipe(recipe, file, text, tuple(overrides), name or file.stem, origin)


def dump_resolved(recipe: Recipe) -> str:
    """Every value of the recipe, defaults included, as YAML that load_recipe reads back to an equal recipe."""
    import yaml

    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=1000)


def _read(file: Path) -> str:
    try:
        mode = file.stat().st_mode
        if stat.S_ISDIR(mode):
            raise RecipeError([f"{file}: is a folder; name the recipe file in it"])
        if not stat.S_ISREG(mode):
            raise RecipeError([f"{file}: is not a regular file; name a recipe file"])
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RecipeError([f"{file}: no such recipe; {checks.similar_recipe(file)}"]) from error
    except OSError as error:
        raise RecipeError([f"{file}: cannot be read ({error.strerror}); check its name and permissions"]) from error
    if len(data) > MAX_BYTES:
        raise RecipeError(
            [f"{file}: larger than {MAX_BYTES // 1024} KiB; a recipe is a page of YAML, check the file name"]
        )
    return _decode(data, file)


def _decode(data: bytes, file: Path) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise RecipeError([f"{file}:1: saved as UTF-16; save it as UTF-8"])
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RecipeError([f"{file}:{line}: not UTF-8 text; save it as UTF-8"]) from error


def _parse(text: str, source: str, overrides: Sequence[str]) -> Document:
    """The document with its overrides applied. Secrets are looked for first, so that no later message can echo one."""
    leaks = [f"{source}:{line}: {checks.SECRET}" for line in checks.secret_lines(text)]
    leaks += [f"override '{show(key)}=***': {checks.SECRET}" for key in checks.secret_overrides(overrides)]
    if leaks:
        raise RecipeError(leaks)
    try:
        document = parse(text, source)
    except YamlProblem as problem:
        raise RecipeError([f"{source}:{problem.line}: {problem}"]) from problem
    if document.value is None:
        raise RecipeError(
            [f"{source}:1: the recipe is empty; start from a shipped one, `hubdistill recipes` lists them"]
        )
    if not isinstance(document.value, dict):
        line = document.marks[()].place
        raise RecipeError(
            [
                f"{line}: a recipe is a block of keys, this is {wording.got(document.value)}; start with `target: {{kind: text}}`"
            ]
        )
    for override in overrides:
        apply_override(document, override)
    return document


def _validate(document: Document) -> tuple[Recipe | None, list[tuple[KeyPath, Mark, str]]]:
    """The recipe, or None with what pydantic and the YAML reader found; one problem a path, none inside a broken one."""
    problems = list(document.problems)
    broken = [path for path, _, _ in problems if path]
    try:
        return Recipe.model_validate(document.value), problems
    except ValidationError as error:
        for item in error.errors(include_url=False):
            path, rest = wording.known_path(item["loc"], document)
            full = (*path, *rest[:1]) if item["type"] == "missing" and rest and isinstance(rest[0], str) else path
            if _covered(full, broken):
                continue
            broken.append(full)
            problems.append((full, _mark(document, full), _message(item, full, document)))
    return None, problems


def _message(item: Mapping[str, Any], path: KeyPath, document: Document) -> str:
    key = next((part for part in reversed(path) if isinstance(part, str)), "")
    model = _model(path[:-1], document)
    if item["type"] == "extra_forbidden":
        fields = {name: wording.field_model(field.annotation) for name, field in Recipe.model_fields.items()}
        blocks = {name: block for name, block in fields.items() if block and block is not TargetChoice}
        names = ["kind"] * (path[:-1] == ("target",)) + list(model.model_fields if model else ())
        return wording.unknown_key(key, names, blocks)
    annotation, about = _definition(path, document)
    # A union's branches report their own inputs; the message is about the whole value.
    found = {**item, "input": _value(document.value, path)}
    return wording.sentence(found, key, annotation, about, _mark(document, path))


def _model(path: KeyPath, document: Document) -> type[Spec] | None:
    """The spec of the block at `path`; for the target it is that of the chosen kind."""
    model: Any = Recipe
    for part in path:
        if isinstance(part, str):
            field = model.model_fields.get(part) if model else None
            model = wording.field_model(field.annotation) if field else None
    if model is TargetChoice:
        kind = _value(document.value, ("target", "kind"))
        return target_options().get(kind) if isinstance(kind, str) else None
    return model


def _definition(path: KeyPath, document: Document) -> tuple[Any, str | None]:
    """Type and description of the field at `path`; of a list's item for a path that ends in a number."""
    if not path:
        return Recipe, None
    if isinstance(path[-1], int):
        return wording.item_type(_definition(path[:-1], document)[0]), None
    model = TargetChoice if path == ("target", "kind") else _model(path[:-1], document)
    field = model.model_fields.get(path[-1]) if model else None
    return (field.annotation, field.description) if field else (None, None)


def _value(node: Any, path: KeyPath) -> Any:
    for part in path:
        if isinstance(node, dict):
            node = node.get(part)
        elif isinstance(node, tuple) and isinstance(part, int) and part < len(node):
            node = node[part]
        else:
            return None
    return node


def _covered(path: KeyPath, broken: Sequence[KeyPath]) -> bool:
    return any(path[: len(bad)] == bad for bad in broken)


def _mark(document: Document, path: KeyPath) -> Mark:
    return next(document.marks[path[:end]] for end in range(len(path), -1, -1) if path[:end] in document.marks)


def _render(problems: Sequence[tuple[KeyPath, Mark, str]]) -> list[str]:
    ordered = sorted(problems, key=lambda problem: problem[1].order)
    lines = [
        f"{mark.place}: {dotted(path)}: {message}" if path else f"{mark.place}: {message}"
        for path, mark, message in ordered
    ]
    more = len(lines) - MAX_PROBLEMS
    return [*lines[:MAX_PROBLEMS], f"... and {more} more problems; fix these first"] if more > 0 else lines


def _kind_error(error: Any, value: Any) -> ValidationError:
    return ValidationError.from_exception_data("target", [{"type": error, "loc": ("kind",), "input": value}])
