"""No dead keys: every field of every recipe block is read by code outside the recipe reader.

A field counts as read where its name is an attribute of something that is known to be its block: a parameter or
variable annotated with it, `recipe.train`, or a name such as `train`. Where one block alone has the name, any
attribute of that name counts, and so does the name as a string (alpha_range is taken from a dict).
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

from hubdistill import specs
from hubdistill.recipe import Recipe
from hubdistill.recipe_wording import field_model

PACKAGE = Path(specs.__file__).parent
READERS = {"specs.py"} | {path.name for path in PACKAGE.glob("recipe*.py")}  # they touch fields without using them
CLASSES = {
    name: cls for name, cls in vars(specs).items() if isinstance(cls, type) and issubclass(cls, specs.Spec) and cls is not specs.Spec
}  # fmt: skip
FIELDS = [(name, key) for name, cls in CLASSES.items() for key in cls.__annotations__ if key in cls.model_fields]
BLOCKS = {
    key: model.__name__ for key, field in Recipe.model_fields.items() if (model := field_model(field.annotation)) and model.__name__ in CLASSES
} | {"evaluation": "EvaluationSpec", "preset": "LossSpec"}  # fmt: skip
HANDED_ON = {"LossPreset": "LossSpec"}  # losses.contrastive.resolve copies the fields under their own names


def classes_in(annotation: ast.expr | None) -> set[str]:
    """Names of spec classes in an annotation, quoted or not."""
    if annotation is None:
        return set()
    words = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}
    constants = [node.value for node in ast.walk(annotation) if isinstance(node, ast.Constant)]
    words |= {word for text in constants if isinstance(text, str) for word in re.findall(r"\w+", text)}
    return {HANDED_ON.get(word, word) for word in words} & set(CLASSES)


def owners(value: ast.expr, known: dict[str, set[str]]) -> set[str]:
    """The blocks that an expression may be."""
    name = value.id if isinstance(value, ast.Name) else value.attr if isinstance(value, ast.Attribute) else ""
    return known.get(name, set()) | ({BLOCKS[name]} if name in BLOCKS else set())


def with_bases(name: str) -> set[str]:
    """A block and the blocks it inherits fields from."""
    return {cls.__name__ for cls in CLASSES[name].__mro__ if cls.__name__ in CLASSES}


def annotated_names(tree: ast.AST) -> dict[str, set[str]]:
    """Parameter, variable and attribute names of a file -> the spec classes they are annotated with."""
    known: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            known.setdefault(node.arg, set()).update(classes_in(node.annotation))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            known.setdefault(node.target.id, set()).update(classes_in(node.annotation))
    for node in ast.walk(tree):  # `for spec in specs` is what `specs` holds
        if isinstance(node, ast.For | ast.comprehension) and isinstance(node.target, ast.Name):
            known.setdefault(node.target.id, set()).update(owners(node.iter, known))
    return known


def reads(tree: ast.AST) -> set[tuple[str, str]]:
    """(block, field) pairs that a file reads; block is "" where it is not known."""
    known, found = annotated_names(tree), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found.add(("", node.attr))
            found |= {(base, node.attr) for owner in owners(node.value, known) for base in with_bases(owner)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(("", node.value))
    return found


def unread(files: list[Path]) -> list[str]:
    """Fields that no file reads, as Block.field."""
    found = {pair for path in files for pair in reads(ast.parse(path.read_text(encoding="utf-8")))}
    names = Counter(key for _, key in FIELDS)
    return [
        f"{block}.{key}"
        for block, key in FIELDS
        if (block, key) not in found and (names[key] > 1 or ("", key) not in found)
    ]


def test_every_field_is_read() -> None:
    files = [path for path in PACKAGE.rglob("*.py") if path.name not in READERS]
    assert unread(files) == []


def test_all_blocks_are_covered() -> None:
    assert len(FIELDS) >= 45
    assert {name for name, _ in FIELDS} == set(CLASSES)


@pytest.mark.parametrize(
    ("code", "field", "is_read"),
    [
        ("def f(spec: LoraSpec): return spec.alpha", "LoraSpec.alpha", True),
        ("def f(spec: 'LoraSpec | None'): return spec.alpha", "LoraSpec.alpha", True),
        ("def f(spec: LossSpec): return spec.alpha", "LoraSpec.alpha", False),
        ("def f(preset: LossPreset): return preset.alpha", "LossSpec.alpha", True),
        ("def f(x): return x.alpha", "LoraSpec.alpha", False),
        ("def f(recipe): return recipe.lora.alpha", "LoraSpec.alpha", True),
        ("def f(spec: StudentSpec): return spec.dtype", "ModelSpec.dtype", True),
        ("def f(specs: tuple[LoraSpec, ...]): return [one.alpha for one in specs]", "LoraSpec.alpha", True),
        ("def f(x): return x.pairs_per_step", "TrainSpec.pairs_per_step", True),
        ("pairs_per_step = 3", "TrainSpec.pairs_per_step", False),
    ],
)  # fmt: skip
def test_the_finder_tells_blocks_apart(code: str, field: str, is_read: bool, tmp_path: Path) -> None:
    file = tmp_path / "code.py"
    file.write_text(code)
    assert (field not in unread([file])) is is_read
