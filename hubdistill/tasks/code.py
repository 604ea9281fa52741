"""HumanEval and MBPP, asked and read as EvalPlus does it (Liu et al. 2023, arXiv 2305.01210): its prompt, its way of finding the program in an
answer, one greedy answer a question, pass@1. The programs are run by sandbox.py and not by EvalPlus, whose process is no isolation.

The only file that imports evalplus.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from hubdistill.errors import InputError, MissingPackageError

# As evalplus.codegen.run_codegen has them.
INSTRUCTION = "Please provide a self-contained Python script that solves the following problem in a markdown code block:"
RESPONSE = "Below is a Python script with a self-contained function that solves the problem and passes corresponding tests:"
FENCE = "\n```\n"  # what ends a program in an answer of a chat model
# --no-deps: what it depends on are the clients of four companies' models; its sanitiser needs what the extra has.
INSTALL = "pip install 'hubdistill[benchmarks]', then pip install --no-deps evalplus==0.3.1"


def require_evalplus() -> None:
    """Raises MissingPackageError with the command that installs what is missing."""
    if missing := [name for name in ("evalplus", "tree_sitter", "tree_sitter_python", "appdirs", "tempdir", "wget", "termcolor") if find_spec(name) is None]:
        raise MissingPackageError(f"HumanEval and MBPP are asked as EvalPlus does it, and the Python package {missing[0]} is not installed; run: {INSTALL}")


def question_text(task: str, row: Mapping[str, Any]) -> str:
    """What EvalPlus shows of a question: HumanEval's head of a function; MBPP's task and first test, as a docstring."""
    if task == "humaneval":
        return str(row["prompt"]).strip() + "\n"
    text = str(row["prompt"]).strip()
    return f'{text}\n' if text.startswith('"""') else f'"""\n{text}\n{row["tests"][0]}\n"""\n'


def prompt_text(task: str, row: Mapping[str, Any], tokenizer: Any) -> str:
    """The rendered prompt, which goes to the model as it is; the question alone where the tokenizer has no chat template."""
    from evalplus.provider.utility import make_raw_chat_prompt

    return str(make_raw_chat_prompt(question_text(task, row), INSTRUCTION, RESPONSE, tokenizer))


def stops(task: str, chat: bool) -> list[str]:
    """Texts that end an answer."""
    from evalplus.provider.utility import EOS, extra_eos_for_direct_completion

    return [*EOS, *([FENCE] if chat else extra_eos_for_direct_completion(task))]


def solution(task: str, row: Mapping[str, Any], answer: str, chat: bool) -> str:
    """The program in an answer: up to the first text that ends it, then what EvalPlus's sanitiser leaves."""
    from evalplus.sanitize import sanitize

    ends = [at for stop in stops(task, chat) if (at := answer.find(stop)) >= 0]
    said = answer[: min(ends, default=len(answer))].replace("\t", "    ")  # as evalplus.provider.hf returns it
    return str(sanitize(said if chat else question_text(task, row) + said, entry_point(task, row)))


def entry_point(task: str, row: Mapping[str, Any]) -> str | None:
    """The function that is asked for; of MBPP, which does not name it, the first one that its first test calls and Python does not have."""
    if row.get("entry_point"):
        return str(row["entry_point"])
    try:
        calls = [node.func.id for node in ast.walk(ast.parse(str(row["tests"][0]))) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    except SyntaxError as problem:
        raise InputError(f"{task}: the test {str(row['tests'][0])[:80]!r} is no Python ({problem.msg}); correct the row") from problem
    return next((name for name in calls if not hasattr(builtins, name)), None)


def program(task: str, row: Mapping[str, Any], solved: str) -> str:
    """What is run: the solution, then the tests. HumanEval's are a function `check`, as those of EvalPlus's data sets may be.

    HumanEval's prompt comes first, as in human-eval: tests of three of its questions call functions that stand in it, and the sanitiser leaves out.
    """
    solved = f"{row['prompt']}\n\n{solved}" if task == "humaneval" and _is_python(str(row["prompt"])) else solved
    if tests := str(row.get("test") or ""):
        called = f"\ncheck({entry_point(task, row)})\n" if "def check(" in tests else "\n"
        return f"{_lines(row.get('setup'))}\n{solved}\n{tests}{called}"
    return f"{_lines(row.get('setup'))}\n{solved}\n{_lines(row['tests'])}\n"


def _is_python(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):
        return False
    return True


def _lines(found: Any) -> str:
    return "\n".join(map(str, found)) if isinstance(found, list | tuple) else str(found or "")
