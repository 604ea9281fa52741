"""Malformed recipes: each gives RecipeError with exactly the expected problems, at the expected lines, fast."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hubdistill.errors import RecipeError
from hubdistill.recipe import load_recipe

CORPUS = Path(__file__).parent / "corpus"
BASE = """\
target: {kind: text}
teacher: {model: org/teacher}
student: {model: org/student}
prompts: {dataset: org/data}
warmup: {kind: sft}
loss: {preset: distillm2}
lora: {rank: 16, alpha: 16}
train: {rounds: 2}
evaluate: [{kind: divergence}]
publish: {repo: me/adapter}
"""


@dataclass
class Case:
    name: str
    lines: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)
    origin: str = "file"


def cases(file: str) -> list[Case]:
    """The cases of one corpus file, in the format that blocks.txt explains."""
    found: list[Case] = []
    for line in (CORPUS / file).read_text(encoding="utf-8").split("\n"):
        if line.startswith("## "):
            found.append(Case(line[3:]))
        elif found and line.startswith("=> "):
            found[-1].expected.append(line[3:])
        elif found and line.startswith("> "):
            found[-1].overrides.append(line[2:])
        elif found and line.startswith("origin="):
            found[-1].origin = line.removeprefix("origin=")
        elif found and line:
            found[-1].lines.append(line)
    return found


def with_base(lines: list[str]) -> str:
    """BASE with the case's lines in place of its own; a block may span several lines."""
    blocks = {line.split(":")[0]: [line] for line in BASE.splitlines()}
    key = ""
    for line in lines:
        if line.startswith("- "):
            del blocks[line[2:]]
        elif line.startswith(" "):
            blocks[key].append(line)
        else:
            key = line.split(":")[0]
            blocks[key] = [line]
    return "\n".join(line for block in blocks.values() for line in block) + "\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "prompts.jsonl").write_text('{"prompt": "hi"}\n')
    (tmp_path / "data" / "prompts.txt").write_text("hi\n")
    return tmp_path


def problems_of(path: Path, case: Case) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, case.overrides, origin=case.origin)  # type: ignore[arg-type]
    return caught.value.problems


def places(path: Path, case: Case) -> list[str]:
    """The start of each expected problem, with the place spelt out."""
    starts = []
    overrides = iter(case.overrides[-sum(line.startswith(">: ") for line in case.expected) :])
    for line in case.expected:
        where, message = line.split(": ", 1)
        starts.append(f"override '{next(overrides)}': {message}" if where == ">" else f"{path}:{where}: {message}")
    return starts


def check(path: Path, case: Case) -> None:
    problems = problems_of(path, case)
    starts = places(path, case)
    assert len(problems) == len(starts), "\n".join(problems)
    for problem, start in zip(problems, starts, strict=True):
        assert problem.startswith(start), problem
        assert problem.isprintable()
        assert len(problem) < 500


@pytest.mark.parametrize("case", cases("blocks.txt"), ids=lambda case: case.name)
def test_a_mistake_in_a_good_recipe(case: Case, folder: Path) -> None:
    path = folder / "a.yaml"
    path.write_text(with_base(case.lines), encoding="utf-8")
    check(path, case)


@pytest.mark.parametrize("case", cases("documents.txt"), ids=lambda case: case.name)
def test_a_document_that_is_no_recipe(case: Case, folder: Path) -> None:
    path = folder / "a.yaml"
    path.write_text("\n".join(case.lines) + "\n", encoding="utf-8")
    check(path, case)


def test_the_corpus_is_large_and_its_base_is_good(folder: Path) -> None:
    everything = cases("blocks.txt") + cases("documents.txt")
    assert len(everything) >= 150
    assert len({case.name for case in everything}) == len(everything)
    assert all(case.expected for case in everything)
    path = folder / "a.yaml"
    path.write_text(BASE)
    assert load_recipe(path).recipe.train.rounds == 2


BYTES = {
    "utf-16": (BASE.encode("utf-16"), "1: saved as UTF-16; save it as UTF-8"),
    "latin-1": (BASE.encode() + "# caf\xe9\n".encode("latin-1"), "11: not UTF-8 text; save it as UTF-8"),
    "nul": (BASE.encode() + b"# \x00\n", "11: the character U+0000 is not allowed in YAML; remove it"),
    "escape": (b"# \x1b[31m\n" + BASE.encode(), "1: the character U+001B is not allowed in YAML; remove it"),
    "image": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "1: not UTF-8 text; save it as UTF-8"),
}


