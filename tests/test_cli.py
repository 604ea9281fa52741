"""The command line: what goes to stdout, exit codes, and errors as a user reads them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from hubdistill import cli
from hubdistill.console import ConsoleReporter
from hubdistill.errors import HubdistillError, InputError, TrainingError
from tests import tiny
from tests.command import ROOT, called, hubdistill

FOUR_MISTAKES = """\
target:   {kind: text}
teacher:  {model: org/teacher}
student:  {model: org/student}
prompts:  {dataset: my_prompts.jsonl}
sampling: {temperature: hot}
warmup:   {kind: none}
loss:     {preset: distillm2}
lora:     {rank: -16, alpha: 32}
train:
  rouns: 2
evaluate: []
"""


def test_help_names_every_command_and_a_way_to_start(monkeypatch, capsys):
    code, out, _ = called(monkeypatch, capsys, "--help")
    assert code == 0
    assert "hubdistill run quickstart" in out.replace("\n", " ")
    for command in ("run", "plan", "prompts", "sample", "warmup", "train", "evaluate", "benchmark", "card", "push", "pull", "recipes"):
        assert f"│ {command} " in out


@pytest.mark.parametrize("command", ["run", "plan", "train"])
def test_four_mistakes_are_told_at_once_with_their_lines(tmp_path, monkeypatch, capsys, command):
    (tmp_path / "bad.yaml").write_text(FOUR_MISTAKES)
    monkeypatch.chdir(tmp_path)
    code, out, err = called(monkeypatch, capsys, command, "bad.yaml")
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert len(lines) == 4
    starts = ("bad.yaml:4: prompts.dataset: 'my_prompts.jsonl' is not there", "bad.yaml:5: sampling.temperature: wants a number",
              "bad.yaml:8: lora.rank: must be at least 1", "bad.yaml:10: train.rouns: unknown key; did you mean 'rounds'?")  # fmt: skip
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "quikstart"], "did you mean the shipped recipe 'quickstart'?"),
        (["plan", "missing.yaml"], "missing.yaml: no such recipe"),
        (["plan", "quickstart", "train.rouns=2"], "override 'train.rouns=2': train.rouns: unknown key; did you mean 'rounds'?"),
        (["plan", "quickstart", "train.rounds"], "train.rounds"),
        (["push", "nowhere", "--repo", "a/b"], "hubdistill run RECIPE"),
        (["card", "nowhere"], "there is no run at nowhere"),
        (["pull", "no spaces allowed"], "neither a folder nor a Hub repository"),
        (["recipes", "quickstrat"], "did you mean"),
        (["rnu", "x"], "No such command 'rnu'"),
        (["push", "x"], "Missing option '--repo'"),
        (["recipes", "quickstart", "--copy", "nope/x.yaml"], "its folder is not there; make that folder, or choose another place with --copy"),
        (["recipes", "quickstart", "--copy", "afile/x.yaml"], "a part of the path is a file; choose another place with --copy"),
        (["plan", "x" * 300 + ".yaml"], "File name too long"),
        (["plan", "x" * 300], "File name too long"),
        (["plan", "o/" + "x" * 300], "is neither a folder nor a Hub repository"),
        (["card", "x" * 300], "there is no run at"),
        (["pull", "x" * 300], "neither a folder nor a Hub repository"),
        (["plan", "quickstart", "--revision", "v1"], "--revision is for a recipe on the Hub"),
    ],
)
def test_a_user_error_has_exit_code_2_and_names_the_fix(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "afile").write_text("")
    code, out, err = called(monkeypatch, capsys, *arguments)
    assert (code, out) == (2, "")
    assert words in " ".join(err.split())
    assert "Traceback" not in err


@pytest.mark.parametrize(("error", "code"), [(InputError("no; do x"), 2), (TrainingError("NaN; lower it"), 1), (ZeroDivisionError("oh"), 1)])
def test_no_error_shows_a_traceback_or_a_token_unless_debugging(monkeypatch, capsys, error, code):
    token = "hf_" + "q" * 34
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.delenv("HUBDISTILL_DEBUG", raising=False)
    monkeypatch.setattr(cli, "app", lambda: (_ for _ in ()).throw(type(error)(f"{error} with {token}")))
    found, out, err = called(monkeypatch, capsys)
    assert (found, out) == (code, "")
    assert str(error) in err
    assert token not in err
    assert "Traceback" not in err
    assert ("HUBDISTILL_DEBUG=1" in err) == (not isinstance(error, HubdistillError))
    monkeypatch.setenv("HUBDISTILL_DEBUG", "1")
    with pytest.raises(type(error)):
        cli.main()


def test_recipes_can_be_listed_shown_and_copied_to_edit(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, _ = called(monkeypatch, capsys, "recipes")
    assert code == 0
    assert "quickstart" in out.split()
    code, shown, _ = called(monkeypatch, capsys, "recipes", "quickstart")
    assert shown == (ROOT / "recipes" / "quickstart.yaml").read_text()
    code, out, _ = called(monkeypatch, capsys, "recipes", "quickstart", "--copy", "mine.yaml")
    assert (code, (tmp_path / "mine.yaml").read_text()) == (0, shown)
    assert "hubdistill plan mine.yaml" in out
    code, _, err = called(monkeypatch, capsys, "recipes", "quickstart", "--copy", "mine.yaml")
    assert code == 2
    assert "choose another file name" in err


def test_a_plan_is_data_on_stdout(tmp_path, monkeypatch, capsys):
    tiny.write_recipe(tmp_path)
    done = hubdistill("plan", "tiny.yaml", "train.rounds=3", "--json", folder=tmp_path)
    found = json.loads(done.out)
    assert done.code == 0
    assert found["rounds"] == 3
    assert [row["round"] for row in found["beta"]] == [1, 2, 3]
    assert found["steps_per_round_at_most"] == 2
    monkeypatch.chdir(tmp_path)
    _, told, _ = called(monkeypatch, capsys, "plan", "tiny.yaml")
    assert "2 of at most 2 steps of 4 pairs" in told
    assert told.endswith("Next: hubdistill run tiny.yaml\n")
    _, told, _ = called(monkeypatch, capsys, "plan", "tiny.yaml", "train.rounds=3", "evaluate=[{kind: overlap}]")
    assert told.endswith("Next: hubdistill run tiny.yaml train.rounds=3 'evaluate=[{kind: overlap}]'\n")
    assert not (tmp_path / "runs").exists()


def test_a_single_stage_says_how_to_go_on_in_the_same_directory(tmp_path, monkeypatch, capsys):
    tiny.write_recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    code, out, err = called(monkeypatch, capsys, "prompts", "tiny.yaml", "train.rounds=3", "-o", "my run")
    assert code == 0, err
    assert out.endswith("Next: hubdistill run tiny.yaml train.rounds=3 -o 'my run'\n")


def test_a_round_that_is_not_there_is_refused_before_anything_runs(tmp_path, monkeypatch, capsys):
    tiny.write_recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    code, _, err = called(monkeypatch, capsys, "train", "tiny.yaml", "--round", "3")
    assert code == 2
    assert "the recipe has 2 rounds" in " ".join(err.split())
    assert not (tmp_path / "runs").exists()


def test_an_interruption_that_a_library_swallows_is_obeyed_at_the_next_report():
    before = signal.getsignal(signal.SIGINT)
    try:
        reporter = ConsoleReporter(quiet=True)
        reporter.stage("sample", "started")
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        for report in (lambda: reporter.advance(1), lambda: reporter.start("a", 2, "steps"), lambda: reporter.stage("b", "started")):
            with pytest.raises(KeyboardInterrupt):
                report()
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interruption_keeps_what_is_done_and_says_how_to_go_on(tmp_path):
    tiny.write_recipe(tmp_path)
    code = "from hubdistill.cli import main; main()"
    env = {**os.environ, "HOME": str(tmp_path), "HUBDISTILL_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen([sys.executable, "-c", code, "run", "tiny.yaml", "sampling.max_tokens=180", "sampling.temperature=5"], cwd=tmp_path, env=env,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    deadline = time.monotonic() + 60
    while not (tmp_path / "runs" / "tiny" / "stages" / "prompts.json").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "To go on: hubdistill run tiny.yaml sampling.max_tokens=180 sampling.temperature=5" in err
    assert "Traceback" not in err
