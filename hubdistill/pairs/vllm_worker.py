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
from collections import deque
from collections.abc import Callable
from pathlib import Path
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
    say({"ready": True})
    # Text goes in all at once, as into vllm.LLM; images are read as their turn comes, or they would all be in memory.
    waiting, most = deque(questions), 2 * engine.vllm_config.scheduler_config.max_num_seqs if task["images"] else len(questions)
    while waiting or engine.has_unfinished_requests():
        while waiting and engine.get_num_unfinished_requests() < most:
            question = waiting.popleft()
            (prompt,) = engine.renderer.render_cmpl([_prompt(question, task["images"])])
            _check_prompt(question, prompt)
            engine.add_request(question["id"], prompt, _params(task, question["seed"]), lora_request=adapter)
        for output in engine.step():
            if output.finished:
                (found,) = output.outputs
                say({"id": output.request_id, "ids": list(found.token_ids), "reason": found.finish_reason})


def _prompt(question: dict[str, Any], folder: str | None) -> dict[str, Any]:
    if "images" not in question:
        return {"prompt_token_ids": question["ids"]}
    from hubdistill.pairs.images import ImageStore

    store = ImageStore(Path(str(folder)), 0)  # which is only read
    return {"prompt_token_ids": question["short_ids"], "multi_modal_data": {"image": [store.open(name) for name in question["images"]]}}


def _check_prompt(question: dict[str, Any], prompt: Any) -> None:
    """Training reads the prompt as ours; vLLM's processor must have put the same tokens for its images."""
    if (found := list(prompt["prompt_token_ids"])) != question["ids"]:
        raise ValueError(f"vLLM reads prompt {question['id']} as {len(found)} tokens, and transformers as {len(question['ids'])}, or as others")


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
