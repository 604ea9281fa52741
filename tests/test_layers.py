"""Imports point one way, and what is heavy or loud has one place. The order is explained in docs/architecture.md."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hubdistill"
# A module may import what stands before it. A package (losses, pairs, ...) is one place for all of its files.
LINE = """
    hubdistill errors files processes hub_errors yaml_lines shipped specs losses pairs models modalities evaluation targets
    recipe_wording recipe_checks recipe_conflicts recipe_overrides recipe recipe_reference plan_checks plan estimate training rundir stages tasks examination lessons teaching probe prompting hub finished candidates benchmarking destination merging publication report
    run summary compare forecast_text console launcher cli __main__
"""
ORDER = LINE.split()
ONE_FILE = ("vllm", "bitsandbytes", "trl", "PIL", "httpx2", "lm_eval", "evalplus")  # each imported by one file, inside a function
TRAINERS = 2  # files that import trl: the warm-up's trainer and that of preference tuning
LIGHT = ("hubdistill.cli", "hubdistill.plan", "hubdistill.recipe", "hubdistill.publication", "hubdistill.summary", "hubdistill.hub.pull")
HEAVY = ("torch", "transformers", "peft", "trl", "datasets")  # none of which a LIGHT module imports
CYCLES = {("hubdistill.models.sources", "hubdistill.models.gguf_package")}  # in a function: `pypi:` is found and converted by one file
PROGRAM_ENDS = "hubdistill.tasks.jail"  # the process of one program of a model: it ends without what the program registered for its end
OWN_COMMAND = "hubdistill.recipe_reference"  # `python -m`, for maintainers: writes docs/, and is no part of the CLI

FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in PACKAGE.rglob("*.py")}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def imports(nodes: Iterable[ast.AST], *, inside: bool = False) -> Iterator[tuple[str, bool]]:
    """(module, whether inside a function) of every import that can run; what is under TYPE_CHECKING cannot."""
    for node in nodes:
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield from imports(node.orelse, inside=inside)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: a relative import; write the full name, so that it can be searched for"
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from ((name if name in FILES else str(node.module), inside) for name in names)
        else:
            yield from imports(ast.iter_child_nodes(node), inside=inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


GRAPH = {name: list(imports([tree])) for name, tree in TREES.items()}
OURS = {name: {module for module, _ in found if module.split(".")[0] == "hubdistill"} for name, found in GRAPH.items()}


def place(module: str) -> int:
    return ORDER.index(".".join(module.split(".")[1:2]) or "hubdistill")


def test_every_module_has_a_place_and_every_place_a_module() -> None:
    found = {".".join(name.split(".")[1:2]) or "hubdistill" for name in FILES}
    assert found == set(ORDER), "give a new module its place in ORDER and in docs/architecture.md; take out one that is gone"


def test_imports_point_left() -> None:
    wrong = [f"{name} imports {module}" for name, modules in OURS.items() for module in modules if place(module) > place(name)]
    assert not wrong


def test_no_modules_import_each_other() -> None:
    assert all(second in OURS[first] for first, second in CYCLES), "an exception in CYCLES is not needed any more; take it out"
    kept = {name: {module for module in modules if (name, module) not in CYCLES} for name, modules in OURS.items()}
    TopologicalSorter(kept).prepare()  # raises CycleError naming them


def test_losses_know_torch_alone() -> None:
    used = {module.split(".")[0] for name, found in GRAPH.items() if name.startswith("hubdistill.losses") for module, _ in found}
    assert used - sys.stdlib_module_names == {"torch", "triton", "hubdistill"}


def test_what_is_heavy_or_optional_has_one_file_and_waits_in_a_function() -> None:
    for library in ONE_FILE:
        found = [(name, inside) for name, modules in GRAPH.items() for module, inside in modules if module.split(".")[0] == library]
        assert len({name for name, _ in found}) <= (TRAINERS if library == "trl" else 1), f"{library} is imported by {found}"
        assert all(inside for _, inside in found), f"{library} is imported at the top of {found}"


def test_a_recipe_is_planned_and_a_run_pushed_without_importing_what_trains() -> None:
    code = f"import sys, {', '.join(LIGHT)}; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_forecast_needs_no_peft() -> None:
    code = "import sys, hubdistill.estimate.forecast, hubdistill.estimate.meta; print('peft' in sys.modules)"  # it takes seconds
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_the_command_line_alone_prints_and_exits() -> None:
    loud = {"print", "sys.stdout", "sys.stderr", "rich.print"}
    final = {"exit", "quit", "SystemExit", "sys.exit", "os._exit", "typer.Exit"}
    for name, tree in TREES.items():
        used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Name | ast.Attribute)}
        if name not in ("hubdistill.cli", "hubdistill.console", OWN_COMMAND):
            assert not used & loud, f"{name} prints; return the text, or hand it to the Reporter"
        if name not in ("hubdistill.cli", OWN_COMMAND, PROGRAM_ENDS):
            assert not used & final, f"{name} exits; raise an error of hubdistill/errors.py"


def test_no_import_is_hidden_and_no_except_catches_everything() -> None:
    for name, tree in TREES.items():
        nodes = list(ast.walk(tree))
        assert not [node.lineno for node in nodes if isinstance(node, ast.ExceptHandler) and node.type is None], f"{name}: a bare except"
        words = {node.id if isinstance(node, ast.Name) else node.attr for node in nodes if isinstance(node, ast.Name | ast.Attribute)}
        assert not words & {"import_module", "__import__"}, f"{name}: an import that this file cannot see"
