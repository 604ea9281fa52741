"""Stands in for vllm_worker.py: the same protocol, answers made up from the prompt and the seed, and ways to fail.

    python fake_vllm.py HOW STARTED FD    # STARTED: a file that gets each job; HOW: well, dies-after-N, killed-after-N, kcut-after-N (in the middle of a line), raises-TEXT, wrong-id, hangs
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time


def answer(question: dict, most: int, stop: int) -> dict:
    """From 1 to `most` ids that depend on the prompt and its seed alone."""
    draw = random.Random(f"{question['seed']} {question['ids']}")
    ids = [draw.randint(4, 33) for _ in range(draw.randint(1, most))]
    return {"id": question["id"], "ids": ids if len(ids) == most else [*ids, stop], "reason": "length" if len(ids) == most else "stop"}


def main(how: str, record: str, descriptor: int) -> None:
    task = json.loads(sys.stdin.readline())
    questions = [json.loads(sys.stdin.readline()) for _ in range(task["questions"])]
    with open(record, "a") as started:
        here = {"asked": list(questions), "pid": os.getpid(), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "threads": os.environ.get("OMP_NUM_THREADS")}
        started.write(json.dumps(task | here) + "\n")
    # vLLM finishes whom it likes first.
    random.Random(0).shuffle(questions)
    with os.fdopen(descriptor, "w") as out:
        out.write(json.dumps({"ready": True}) + "\n")
        for done, question in enumerate(questions):
            if how.startswith("raises-"):
                print("a stack of many lines", file=sys.stderr)
                out.write(json.dumps({"error": how.removeprefix("raises-"), "cause": ""}) + "\n")
                sys.exit(1)
            if how in (f"dies-after-{done}", f"killed-after-{done}", f"kcut-after-{done}"):
                out.write('{"id": "0' if how.startswith("kcut") else "")
                out.flush()
                os.kill(os.getpid(), signal.SIGKILL) if how[0] == "k" else os._exit(7)
            if how == "hangs":
                time.sleep(600)
            said = answer(question, task["params"]["max_tokens"], task["params"]["stop_token_ids"][0])
            out.write(json.dumps(said | ({"ids": [40, *said["ids"][1:]]} if how == "wrong-id" else {})) + "\n")
        out.write(json.dumps({"done": len(questions)}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
