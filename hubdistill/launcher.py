"""Starts the processes of a run on this machine: `hubdistill run` on a machine with several GPUs.

What torchrun would do, with hubdistill's exit codes and one message for one mistake.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

LIFELINE = "HUBDISTILL_LIFELINE"  # number of a pipe that closes when the launcher ends, however it ends
POLL = 0.1  # seconds between looks at the processes
SOON, GRACE = 2.0, 20.0  # seconds that the first has to end by itself when another failed, or was interrupted
INTERRUPTED = 130
TAIL = 4000  # characters of what a process said that are shown


def start(size: int, arguments: Sequence[str]) -> tuple[int, str]:
    """Run `hubdistill ARGUMENTS` in `size` processes. Returns the exit code of the run, which is that of the first to fail,
    else 0; and what that one said, where the user has not seen it."""
    reader, writer = os.pipe()
    try:
        with tempfile.TemporaryDirectory(prefix="hubdistill-") as folder:
            port, said = _free_port(), {rank: (Path(folder) / f"{rank}").open("w+b") for rank in range(1, size)}
            group = [_process(rank, size, arguments, reader, port, said.get(rank)) for rank in range(size)]
            try:
                failed = _watch(group)
            finally:
                _end(group)
            if not failed or group[0].returncode not in (0, -signal.SIGKILL):  # the first has the terminal
                return _code(group[failed or 0].returncode), ""
            said[failed].seek(0)
            return _code(group[failed].returncode), said[failed].read().decode(errors="replace")[-TAIL:]
    finally:
        os.close(reader)
        os.close(writer)


def _process(rank: int, size: int, arguments: Sequence[str], reader: int, port: int, said: BinaryIO | None) -> subprocess.Popen[bytes]:
    """One of them. The first has the terminal; what another says is kept for the case that it fails."""
    group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, LIFELINE: reader}
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // size))}
    quiet = {} if said is None else {"stdout": subprocess.DEVNULL, "stderr": said}
    return subprocess.Popen([sys.executable, "-P", "-m", "hubdistill", *arguments], pass_fds=(reader,), stdin=subprocess.DEVNULL, **quiet,  # type: ignore[call-overload,no-any-return]
                            env={**threads, **os.environ, **{name: str(value) for name, value in group.items()}})  # fmt: skip


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _watch(group: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """The rank that failed, once one has and the first had the time to say the same; None when all ended well."""
    failed, since = None, 0.0
    while True:
        with suppress(KeyboardInterrupt):  # it reaches them all from the terminal
            codes = [process.poll() for process in group]
            if all(code == 0 for code in codes):
                return None
            now = next((rank for rank, code in enumerate(codes) if code), None)
            if failed is None and now is not None:
                failed, since = now, time.monotonic()
            patience = GRACE if failed is not None and codes[failed] == INTERRUPTED else SOON
            if failed is not None and (codes[0] is not None or time.monotonic() - since > patience):
                return 0 if codes[0] else failed
            time.sleep(POLL)


def _end(group: Sequence[subprocess.Popen[bytes]]) -> None:
    """End those that still run: they wait for who is gone."""
    for process in group:
        if process.poll() is None:
            process.kill()
        process.wait()


def _code(code: int) -> int:
    """An exit code as a shell gives it: 128 and the signal for a process that was killed."""
    return 128 - code if code < 0 else code


def end_with_launcher() -> None:
    """End this process when its launcher ends, however that ended: nobody would notice when it waits for ever."""
    named = os.environ.pop(LIFELINE, None)
    if named is None:
        return

    def watch() -> None:
        os.read(int(named), 1)  # returns when the other end is closed
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
