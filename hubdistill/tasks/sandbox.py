"""Programs that a model wrote, each in a process of its own with no rights, and what came of them.

A program sees no environment, no network, no file but Python's library, and writes nowhere; jail.py and confine.py are what takes its rights,
this file is who starts it, waits for it and ends it. `Sandbox.opened()` tries all that on hostile programs before the first real one.
What it is not: a defence against a program that attacks the kernel, or that searches its own interpreter for the word that says "passed".
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import signal
import site
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from hubdistill.errors import InputError, SandboxError

Kind = Literal["passed", "failed", "timed out", "killed", "refused"]
PACKAGES = Path(__file__).parents[2]  # where hubdistill is, installed or not
BOOT = f"import sys; sys.path.insert(0, {str(PACKAGES)!r}); from hubdistill.tasks.jail import main; del sys.path[0]; main(int(sys.argv[1]))"
# What the library needs besides itself: shared libraries and their index, time zones, devices that hold nothing.
SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo", "/etc/localtime", os.devnull, "/dev/urandom")
LONGEST_REPORT = 64 << 10  # bytes
# Each needs another part of what holds a program.
TRIALS = {
    "reads a file": "open({canary!r}).read()",
    "lists a folder": "import os; os.listdir({folder!r})",
    "writes a file": "open('x', 'w').write('x')",
    "empties a file": "import os; os.open({canary!r}, 3 | os.O_TRUNC)",
    "opens a socket": "import socket; socket.socket()",
    "forks": "import os; os.fork()",
    "sends a signal": "import os; os.kill(os.getppid(), 0)",
    "changes a file's mode": "import os; os.chmod({canary!r}, 0)",
}


@dataclass(frozen=True)
class Outcome:
    """What came of a program. Only `passed` counts; `why` is empty for it."""

    kind: Kind
    why: str = ""


@dataclass(frozen=True)
class Limits:
    """Of one program. A busy machine takes no processor time from it, so `cpu` decides, and `wall` is for one that sleeps."""

    cpu: int = 5  # seconds of processor time
    wall: float = 30.0  # seconds until it is ended
    memory: int = 2 << 30  # bytes of address space
    files: int = 32  # open at once


@dataclass(frozen=True)
class Sandbox:
    """Runs programs. `confined` False leaves the limits of the process alone, for systems that have nothing better."""

    limits: Limits = Limits()
    confined: bool = True
    isolation: str = ""  # what is in force, for people

    @classmethod
    def opened(cls, limits: Limits | None = None, *, unconfined: bool = False) -> Sandbox:
        """A sandbox whose isolation was tried on hostile programs here and now. Raises SandboxError where a trial came through, or the kernel
        has nothing, unless `unconfined` is asked for."""
        limits = limits or Limits()
        if unconfined:
            return cls(limits, False, "none but limits of time, memory and files, as asked for: a program can read your files, write, and use the network")
        force, failed = _tried()
        if failed:
            raise SandboxError(
                f"no program of a model is run here: {failed}; run on Linux 5.13 or newer with Landlock and seccomp (x86-64 or arm64; containers have them), "
                "or, on a machine that holds nothing of value, let programs run without isolation (--no-isolation; in a recipe `allow_code_execution: unconfined`)"
            )
        apart = ", own user, network and IPC namespaces" if force["namespaces"] else ""
        return cls(limits, True, f"Landlock version {force['landlock']}, seccomp{apart}; no file but Python's library is read, none is written, no network, no other process")

    def run(self, program: str) -> Outcome:
        """Run one program to its end, or to its limits."""
        with tempfile.TemporaryDirectory(prefix="hubdistill-", ignore_cleanup_errors=True) as folder:
            return _outcome(*_started(program, self.limits, self.confined, folder))


@cache
def _tried() -> tuple[dict[str, Any], str]:
    """What is in force, and what did not hold; empty where all of it did."""
    if not sys.platform.startswith("linux"):
        return {}, f"{sys.platform} has no isolation that hubdistill knows"
    with tempfile.TemporaryDirectory(prefix="hubdistill-") as folder:
        canary = Path(folder, "canary")
        canary.write_text("not to be read", encoding="utf-8")
        where = {"canary": str(canary), "folder": folder}
        said = _started(None, Limits(), True, folder)[0]
        force = said.get("force", {})
        if not (force.get("landlock") and force.get("seccomp")):
            return force, f"the kernel gives no {'Landlock' if not force.get('landlock') else 'seccomp'}"
        for what, program in TRIALS.items():
            found = _outcome(*_started(program.format(**where), Limits(), True, folder))
            if found.kind != "refused":
                return force, f"in a trial, a program that {what} was not refused ({found.kind} {found.why})".rstrip()
        works = _outcome(*_started("import json, random, datetime; assert random.random() < 1", Limits(), True, folder))
    return force, "" if works.kind == "passed" else f"in a trial, a harmless program did not pass ({works.kind}: {works.why})"


def readable() -> list[str]:
    """Folders and files that a program may read: Python's library and the system's."""
    paths = sysconfig.get_paths()
    own = [paths["stdlib"], paths["platstdlib"], paths["purelib"], paths["platlib"], f"{sys.base_prefix}/lib", *site.getsitepackages()]
    return sorted({os.path.realpath(path) for path in (*own, *SYSTEM) if os.path.exists(path)} | {os.devnull})


def _started(program: str | None, limits: Limits, confined: bool, folder: str) -> tuple[dict[str, Any], int, bool]:
    """Start it and wait: what it reported (empty where it did not), its exit code, whether it was ended for taking too long."""
    secret = secrets.token_hex(16)
    job: dict[str, Any] = {"secret": secret, "confined": confined, "readable": readable(), "limits": {key: value for key, value in asdict(limits).items() if key != "wall"}}
    job |= {} if program is None else {"program": program}
    reading, writing = os.pipe()
    try:
        # -I: no variable of the environment, nothing of the current folder; -B: nothing written beside the library.
        command = [sys.executable, "-I", "-B", "-c", BOOT, str(writing)]
        environment = {"LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=(writing,), env=environment, cwd=folder, start_new_session=True)
    except OSError as problem:
        os.close(reading)
        raise InputError(f"a program could not be started ({problem}); free processes or memory, and run the command again") from problem
    finally:
        os.close(writing)
    try:
        with suppress(BrokenPipeError), process.stdin:  # type: ignore[union-attr]  # it was asked for
            process.stdin.write(json.dumps(job).encode())  # type: ignore[union-attr]
        said, late = _heard(reading, limits.wall)
        if not late:  # it has closed its end, and ends by itself
            with suppress(subprocess.TimeoutExpired):
                process.wait(1)
    finally:
        os.close(reading)
        _end(process)
    return _parsed(said, secret), process.returncode, late


def _heard(reading: int, seconds: float) -> tuple[bytes, bool]:
    """What comes until the other end closes, the time is over or it is too much; and whether the time was over."""
    until, said = time.monotonic() + seconds, b""
    with selectors.DefaultSelector() as selector:
        selector.register(reading, selectors.EVENT_READ)
        while len(said) <= LONGEST_REPORT:
            if not selector.select(max(0.0, until - time.monotonic())):
                return said, True
            if not (part := os.read(reading, 4096)):
                return said, False
            said += part
    return b"", False


def _end(process: subprocess.Popen[bytes]) -> None:
    """Its whole session, whatever it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _parsed(said: bytes, secret: str) -> dict[str, Any]:
    """A report that begins with the secret; all else is the program's own writing, and no report."""
    if not said.startswith(secret.encode()):
        return {}
    try:
        found = json.loads(said[len(secret) :])
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _outcome(report: dict[str, Any], code: int, late: bool) -> Outcome:
    if report.get("kind"):
        return Outcome(report["kind"], str(report.get("why", "")).encode("utf-8", "replace").decode())  # its words may hold half a character
    if late or code in (-signal.SIGXCPU,):
        return Outcome("timed out", "it took longer than the limit")
    if code == -signal.SIGSYS:
        return Outcome("refused", "a system call of another architecture")
    if code < 0:
        why = "memory, or by the system" if code == -signal.SIGKILL else signal.Signals(-code).name
        return Outcome("killed", why)
    return Outcome("failed", f"it ended itself before its tests were done (exit code {code})")


def counted(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """How many programs came to which end."""
    kinds = [one.kind for one in outcomes]
    return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
