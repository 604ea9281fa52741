"""Runs hubdistill.hub calls in a process of its own: JSON steps on stdin, one JSON result each on stdout.

The Hub client reads its environment when it is imported, so every test that depends on it runs here.
    echo '[{"call": "check_access", "args": ["org/x"]}]' | HF_ENDPOINT=... python -m tests.hub.client
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from hubdistill.errors import HubdistillError
from hubdistill.hub import access, base_publish, failures, publish, pull

CALLS: dict[str, Callable[..., Any]] = {
    "check_access": access.check_access,
    "preview": publish.preview,
    "push": publish.push,
    "check_push": publish.check_push,
    "push_base": base_publish.push_base,
    "pull": pull.pull,
    "usage": lambda ref: pull.usage(pull.pull(ref)),
    "fetch_recipe": pull.fetch_recipe,
}


def fault(**what: Any) -> None:
    """Ask the test server to fail: path (regex), status, times."""
    url = os.environ["HF_ENDPOINT"] + "/_test/faults"
    urlopen(Request(url, json.dumps(what).encode(), {"Content-Type": "application/json"})).close()


def plain(value: Any) -> Any:
    """A result as JSON can hold it."""
    value = dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
    return json.loads(json.dumps(value, default=str))


def run(step: dict[str, Any]) -> dict[str, Any]:
    """Carry out one step; a HubdistillError is a result, any other exception ends the process."""
    if "token" in step:
        os.environ["HF_TOKEN"] = step["token"]
    if step["call"] == "fault":
        fault(**step["kwargs"])
        return {}
    kwargs = {k: Path(v) if k in ("folder", "output") else v for k, v in step.get("kwargs", {}).items()}
    try:
        return {"ok": plain(CALLS[step["call"]](*step.get("args", []), **kwargs))}
    except HubdistillError as error:
        return {"error": type(error).__name__, "message": str(error)}


if __name__ == "__main__":
    logging.basicConfig(level=logging.DEBUG)  # so that a token in any log line is seen by the tests
    failures.DELAYS = pull.DELAYS = (0.05, 0.1, 0.1)
    print(json.dumps([run(step) for step in json.load(sys.stdin)]))
