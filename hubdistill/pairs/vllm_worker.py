"""The process that vLLM lives in: vllm_sampling.py starts it, and what it held is free again when it ends.

A job comes in on stdin, one JSON value a line: what to start, then the questions. Answers go out on the file descriptor
that the command names, one JSON line each as they finish, so that whatever vLLM prints cannot come between them. The
only file that imports vllm. By hand: `python -m hubdistill.pairs.vllm_worker FD`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, BinaryIO

Say = Callable[[dict[str, Any]], None]


def serve(job: BinaryIO, say: Say) -> None:
    """Answer a job; what goes wrong is said as well, with its type, since the reader cannot see this process's stack."""
    try:
        task = json.loads(job.readline())
        questions = [json.loads(job.readline()) for _ in range(task["questions"])]
        threading.Thread(target=_end_with, args=(job.fileno(),), daemon=True).start()
        _answer(task, questions, say)
        say({"done": len(questions)})
    except Exception as problem:
        say({"error": f"{type(problem).__name__}: {problem}", "cause": str(problem.__cause__ or "")})
        raise  # the whole of it goes to the log


def _end_with(job: int) -> None:
    """Die with the process that reads the answers, however it died: its end of the pipe closes, and nobody waits for them."""
    os.read(job, 1)  # not the file object, whose lock would keep this process from ending by itself
    os.killpg(os.getpgrp(), signal.SIGKILL)  # with the processes of the other devices


def _answer(task: dict[str, Any], questions: list[dict[str, Any]], say: Say) -> None:
    engine = _engine(task)
    adapter = _adapter(task["adapter"])
    for question in questions:
        (prompt,) = engine.renderer.render_cmpl([{"prompt_token_ids": question["ids"]}])
        engine.add_request(question["id"], prompt, _params(task, question["seed"]), lora_request=adapter)
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                (found,) = output.outputs
                say({"id": output.request_id, "ids": list(found.token_ids), "reason": found.finish_reason})


def _engine(task: dict[str, Any]) -> Any:
    from vllm import EngineArgs, LLMEngine
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext

    if current_platform.device_type != task["device"]:
        raise ValueError(f"train.device is {task['device']}, and the vLLM installed here runs on {current_platform.device_type}")
    # On a CPU compiling takes longer than it saves, and an adapter switches it off anyway; and the seeds of prompts that are
    # read in parts fail there ("CPU Generator does not use offset").
    here = {"enforce_eager": True, "enable_chunked_prefill": False} if current_platform.is_cpu() else {}
    # The context is that of vllm.LLM: its batches are larger than an engine's own by up to eight times.
    return LLMEngine.from_engine_args(EngineArgs(**task["engine"], **here, disable_log_stats=True), usage_context=UsageContext.LLM_CLASS)


def _adapter(folder: str | None) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest("student", 1, folder) if folder else None


def _params(task: dict[str, Any], seed: int) -> Any:
    """Neutral but for what the recipe says; the stop ids are ours, so the model's own end does not count besides them."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    bias = {i: -100.0 for i in task["never"]} or None
    return SamplingParams(**task["params"], seed=seed, ignore_eos=True, logit_bias=bias, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY)


def main(descriptor: int) -> None:
    """Serve one job from stdin."""
    os.set_inheritable(descriptor, False)  # a process of vLLM's that outlives this one would keep the reader waiting
    with os.fdopen(descriptor, "w", encoding="utf-8") as answers:

        def say(what: dict[str, Any]) -> None:
            answers.write(json.dumps(what) + "\n")
            answers.flush()

        serve(os.fdopen(0, "rb", closefd=False), say)


if __name__ == "__main__":
    main(int(sys.argv[1]))
