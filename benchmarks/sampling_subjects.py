"""Who samples in `sampling.py`: one subject of one job, in a process of its own.

    python benchmarks/sampling_subjects.py SUBJECT JOB.json RESULT.json

`ours` is what a run does: `collect` with `VllmSampler`, whose engine is in a further process. `bare` is `vllm.LLM` with the same
engine settings, seeds and environment. `stock` is `vllm.LLM` as it comes: compiled, engine in a process of its own, no seeds.
`transformers` is our transformers engine, collected in the same way.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import psutil

SUBJECTS = {"ours": "hubdistill, vLLM engine", "bare": "`vllm.LLM.generate`, same settings and seeds", "stock": "`vllm.LLM.generate`, its own settings, no seeds",
            "transformers": "hubdistill, transformers engine"}  # fmt: skip
Job = dict[str, Any]


class Watch:
    """Seconds, and CPU seconds of this process and those under it, from `ready` on; seconds before it are the start."""

    def __init__(self) -> None:
        self.begun = self.ready_at = time.monotonic()
        self.used = 0.0

    def ready(self, *_: Any) -> None:
        self.ready_at, self.used = time.monotonic(), cpu_seconds()

    def stop(self) -> dict[str, float]:
        return {"start": self.ready_at - self.begun, "sampling": time.monotonic() - self.ready_at, "cpu": cpu_seconds() - self.used}


def cpu_seconds() -> float:
    """Of all threads, also of processes under this one that have ended."""
    here = psutil.Process()
    times = [here.cpu_times(), *(child.cpu_times() for child in here.children(recursive=True))]
    return sum(one.user + one.system + one.children_user + one.children_system for one in times)


def make_job(args: Any, folder: Path) -> Job:
    """Prompts as token ids with their seeds, and what vLLM is told, as a recipe with these settings would give them."""
    import importlib.metadata

    import torch

    from hubdistill.modalities.text import encode_prompt
    from hubdistill.models.load import end_of_turn, generation_stops, load_tokenizer
    from hubdistill.models.sources import find_model
    from hubdistill.models.vllm_model import engine_settings
    from hubdistill.pairs.store import seed_for
    from hubdistill.pairs.vllm_settings import vllm_version
    from hubdistill.shipped import find_data
    from hubdistill.specs import ModelSpec, SamplingSpec

    facts = find_model(ModelSpec(model=args.model), Path.cwd())
    tokenizer = load_tokenizer(facts)
    rows = [json.loads(line)["prompt"] for line in find_data("quickstart_prompts.jsonl").read_text(encoding="utf-8").splitlines()[: args.prompts]]
    ids = [list(encode_prompt(tokenizer, [{"role": "user", "content": row}], [])) for row in rows]
    sampling = SamplingSpec(engine="vllm", temperature=args.temperature, max_tokens=args.max_tokens, batch_size=args.batch_size)
    adapter = _adapter(facts, args.rank, folder) if args.rank else None
    return {
        "folder": str(folder), "model": args.model, "adapter": adapter, "device": args.device, "dtype": args.dtype, "threads": torch.get_num_threads(),
        "device_name": torch.cuda.get_device_name() if args.device == "cuda" else "cpu", "sampling": sampling.model_dump(),
        "engine": engine_settings(facts, args.dtype, args.device, sampling, max(map(len, ids)), args.rank or None, trained=False),
        "questions": [{"id": f"p{i:04d}", "ids": one, "seed": seed_for(0, "round 1", "teacher", f"p{i:04d}")} for i, one in enumerate(ids)],
        "stop_ids": sorted({tokenizer.eos_token_id, end_of_turn(tokenizer), *generation_stops(facts)}), "pad_id": tokenizer.pad_token_id,
        "versions": {"vllm": vllm_version(), "torch": torch.__version__, "transformers": importlib.metadata.version("transformers")},
    }  # fmt: skip


def _adapter(facts: Any, rank: int, folder: Path) -> str:
    """A random adapter whose output is not zero."""
    import torch

    from hubdistill.models.layout import load_model
    from hubdistill.models.lora import attach_adapter
    from hubdistill.specs import LoraSpec

    adapted = attach_adapter(load_model(facts, "float32", torch.device("cpu")), LoraSpec(rank=rank, alpha=2 * rank), 0)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.01, generator=noise)
    adapted.save_pretrained(folder / "adapter")
    return str(folder / "adapter")


def through_hubdistill(job: Job, name: str) -> dict[str, Any]:
    """Sampled and kept as a run does it, by the engine `name`."""
    from hubdistill.pairs.sampling import Sampler
    from hubdistill.pairs.store import Question, ResponseHeader, collect
    from hubdistill.pairs.vllm_sampling import VllmSampler
    from hubdistill.specs import SamplingSpec

    watch, settings = Watch(), SamplingSpec(**job["sampling"])
    if name == "ours":
        adapter = Path(job["adapter"]) if job["adapter"] else None
        sampler: Sampler = VllmSampler(job["engine"], adapter, tuple(job["stop_ids"]), (), job["device"], Path(job["folder"]) / "vllm.log", ready=watch.ready)
    else:
        sampler = _transformers(job)
        watch.ready()
    seeds = {question["id"]: question["seed"] for question in job["questions"]}
    header = ResponseHeader(who="teacher", purpose="round 1", model=job["model"], commit="c", dtype=job["dtype"], vocab=0, adapter=None, template="t", sampling={},
                            stop_ids=(), engine=name, engine_version="", seed=time.time_ns())  # fmt: skip
    questions = [Question(question["id"], tuple(question["ids"])) for question in job["questions"]]
    found = collect(Path(job["folder"]) / name, header, questions, lambda missing: sampler.sample(missing, settings, seeds.__getitem__))
    return {**watch.stop(), "responses": [list(response.response_ids) for response in found.rows()]}


def _transformers(job: Job) -> Any:
    import torch

    from hubdistill.models.layout import load_model
    from hubdistill.models.lora import load_adapter
    from hubdistill.models.sources import find_model
    from hubdistill.pairs.sampling import TransformersSampler
    from hubdistill.specs import ModelSpec

    facts = find_model(ModelSpec(model=job["model"]), Path.cwd())
    model: Any = load_model(facts, job["dtype"], torch.device(job["device"]))
    if job["adapter"]:
        model = load_adapter(model, Path(job["adapter"]), trainable=False)
    return TransformersSampler(model, tuple(job["stop_ids"]), job["pad_id"], facts.text_config["vocab_size"])


def through_vllm(job: Job, *, stock: bool) -> dict[str, Any]:
    """`vllm.LLM.generate` on all prompts at once; with `stock`, as who writes a script for it would have it. Its start has the import in it, as ours has."""
    watch = Watch()
    if not stock:
        from hubdistill.pairs.vllm_process import ENVIRONMENT

        os.environ.update(ENVIRONMENT)
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    cpu = {"enforce_eager": True, "enable_chunked_prefill": False} if job["device"] == "cpu" else {}
    engine = LLM(**job["engine"], **({} if stock else cpu))
    watch.ready()
    said = {name: job["sampling"][name] for name in ("temperature", "top_p", "max_tokens")} | {"stop_token_ids": job["stop_ids"], "ignore_eos": True, "detokenize": False}
    params = [SamplingParams(**said, seed=None if stock else question["seed"]) for question in job["questions"]]
    found = engine.generate([{"prompt_token_ids": question["ids"]} for question in job["questions"]], params, use_tqdm=False,
                            lora_request=LoRARequest("student", 1, job["adapter"]) if job["adapter"] else None)  # fmt: skip
    return {**watch.stop(), "responses": [list(one.outputs[0].token_ids) for one in found]}


def main(name: str, job: Path, result: Path) -> None:
    what = json.loads(job.read_text(encoding="utf-8"))
    found = through_vllm(what, stock=name == "stock") if name in ("bare", "stock") else through_hubdistill(what, name)
    result.write_text(json.dumps(found | {"tokens": sum(map(len, found["responses"]))}), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
