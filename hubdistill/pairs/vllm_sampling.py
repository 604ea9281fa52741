"""The vLLM engine: a `Sampler` that hands questions to vLLM in a process of its own (vllm_worker.py) and reads answers as they finish.

The process ends with the sampling, so the accelerator is free for training; it ends as well when this one is killed.
Every prompt has its own seed, so a resumed run samples with the same noise. vLLM forms its batches by what is there, so
in 16 bits, where the rounding of scores depends on the batch, a resumed run may part from an uninterrupted one where two
tokens are all but equally likely.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hubdistill.errors import SamplingError
from hubdistill.pairs.store import Question, Response
from hubdistill.pairs.vllm_images import Pictures
from hubdistill.pairs.vllm_process import WORKER, Crew, WorkerProcess, shares_of_devices, started
from hubdistill.pairs.vllm_settings import vllm_version
from hubdistill.specs import SamplingSpec

Asked = dict[str, tuple[Question, int]]  # prompt id -> question and seed
BATCH, SECONDS = 256, 5.0  # a batch is written when it has so many responses, or is so old
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
    """`settings` are vLLM's EngineArgs; ids in `never` are not sampled; what vLLM prints goes to `log`; `workers` engines share the questions;
    `ready` is told in how many seconds they started; `pictures` are the images of a vision model's prompts."""

    settings: dict[str, Any]
    adapter: Path | None
    stop_ids: tuple[int, ...]
    never: tuple[int, ...]
    device: str  # type of device that vLLM must run on
    log: Path
    progress: Callable[[int, int], None] | None = None
    workers: int = 1
    ready: Callable[[float], None] | None = None
    pictures: Pictures | None = None
    command: Sequence[str] = WORKER
    engine: str = "vllm"
    version: str = field(default_factory=lambda: vllm_version() or "none")

    def sample(self, questions: Sequence[Question], settings: SamplingSpec, seed_of: Callable[[str], int]) -> Iterator[list[Response]]:
        asked = {question.prompt_id: (question, seed_of(question.prompt_id)) for question in questions}
        told = [self._line(question, seed) for question, seed in asked.values()]
        task = self._task(settings, questions)
        with ExitStack() as stack:
            shares = shares_of_devices(self.device, self.workers, self.settings.get("tensor_parallel_size", 1))[: len(asked)]
            crew = Crew([], self.ready)
            for number, devices in enumerate(shares):
                log = self.log if self.workers == 1 else self.log.with_suffix(f".{number}{self.log.suffix}")
                crew.workers.append(stack.enter_context(started(number, self.command, log, devices, crew.words)))
            for worker in crew.workers:
                share = told[worker.number :: len(shares)]
                worker.tell([{"questions": len(share), **task}, *share])
            yield from self._batches(crew, asked)

    def _line(self, question: Question, seed: int) -> dict[str, Any]:
        return {"id": question.prompt_id, "ids": question.prompt_ids, "seed": seed, **(self.pictures.of(question) if self.pictures else {})}

    def _task(self, settings: SamplingSpec, questions: Sequence[Question]) -> dict[str, Any]:
        # A greedy choice needs no nucleus, and vLLM would warn of one.
        params = {"temperature": settings.temperature, "top_p": settings.top_p if settings.temperature else 1.0, "max_tokens": settings.max_tokens, "stop_token_ids": self.stop_ids}
        pictures, folder = self.pictures.settings(questions) if self.pictures else {}, str(self.pictures.folder) if self.pictures else None
        return {"engine": self.settings | pictures, "images": folder, "adapter": str(self.adapter) if self.adapter else None, "device": self.device, "never": self.never, "params": params}

    def _batches(self, crew: Crew, asked: Asked) -> Iterator[list[Response]]:
        batch, since, finished = list[Response](), time.monotonic(), 0
        for said in crew.heard(SECONDS):
            if said is not None:
                since = since if batch else time.monotonic()
                batch.append(self._response(said, *asked[said["id"]]))
            if batch and (len(batch) >= BATCH or time.monotonic() - since > SECONDS):
                yield self._told(batch)
                batch, finished = [], finished + len(batch)
        if batch:  # also when an engine died: what was finished is kept
            yield self._told(batch)
            finished += len(batch)
        if crew.failed or finished != len(asked):
            raise self._failure(*(crew.failed or (crew.workers[0], {})), finished, len(asked))

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

    def _failure(self, worker: WorkerProcess, said: dict[str, Any], finished: int, total: int) -> SamplingError:
        what = " ".join(said.get("error", "an answer is missing").split())[:600].rstrip(".")
        words = f"{what} {said.get('cause', '')}".lower()
        now = self.settings.get("gpu_memory_utilization", 0)
        fix = next((fix.format(now=now) for sign, fix in MEMORY if sign in words), None)
        if worker.killed and fix is None:  # by the kernel, most often
            fix = f"it was killed, as the system does where main memory runs out: {MEMORY[-1][1].format(now=now)}, and run the same command again"
        other = "run the same command again, or write `sampling.engine: transformers`"
        kept = ", which are kept" if finished else ""
        return SamplingError(f"vLLM failed on {self.settings.get('model')} after {finished} of {total} responses{kept}: {what}. Its output is in {worker.log}; {fix or other}")
