"""Real hostile programs, really run: what each comes to, and that nothing of it is left."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from hubdistill.errors import SandboxError
from hubdistill.tasks import sandbox as module
from hubdistill.tasks.confine import ARCHITECTURES, _program
from hubdistill.tasks.sandbox import TRIALS, Limits, Outcome, Sandbox, counted

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Landlock and seccomp are Linux's")
QUICK = Limits(cpu=1, wall=20)
SHORT = Limits(cpu=1, wall=1)  # for what sleeps


@pytest.fixture(scope="module")
def box() -> Sandbox:
    try:
        return Sandbox.opened(QUICK)
    except SandboxError as problem:  # a container without Landlock, say
        pytest.skip(f"this machine isolates no programs: {problem}")


@linux
@pytest.mark.parametrize(
    ("program", "kind", "why"),
    [
        ("def f(x):\n    return 2 * x\ndef check(f):\n    assert f(2) == 4\ncheck(f)", "passed", ""),
        ("import math, collections, re, random, threading\nthread = threading.Thread(target=math.sqrt, args=(4,)); thread.start(); thread.join()", "passed", ""),
        ("from dataclasses import dataclass\n@dataclass\nclass Point:\n    x: int\nassert Point(3).x == 3", "passed", ""),
        ("def f(x: List[int]): pass", "failed", "NameError"),  # not imported; as in any file of its own
        ("raise ValueError('\\ud800')", "failed", "ValueError in line 1: ?"),  # half a character, which no file can hold
        ("assert 1 + 1 == 3", "failed", "AssertionError in line 1"),
        ("def f(:", "failed", "SyntaxError"),
        ("def f():\n    return f()\nf()", "failed", "RecursionError in line 2"),
        ("import sys; sys.exit(0)\nassert False", "failed", "before its tests"),
        ("exit()\nassert False", "failed", "before its tests"),
        ("import os; os._exit(0)\nassert False", "failed", "before its tests"),
        ("import os, threading\nthreading.Thread(target=lambda: os._exit(0)).start()\nimport time; time.sleep(9)", "failed", "before its tests"),
        ("while True: pass", "timed out", ""),
        ("import time; time.sleep(60)", "timed out", ""),
        ("while True: print('x' * 1_000_000)", "timed out", ""),
        ("import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass", "killed", ""),  # the limit that cannot be ignored
        ("x = bytearray(1 << 40)", "killed", "memory"),
        ("import ctypes; ctypes.string_at(0)", "killed", "SIGSEGV"),
        ("import os\nfor i in range(10): os.fork()", "refused", "os.fork"),
        ("import subprocess; subprocess.run(['sleep', '60'])", "refused", "subprocess.Popen('sleep'"),
        ("import multiprocessing; multiprocessing.Pool(2)", "refused", ""),
        ("import socket; socket.create_connection(('127.0.0.1', 80))", "refused", "socket"),
        ("for i in range(1000): open(f'fill{i}', 'wb').write(bytes(1 << 20))", "refused", "open('fill0'"),
        ("import os; os.open('x', os.O_CREAT | os.O_WRONLY)", "refused", "open('x'"),
        ("import os; os.open(os.__file__, os.O_RDONLY | os.O_TRUNC)", "refused", "os.py"),  # emptied without asking to write
        ("import os; fd = os.memfd_create('x')", "refused", ""),
        ("import os; os.kill(os.getppid(), 9)", "refused", "os.kill"),
        ("import os; os.chmod('/', 0)", "refused", "os.chmod"),
        ("import fcntl, os; fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, os.getppid())", "refused", "fcntl"),
        ("import os; os.listdir('/proc/1')", "refused", "os.listdir('/proc/1'"),
    ],
)  # fmt: skip
def test_each_program_comes_to_its_end(box: Sandbox, program: str, kind: str, why: str) -> None:
    started = time.monotonic()
    found = (replace(box, limits=SHORT) if "sleep(60)" in program else box).run(program)
    assert found.kind == kind, found
    assert why in found.why
    assert time.monotonic() - started < 15


@linux
def test_a_file_in_the_home_directory_is_neither_read_nor_touched(box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = tmp_path / "canary"
    canary.write_text("secret", encoding="utf-8")
    monkeypatch.setenv("HOME", str(tmp_path))
    for attempt in (f"open({str(canary)!r})", f"open({str(canary)!r}, 'w')", f"import os; os.remove({str(canary)!r})", f"import os; os.rename({str(canary)!r}, 'x')", f"import os; os.truncate({str(canary)!r}, 0)"):
        assert box.run(attempt).kind == "refused", attempt
    assert box.run("import os; assert os.path.expanduser('~') == '~' or 'HOME' not in os.environ").kind == "passed"
    assert canary.read_text(encoding="utf-8") == "secret"


@linux
def test_nothing_of_the_environment_or_of_open_files_is_inherited(box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with (tmp_path / "open").open("wb") as file:
        os.set_inheritable(file.fileno(), True)
        program = """
import os
assert 'HF_TOKEN' not in os.environ
for number in range(3, 256):
    try:
        os.write(number, b'forged')
    except OSError:
        pass
"""
        assert box.run(program) == Outcome("failed", "it ended itself before its tests were done (exit code 0)")  # it spoilt its own report, and that is all
    assert (tmp_path / "open").read_bytes() == b""


@linux
def test_no_process_and_no_folder_is_left(box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
    before = _children()
    short = replace(box, limits=SHORT)
    short.run("import time; time.sleep(60)")
    short.run("import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()")
    assert list(tmp_path.iterdir()) == []
    assert _children() == before


def _children() -> list[str]:
    return Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text(encoding="utf-8").split()


@linux
def test_where_a_trial_comes_through_nothing_is_run_unless_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(module.TRIALS, "does nothing", "pass")  # a trial that no kernel refuses
    monkeypatch.setattr(module, "_tried", module._tried.__wrapped__)
    with pytest.raises(SandboxError, match=r"a program that does nothing was not refused .*--no-isolation"):
        Sandbox.opened(QUICK)
    free = Sandbox.opened(QUICK, unconfined=True)
    assert "none but limits" in free.isolation
    assert free.run("import os; assert os.listdir('/')").kind == "passed"  # it is as unconfined as it says
    assert free.run("while True: pass").kind == "timed out"
    assert free.run(f"open({str(tmp_path / 'x')!r}, 'w').write('x' * 1_000_000)").kind == "failed"  # no byte is written all the same


def test_the_filter_is_well_formed_on_both_architectures() -> None:
    for architecture, column in ARCHITECTURES.values():
        code = _program(architecture, column)
        assert all(len(step) == 8 for step in code)
        assert len(code) < 4096  # the kernel's limit
        for at, step in enumerate(code):
            if step[0] in (0x15, 0x45):  # jumps stay inside
                assert at + 1 + max(step[2], step[3]) < len(code)


def test_trials_cover_what_is_promised() -> None:
    assert {"reads a file", "writes a file", "opens a socket", "forks", "sends a signal"} <= set(TRIALS)
    assert counted([Outcome("passed"), Outcome("failed"), Outcome("passed")]) == {"passed": 2, "failed": 1}
