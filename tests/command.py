"""`hubdistill` as a user starts it: a process of its own, with an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


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
    command = [sys.executable, "-c", "from hubdistill.cli import main; main()", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=full, capture_output=True, text=True, timeout=timeout, check=False)
    return Done(done.returncode, done.stdout, done.stderr)
