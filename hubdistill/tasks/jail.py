"""The process that one program of a model runs in; sandbox.py starts it, and it ends with the program.

A job comes in on stdin as JSON: the program, a secret, the limits, what may be read. What came of it goes out on the descriptor that the
command names, after the secret: a program that ends before its tests do has said nothing, whatever its exit code. Standard library alone.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

from hubdistill.tasks.confine import confine

SAID = 300  # characters of what went wrong
TELLING = ("open", "os.", "socket.", "subprocess.", "shutil.", "ctypes.", "signal.", "fcntl.", "mmap.")  # audit events that touch the world outside


def main(report: int) -> None:
    """Read the job, give up every right, run the program, say what came of it, end."""
    job = json.load(sys.stdin)
    _only_these_descriptors(report)
    _limit(**job["limits"])
    force = confine(job["readable"]) if job["confined"] else {}
    tried = _Tried(tuple(job["readable"]))
    sys.addaudithook(tried.heard)
    outcome = _run(job["program"], tried) if "program" in job else {"kind": "passed", "why": ""}
    os.write(report, (job["secret"] + json.dumps(outcome | {"force": force})).encode())
    os._exit(0)  # and nothing that the program left behind for the end of the interpreter


def _only_these_descriptors(report: int) -> None:
    """What the program prints goes nowhere; there is nothing to read."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    os.closerange(3, report)
    os.closerange(report + 1, 256)


def _limit(cpu: int, memory: int, files: int) -> None:
    """Seconds, bytes of address space, open files; no byte written to any file, no core dump."""
    for what, soft, hard in (
        (resource.RLIMIT_CPU, cpu, cpu + 1),  # a signal first that says why, then one that cannot be ignored
        (resource.RLIMIT_AS, memory, memory),
        (resource.RLIMIT_NOFILE, files, files),
        (resource.RLIMIT_FSIZE, 0, 0),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        resource.setrlimit(what, (soft, hard))


class _Tried:
    """The last thing that the program asked of the world outside: what was refused, where it was refused."""

    def __init__(self, readable: tuple[str, ...]):
        self.readable, self.last = readable, ""

    def heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(TELLING) and not str(arguments[:1]).removeprefix("('").startswith(self.readable):  # of what it imports, nothing
            named = [one for one in arguments if isinstance(one, str | bytes | int)][:2]
            self.last = f"{event}({', '.join(map(repr, named))})"[:SAID]


def _run(program: str, tried: _Tried) -> dict[str, str]:
    """Outcome of a program: it has passed when it came to its end."""
    try:
        exec(compile(program, "program", "exec", dont_inherit=True), {"__name__": "program"})
    except MemoryError:
        return {"kind": "killed", "why": "memory: it asked for more than the limit"}
    except PermissionError as problem:
        return {"kind": "refused", "why": f"{tried.last or 'a system call'}: {problem}"[:SAID]}
    except SystemExit:
        return {"kind": "failed", "why": "it ended itself before its tests were done"}
    except BaseException as problem:  # noqa: BLE001  whatever a program raises
        return {"kind": "failed", "why": f"{type(problem).__name__} in line {_line(problem)}: {problem}"[:SAID]}
    return {"kind": "passed", "why": ""}


def _line(problem: BaseException) -> int:
    """Line of the program where it was raised."""
    trace, lines = problem.__traceback__, [0]
    while trace:
        if trace.tb_frame.f_code.co_filename == "program":
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return lines[-1]