@pytest.mark.parametrize("name", sorted(BYTES))
def test_bytes_that_are_no_text(name: str, folder: Path) -> None:
    path = folder / "a.yaml"
    data, message = BYTES[name]
    path.write_bytes(data)
    assert problems_of(path, Case(name)) == (f"{path}:{message}",)


def test_a_utf8_mark_and_windows_line_ends_are_fine(folder: Path) -> None:
    path = folder / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + BASE.replace("\n", "\r\n").encode())
    assert load_recipe(path).recipe.lora.rank == 16


BOMBS = {
    "billion laughs": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{c}: &{c} [{','.join(['*' + p] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)),
    "deep flow": "a: " + "[" * 100_000,
    "deep maps": "{a: " * 50_000,
    "deep blocks": "\n".join(" " * depth + "a:" for depth in range(600)),
    "many keys": "".join(f"k{number}: 1\n" for number in range(20_000)),
    "many items": "evaluate: [" + "1, " * 80_000 + "]",
    "one long word": "target: " + "x" * 250_000,
    "one long quoted text": 'target: "' + "x " * 120_000 + '"',
    "long number": "train: {seed: " + "9" * 200_000 + "}",
    "long float": "train: {learning_rate: 0." + "1" * 200_000 + "}",
    "many anchors": "".join(f"- &a{number} x\n" for number in range(15_000)),
}


@pytest.mark.parametrize("name", sorted(BOMBS))
def test_bombs_are_refused_on_one_screen(name: str, folder: Path) -> None:
    path = folder / "a.yaml"
    path.write_text(BOMBS[name])
    problems = problems_of(path, Case(name))
    assert len(problems) <= 21
    assert all(len(problem) < 400 for problem in problems)


def test_too_large_is_refused_before_it_is_parsed(folder: Path) -> None:
    path = folder / "a.yaml"
    path.write_text("# " + "x" * 300_000)
    assert problems_of(path, Case("large")) == (
        f"{path}: larger than 256 KiB; a recipe is a page of YAML, check the file name",
    )


def test_things_that_are_no_file(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(BASE)
    os.mkfifo(folder / "pipe.yaml")
    for name, message in (
        ("data", "is a folder; name the recipe file in it"),
        ("pipe.yaml", "is not a regular file; name a recipe file"),
        ("recipe.yml", f"no such recipe; did you mean '{folder / 'recipe.yaml'}'?"),
        ("nowhere/x.yaml", "no such recipe; check the path; `hubdistill recipes` lists the shipped ones"),
    ):
        assert problems_of(folder / name, Case(name)) == (f"{folder / name}: {message}",)


def test_a_shipped_recipe_with_a_name_nearly_right() -> None:
    problems = problems_of(Path("text/qwen2-1.5b_from_qwen2-8b.yaml"), Case("near"))
    assert problems[0].endswith("did you mean the shipped recipe 'text/qwen2-1.5b_from_qwen2-7b'?")


def test_a_near_name_of_a_data_file_is_offered(folder: Path) -> None:
    path = folder / "a.yaml"
    path.write_text(with_base(["prompts: {dataset: data/promts.jsonl}"]))
    assert problems_of(path, Case("near"))[0].endswith("did you mean 'prompts.jsonl'?")


@pytest.mark.parametrize(
    "secret",
    [
        "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH",
        "sk-abc123def456ghi789jkl012",
        "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
        "AKIAIOSFODNN7EXAMPLE",
    ],
)
def test_a_secret_is_never_echoed(secret: str, folder: Path) -> None:
    path = folder / "a.yaml"
    path.write_text(BASE)
    for override in (f"publish.tag={secret}", f"{secret}=1", f"train.{secret}", secret):
        problems = problems_of(path, Case("secret", overrides=[override]))
        assert "secret token" in problems[0]
        assert secret not in "".join(problems)


def test_no_heavy_import_and_one_screen_from_a_fresh_process(folder: Path) -> None:
    path = folder / "a.yaml"
    path.write_text(with_base(["train: {rouns: 3}", "student: {modle: x}"]))
    code = (
        "import sys\n"
        "from hubdistill.errors import RecipeError\n"
        "from hubdistill.recipe import load_recipe\n"
        "try:\n    load_recipe(sys.argv[1])\n"
        "except RecipeError as error:\n    print(error)\n"
        "heavy = {'torch', 'transformers', 'datasets', 'peft', 'trl', 'numpy', 'huggingface_hub'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 3
