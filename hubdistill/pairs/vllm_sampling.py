"""The vLLM engine: a `Sampler` that hands questions to vLLM in a process of its own (vllm_worker.py) and reads answers as they finish.

The process ends with the sampling, so the accelerator is free for training; it ends as well when this one is killed.
Every prompt has its own seed, so a resumed run samples with the same noise. vLLM forms its batches by what is there, so
in 16 bits, where the rounding of scores depends on the batch, a resumed run may part from an uninterrupted one where two
tokens are all but equally likely.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from hubdistill.errors import SamplingError
from hubdistill.pairs.store import Question, Response
from hubdistill.pairs.vllm_settings import vllm_version
from hubdistill.processes import without_group
from hubdistill.specs import SamplingSpec

WORKER = (sys.executable, "-P", "-m", "hubdistill.pairs.vllm_worker")  # -P: a folder named vllm where a user stands is not vLLM
BATCH, SECONDS = 256, 5.0  # a batch is written when it has so many responses, or is so old
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in the worker itself: its schedule is then the same every time
    "VLLM_NO_USAGE_STATS": "1",
}
# What vLLM says where memory is short -> what to change.
MEMORY = (
    ("desired gpu memory utilization", "lower sampling.vllm.gpu_memory_utilization (now {now:g}), or end what else uses that memory"),
    ("desired cpu memory utilization", "lower sampling.vllm.gpu_memory_utilization (now {now:g}; on a CPU it is a share of main memory)"),
    ("vllm_cpu_kvcache_space", "lower VLLM_CPU_KVCACHE_SPACE in the environment"),
    ("requested memory for kv (-", "raise sampling.vllm.gpu_memory_utilization (now {now:g}; on a CPU it is a share of main memory)"),
    ("requested memory for kv", "lower sampling.vllm.gpu_memory_utilization (now {now:g}), or end what else uses that memory"),
    ("available kv cache memory", "raise sampling.vllm.gpu_memory_utilization (now {now:g}), or lower prompts.max_tokens or sampling.max_tokens"),
    ("no available memory for the cache blocks", "raise sampling.vllm.gpu_memory_utilization (now {now:g}), or lower prompts.max_tokens or sampling.max_tokens"),
    ("can't allocate memory", "lower sampling.vllm.gpu_memory_utilization (now {now:g}), or end what else uses that memory"),
    ("out of memory", "lower sampling.vllm.gpu_memory_utilization (now {now:g}), or raise sampling.vllm.tensor_parallel_size"),
)


@dataclass
class VllmSampler:
    """`settings` are vLLM's EngineArgs; ids in `never` are not sampled; the worker's output goes to `log`."""

    settings: dict[str, Any]
    adapter: Path | None
    stop_ids: tuple[int, ...]
    never: tuple[int, ...]
    device: str  # type of device that vLLM must run on
    log: Path
    progress: Callable[[int, int], None] | None = None
    command: Sequence[str] = WORKER
    engine: str = "vllm"
    version: str = field(default_factory=lambda: vllm_version() or "none")

    def sample(self, questions: Sequence[Question], settings: SamplingSpec, seed_of: Callable[[str], int]) -> Iterator[list[Response]]:
        asked = {question.prompt_id: (question, seed_of(question.prompt_id)) for question in questions}
        with self._worker() as (worker, answers):
            self._ask(worker, settings, asked)
            yield from self._batches(worker, answers, asked)

    @contextmanager
    def _worker(self) -> Iterator[tuple[subprocess.Popen[bytes], IO[str]]]:
        """The process and what it says; it is gone at the end, with the processes that it started."""
        import hubdistill

        paths = [str(Path(hubdistill.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        reader, writer = os.pipe()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log, os.fdopen(reader, encoding="utf-8") as answers:
            worker = subprocess.Popen([*self.command, str(writer)], stdin=subprocess.PIPE, stdout=log, stderr=log, pass_fds=(writer,), start_new_session=True,
                                      env={**without_group(os.environ), **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(paths)})  # fmt: skip
            os.close(writer)
            try:
                yield worker, answers
            finally:
                _end(worker)

    def _ask(self, worker: subprocess.Popen[bytes], settings: SamplingSpec, asked: dict[str, tuple[Question, int]]) -> None:
        # A greedy choice needs no nucleus, and vLLM would warn of one.
        params = {"temperature": settings.temperature, "top_p": settings.top_p if settings.temperature else 1.0, "max_tokens": settings.max_tokens, "stop_token_ids": self.stop_ids}
        task = {"questions": len(asked), "engine": self.settings, "adapter": str(self.adapter) if self.adapter else None, "device": self.device,
                "never": self.never, "params": params}  # fmt: skip
        lines = [task, *({"id": key, "ids": question.prompt_ids, "seed": seed} for key, (question, seed) in asked.items())]
        assert worker.stdin is not None, "it was asked for"
        try:
            worker.stdin.write("".join(json.dumps(line) + "\n" for line in lines).encode())
            worker.stdin.flush()  # and left open: the worker ends itself when it closes
        except BrokenPipeError:
            pass  # it died; reading its answers says how

    def _batches(self, worker: subprocess.Popen[bytes], answers: IO[str], asked: dict[str, tuple[Question, int]]) -> Iterator[list[Response]]:
        batch, since, finished = list[Response](), time.monotonic(), 0
        for said in (json.loads(line) for line in answers if line.endswith("\n")):  # the last line of a process that was killed may be cut
            if "error" in said or "done" in said:
                break
            since = since if batch else time.monotonic()
            batch.append(self._response(said, *asked[said["id"]]))
            if len(batch) >= BATCH or time.monotonic() - since > SECONDS:
                yield self._told(batch)
                batch, finished = [], finished + len(batch)
        else:
            said = {"error": f"its process ended without a word (exit code {worker.wait()})"}
        if batch:  # also when the engine died: what it finished is kept
            yield self._told(batch)
            finished += len(batch)
        if "error" in said or finished != len(asked):
            raise self._failed(said, finished, len(asked), worker)

    def _response(self, said: dict[str, Any], question: Question, seed: int) -> Response:
        ids, reason = tuple(said["ids"]), said["reason"]
        stopped = bool(ids) and ids[-1] in self.stop_ids
        if reason not in ("stop", "length") or stopped != (reason == "stop") or set(ids) & set(self.never):
            raise SamplingError(f"vLLM's answer to prompt {question.prompt_id} is none that was asked for ({reason}, ids {list(ids[-3:])} at its end); write `sampling.engine: transformers`, and report this")
        return Response(question.prompt_id, question.prompt_ids, ids, reason, seed)

    def _told(self, batch: list[Response]) -> list[Response]:
        if self.progress:
            self.progress(len(batch), sum(len(response.response_ids) for response in batch))
        return batch

    def _failed(self, said: dict[str, Any], finished: int, total: int, worker: subprocess.Popen[bytes]) -> SamplingError:
        what = " ".join(said.get("error", "an answer is missing").split())[:600].rstrip(".")
        words = f"{what} {said.get('cause', '')}".lower()
        now = self.settings.get("gpu_memory_utilization", 0)
        killed = worker.poll() == -signal.SIGKILL
        fix = next((fix.format(now=now) for sign, fix in MEMORY if sign in words), None)
        if killed and fix is None:  # by the kernel, most often
            fix = MEMORY[-1][1].format(now=now) + " (it was killed, as the system does where main memory runs out)"
        other = "run the same command again, or write `sampling.engine: transformers`"
        return SamplingError(f"vLLM failed on {self.settings.get('model')} after {finished} of {total} responses, which are kept: {what}. Its output is in {self.log}; {fix or other}")


def _end(worker: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)  # it may have started one process for each device
    worker.wait()
    with suppress(BrokenPipeError):
        worker.stdin.close()  # type: ignore[union-attr]  # it was asked for
