"""Runs hubdistill.hub calls in a process of its own: JSON steps on stdin, one JSON result each on stdout.

The Hub client reads its environment when it is imported, so every test that depends on it runs here.
    echo '[{"call": "check_access", "args": ["org/x"]}]' | HF_ENDPOINT=... python -m tests.hub.client
With `--serve` it stays, for tests that share an environment: a line of steps on stdin, a line of results on stdout.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from hubdistill.errors import HubdistillError
from hubdistill.hub import access, base_publish, failures, mirror, publish, pull
from hubdistill.rundir import RunDirectory


def command(*arguments: str) -> dict[str, Any]:
    """`hubdistill ARGUMENTS` in this process: {code, out, err}."""
    from hubdistill import cli

    out, err, code = io.StringIO(), io.StringIO(), 0
    before, sys.argv = sys.argv, ["hubdistill", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = before
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


def mirrored(folder: Path, repo: str, stages: dict[str, dict[str, Any]], close: bool = True) -> dict[str, Any]:
    """Stages of a run in `folder`, mirrored to `repo`; each is {outputs: names, files: {name: text}, without: folders, meanwhile: steps}."""
    notes: list[str] = []
    said: list[list[str]] = []
    folder.mkdir(exist_ok=True)
    mirror.create_mirror(repo)
    directory = RunDirectory(folder, lambda name, what: said.append([name, what]))
    kept = mirror.Mirror(repo, directory, notes.append)
    fetched = kept.fetch()
    directory.kept = kept.keep

    def work(files: dict[str, str], meanwhile: list[dict[str, Any]] = (), without: list[str] = (), **other: Any) -> None:
        for name in without:
            shutil.rmtree(folder / name)
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        for step in meanwhile:
            assert "error" not in run(step), step

    for name, stage in stages.items():
        directory.stage(name, stage.get("inputs", name), stage["outputs"], lambda stage=stage: work(**stage))
    if close:
        kept.close()
    return {"fetched": fetched, "said": said, "notes": notes}


CALLS: dict[str, Callable[..., Any]] = {
    "check_access": access.check_access,
    "preview": publish.preview,
    "push": publish.push,
    "check_push": publish.check_push,
    "push_base": base_publish.push_base,
    "pull": pull.pull,
    "usage": lambda ref: pull.usage(pull.pull(ref)),
    "fetch_recipe": pull.fetch_recipe,
    "command": command,
    "mirrored": mirrored,
}


def control(call: str, **what: Any) -> None:
    """Tell the test server to fail (`fault`: path (regex), status, times), or to be otherwise (`set`)."""
    url = os.environ["HF_ENDPOINT"] + {"fault": "/_test/faults", "set": "/_test/set"}[call]
    urlopen(Request(url, json.dumps(what).encode(), {"Content-Type": "application/json"})).close()


def plain(value: Any) -> Any:
    """A result as JSON can hold it."""
    value = dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
    return json.loads(json.dumps(value, default=str))


def run(step: dict[str, Any]) -> dict[str, Any]:
    """Carry out one step; a HubdistillError is a result, any other exception ends the process."""
    if "token" in step:
        os.environ["HF_TOKEN"] = step["token"]
    if step["call"] in ("fault", "set"):
        control(step["call"], **step["kwargs"])
        return {}
    kwargs = {k: Path(v) if k in ("folder", "output") else v for k, v in step.get("kwargs", {}).items()}
    try:
        return {"ok": plain(CALLS[step["call"]](*step.get("args", []), **kwargs))}
    except HubdistillError as error:
        return {"error": type(error).__name__, "message": str(error)}


if __name__ == "__main__":
    logging.basicConfig(level=logging.DEBUG)  # so that a token in any log line is seen by the tests
    failures.DELAYS = pull.DELAYS = (0.05, 0.1, 0.1)
    if sys.argv[1:] == ["--serve"]:
        for line in sys.stdin:
            print(json.dumps([run(step) for step in json.loads(line)]), flush=True)
    else:
        print(json.dumps([run(step) for step in json.load(sys.stdin)]))
