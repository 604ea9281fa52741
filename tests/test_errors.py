"""Errors are ours and the standard library's at once, print as one message, end with a fix, and have exit codes."""

import ast
import builtins
import re
from pathlib import Path

import pytest

import hubdistill
from hubdistill import cli, errors
from hubdistill.errors import (
    DoesNotFit,
    GateError,
    HubdistillError,
    HubError,
    InputError,
    JobError,
    MissingError,
    MissingPackageError,
    RecipeError,
    RunDirectoryError,
    SamplingError,
    SandboxError,
    TrainingError,
)

STANDARD = {RecipeError: ValueError, InputError: ValueError, MissingError: FileNotFoundError, HubError: ConnectionError, RunDirectoryError: OSError,
            TrainingError: RuntimeError, SamplingError: RuntimeError, SandboxError: RuntimeError, JobError: RuntimeError, MissingPackageError: ImportError, DoesNotFit: MemoryError,
            GateError: RuntimeError}  # fmt: skip


def make(kind: type[HubdistillError], text: str) -> HubdistillError:
    return kind(text.split("\n")) if kind is RecipeError else kind(text)


def test_no_error_is_missing_here():
    found = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, HubdistillError)}
    assert found == {HubdistillError, *STANDARD}


@pytest.mark.parametrize("kind", STANDARD)
def test_each_is_ours_and_the_standard_library_s(kind):
    standard = STANDARD[kind]
    assert getattr(builtins, standard.__name__) is standard
    for caught in (HubdistillError, standard):
        with pytest.raises(caught, match="what happened; the fix"):
            raise make(kind, "what happened; the fix")
    assert not issubclass(HubdistillError, standard)


@pytest.mark.parametrize("kind", STANDARD)
@pytest.mark.parametrize("text", ["runs/x: what happened; the fix", "one: a; b\ntwo: c; d", "[Errno 2] in 'quotes'"])
def test_each_prints_its_message_and_nothing_else(kind, text):
    assert str(make(kind, text)) == text


@pytest.mark.parametrize("kind", [MissingError, HubError, RunDirectoryError])
def test_operating_system_errors_without_a_message_print_nothing_strange(kind):
    assert str(kind()) == ""
    assert str(kind(2, "with a number")) == "2"


def test_a_recipe_error_keeps_its_problems_apart():
    found = RecipeError(["a.yaml:1: x: y; z", "a.yaml:2: u: v; w"])
    assert found.problems == ("a.yaml:1: x: y; z", "a.yaml:2: u: v; w")
    assert str(found).splitlines() == list(found.problems)


@pytest.mark.parametrize(("kind", "code"), [(kind, {TrainingError: 1, SamplingError: 1, JobError: 1, GateError: 1, DoesNotFit: 3}.get(kind, 2)) for kind in STANDARD])
def test_the_command_prints_the_message_to_stderr_and_exits_with_the_code(monkeypatch, capsys, kind, code):
    def fails():
        raise make(kind, "what happened; the fix")

    monkeypatch.delenv("HUBDISTILL_DEBUG", raising=False)
    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == kind.exit_code == code
    found = capsys.readouterr()
    assert (found.out, found.err) == ("", "what happened; the fix\n")


def test_debugging_shows_where_it_came_from(monkeypatch):
    def fails():
        raise InputError("what happened; the fix")

    monkeypatch.setenv("HUBDISTILL_DEBUG", "1")
    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(InputError):
        cli.main()


def test_a_mistake_of_ours_is_named_as_unexpected(monkeypatch, capsys):
    def fails():
        raise KeyError("x")

    monkeypatch.delenv("HUBDISTILL_DEBUG", raising=False)
    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    assert "Unexpected KeyError: 'x'\nRun again with HUBDISTILL_DEBUG=1" in capsys.readouterr().err


def message(node: ast.expr) -> str | None:
    """The text of a literal message with `{}` for what is filled in; None for what is no literal."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return None


def raised_messages():
    names = {kind.__name__ for kind in STANDARD}
    for path in sorted(Path(hubdistill.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names and node.args:
                text = message(node.args[0])
                if text and re.search(r"[a-z]", text):
                    yield f"{path.name}:{node.lineno}", text


def test_every_message_has_a_last_clause_for_the_fix():
    found = dict(raised_messages())
    assert len(found) > 80
    # "what; fix" or "What. Fix." or "what:\n{}\nFix" or "it is gated: accept"; one that is filled in at its end brings its own
    without = {place: text for place, text in found.items() if not re.search(r"(; |[.}] [A-Z]|\n[A-Z]|: accept ).+|\{\}\)?\.?$", text)}
    assert without == {}


def test_an_error_crosses_to_another_process_as_it_is():
    import pickle

    for kind in STANDARD:
        problem = make(kind, "a.yaml:1: no; do x\na.yaml:2: no; do y")
        assert str(pickle.loads(pickle.dumps(problem))) == str(problem)
