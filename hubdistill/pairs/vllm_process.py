"""A process that vLLM samples in (vllm_worker.py), seen from outside: how it is started, on which devices, what it says, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any

from hubdistill.processes import gpu_names, without_group

WORKER = (sys.executable, "-P", "-m", "hubdistill.pairs.vllm_worker")  # -P: a folder named vllm where a user stands is not vLLM
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in the worker itself: its schedule is then the same every time
    "VLLM_NO_USAGE_STATS": "1",
}
Words = SimpleQueue[tuple[int, dict[str, Any] | None]]  # number of a worker, and what it says; None at its end


@dataclass(frozen=True)
class WorkerProcess:
    """One of the processes of a response set; what vLLM prints is in `log`."""

    number: int
    process: subprocess.Popen[bytes]
    log: Path

    def tell(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Hand it its job. Nothing is raised where it is dead already: what it says, or does not, tells."""
        assert self.process.stdin is not None, "it was asked for"
        with suppress(BrokenPipeError):
            self.process.stdin.write("".join(json.dumps(line) + "\n" for line in lines).encode())
            self.process.stdin.flush()  # and left open: the worker ends itself when it closes

    @property
    def killed(self) -> bool:
        """Whether it was ended from outside; asked while this process still lets it live."""
        return self.process.poll() == -signal.SIGKILL

    def end(self) -> None:
        """End it, with the processes that it started: one for each device, it may be."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        with suppress(BrokenPipeError):
            self.process.stdin.close()  # type: ignore[union-attr]  # it was asked for


@dataclass
class Crew:
    """The workers of a response set. The first that fails is `failed`, with what it said of it; `ready` is told once, when every engine
    is there, in how many seconds."""

    workers: list[WorkerProcess]
    ready: Callable[[float], None] | None = None
    words: Words = field(default_factory=SimpleQueue)
    failed: tuple[WorkerProcess, dict[str, Any]] | None = None
    since: float = field(default_factory=time.monotonic)

    def heard(self, patience: float) -> Iterator[dict[str, Any] | None]:
        """Answers, from whom they come, until all are done or one has failed and nothing that was said is left; None where nothing comes for `patience` seconds."""
        busy = {worker.number for worker in self.workers}
        starting = set(busy)
        while busy and not (self.failed and self.words.empty()):
            try:
                number, said = self.words.get(timeout=patience)
            except Empty:
                yield None
                continue
            if said is not None and "ready" in said:
                starting.discard(number)
                if not starting and self.ready:
                    self.ready(time.monotonic() - self.since)
                continue
            if said is not None and not said.keys() & {"error", "done"}:
                yield said
                continue
            if number in busy and not (said and "done" in said) and not self.failed:
                worker = self.workers[number]
                self.failed = worker, said or {"error": f"its process ended without a word (exit code {worker.process.wait()})"}
            busy.discard(number)


@contextmanager
def started(number: int, command: Sequence[str], log: Path, shares: Mapping[str, str], words: Words) -> Iterator[WorkerProcess]:
    """A worker that says its words into `words`; `shares` are the variables that give it its devices. It is gone at the end."""
    import hubdistill

    paths = [str(Path(hubdistill.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    reader, writer = os.pipe()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output, os.fdopen(reader, encoding="utf-8") as answers:
        process = subprocess.Popen([*command, str(writer)], stdin=subprocess.PIPE, stdout=output, stderr=output, pass_fds=(writer,), start_new_session=True,
                                   env={**without_group(os.environ), **ENVIRONMENT, **shares, "PYTHONPATH": os.pathsep.join(paths)})  # fmt: skip
        os.close(writer)
        worker = WorkerProcess(number, process, log)
        listener = threading.Thread(target=_listen, args=(number, answers, words), daemon=True)
        listener.start()
        try:
            yield worker
        finally:
            worker.end()
            listener.join()  # its pipe ended with the process


def _listen(number: int, answers: IO[str], words: Words) -> None:
    try:
        for line in answers:
            if line.endswith("\n"):  # the last line of a process that was killed may be cut
                words.put((number, json.loads(line)))
    finally:
        words.put((number, None))


def shares_of_devices(device: str, workers: int, devices: int) -> list[dict[str, str]]:
    """The variables that give each of several workers `devices` GPUs of its own, or its share of the cores; none for one worker alone."""
    if workers == 1:
        return [{}]
    if device == "cpu":
        return [{"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers))}] * workers
    names = gpu_names()
    return [{"CUDA_VISIBLE_DEVICES": ",".join(names[start : start + devices])} for start in range(0, workers * devices, devices)]
