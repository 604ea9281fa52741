"""`hubdistill` as a user starts it: a process of its own, with an environment of its own; and without either, which is faster."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]

# `main` as the installed script calls it. A run of tiny models frees memory a few dozen times, and each time Python's
# collector would walk the millions of objects that importing torch and transformers left: half of all the time. They
# are set aside at the first of these times, and until then nothing is collected; what a run makes is collected as ever.
START = """
import gc
gc.disable()
collect = gc.collect
def collect_first(*generation):
    gc.collect = collect
    gc.enable()
    found = collect(*generation)
    gc.freeze()
    return found
gc.collect = collect_first
from hubdistill.cli import main
main()
"""


@dataclass(frozen=True)
class Done:
    """What a finished command left: exit code, data (stdout), everything else (stderr)."""

    code: int
    out: str
    err: str


def hubdistill(*arguments: str | Path, folder: Path, home: Path | None = None, timeout: int = 240, **env: str) -> Done:
    """Run `hubdistill ARGUMENTS` in `folder`; `home` holds its caches. No token, and no Hub unless `env` names one."""
    home = home or folder / "home"
    full = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "HUBDISTILL_CACHE": str(home / "hubdistill"),
        "HF_ENDPOINT": "http://127.0.0.1:9",  # nothing listens there
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        **env,
    }
    command = [sys.executable, "-c", START, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=full, capture_output=True, text=True, timeout=timeout, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


def hub_client(steps: list[dict[str, Any]], folder: Path, home: Path, **env: str) -> tuple[list[dict[str, Any]], str]:
    """Results of tests.hub.client, one process for all `steps`, and all that it printed."""
    full = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        **env,
    }
    command = [sys.executable, "-m", "tests.hub.client"]
    done = subprocess.run(command, input=json.dumps(steps), env=full, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout), done.stdout + done.stderr


def called(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """`main` in this process, which has imported what takes a new one seconds: (exit code, stdout, stderr)."""
    from hubdistill import cli

    monkeypatch.setattr(sys, "argv", ["hubdistill", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said = capsys.readouterr()
    return stop.value.code, said.out, said.err


def here(*arguments: str | Path, folder: Path) -> Done:
    """As `hubdistill`, with the same caches, but `main` in this process, for what asks no Hub: a new process spends longer
    on imports than on a run of tiny models."""
    from hubdistill import cli

    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.chdir(folder)
        patch.setenv("HUBDISTILL_CACHE", str(folder / "home" / "hubdistill"))
        patch.setattr(sys, "argv", ["hubdistill", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    return Done(stop.value.code, out.getvalue(), err.getvalue())


def finished_run(folder: Path, recipe: str, said: str) -> Path:
    """The run directory of a shipped smoke recipe, through the command line, which ends with what is `said`."""
    done = here("run", recipe, folder=folder)
    assert done.code == 0, done.err
    assert said in done.out
    return folder / "runs" / recipe.replace("/", "-")


def as_a_user(code: str, folder: Path, **env: str) -> dict[str, Any]:
    """What Python code prints as JSON on its last line, on a machine that has nothing yet but what is installed."""
    home = {"PATH": "", "HOME": str(folder / "new"), "HF_HOME": str(folder / "new" / "hf"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=home | env, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def pushed_and_pulled(run: Path, folder: Path, **env: str) -> str:
    """What `pull` prints of a run's adapter, once it and its base are on the Hub."""
    pushed = hubdistill("push", run, "--repo", "org/smoke", "--base-repo", "org/smoke-base", folder=folder, **env)
    assert pushed.code == 0, pushed.err
    pulled = hubdistill("pull", "org/smoke", "--base", "org/smoke-base", folder=folder, **env)
    assert pulled.code == 0, pulled.err
    return pulled.out


def run(plan: Any, folder: Path, notes: Any) -> Path:
    """A plan run in this process, and recorded; its folder."""
    from hubdistill.publication import write_record
    from hubdistill.run import Run
    from hubdistill.rundir import RunDirectory

    with RunDirectory(folder, notes.stage).locked() as directory:
        current = Run(plan, directory, notes)
        current.distil()
        write_record(folder, plan, {"total": 1.0}, current.results(), current.chat_template())
    return folder
