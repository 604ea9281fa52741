"""What a drafter is worth in vLLM: tokens a second alone and with it, acceptance by position, before and after distillation.

    python benchmarks/drafter_vllm.py prepare RUN FOLDER            # where hubdistill is installed; RUN is a finished run
    python benchmarks/drafter_vllm.py measure FOLDER [--drafted 3]  # where vLLM is installed, which may be another environment

`prepare` writes the verifier, the student and the student with its adapter merged in as plain model folders, and the held-out
prompts as token ids. `measure` decodes them greedily, one request at a time, each engine in a process of its own, and takes
turns: alone, before, after, `--repeats` times. On a CPU set VLLM_CPU_KVCACHE_SPACE=1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

SUBJECTS = ("alone", "before", "after")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("prepare")
    one.add_argument("run", type=Path)
    one.add_argument("folder", type=Path)
    one = commands.add_parser("measure")
    one.add_argument("folder", type=Path)
    one.add_argument("--drafted", type=int, default=3)
    one.add_argument("--max-tokens", type=int, default=32)
    one.add_argument("--prompts", type=int, default=12)
    one.add_argument("--repeats", type=int, default=2)
    one.add_argument("--subject", choices=SUBJECTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.command == "prepare":
        prepare(options.run, options.folder)
    elif options.subject:
        answer(options).write_text(json.dumps(decode(options)), encoding="utf-8")
    else:
        measure(options)


def prepare(run: Path, folder: Path) -> None:
    """The three models and the prompts, for any engine."""
    from hubdistill.finished import final_adapter, load_run, location
    from hubdistill.models.load import load_tokenizer, read_weights
    from hubdistill.models.merged import build_merged
    from hubdistill.models.sources import find_model
    from hubdistill.pairs.prompts import read_prompts
    from hubdistill.specs import ModelSpec

    record, _ = load_run(run)
    verifier = find_model(ModelSpec(model=record["recipe"]["teacher"]["model"], revision=record["recipe"]["teacher"]["revision"]), run)
    found = location(run)
    base = find_model(ModelSpec(model=found.base, revision=record["student"]["commit"] if found.on_hub else None), run)
    folder.mkdir(parents=True, exist_ok=True)
    for name, facts in (("alone", verifier), ("before", base)):
        read_weights(facts, "auto").save_pretrained(folder / name)
        load_tokenizer(facts).save_pretrained(folder / name)
    build_merged(base, final_adapter(run, record), None, folder / "after")
    prompts = [list(prompt.prompt_ids) for prompt in read_prompts(run / "prompts" / "heldout.parquet")]
    (folder / "prompts.json").write_text(json.dumps(prompts), encoding="utf-8")


def answer(options: argparse.Namespace) -> Path:
    """Where a subject's process leaves what it found; vLLM prints on stdout whatever it likes, also at its end."""
    return options.folder / f"{options.subject}.json"


def decode(options: argparse.Namespace) -> dict[str, Any]:
    """Tokens of each prompt, seconds, and vLLM's own counters, of one engine."""
    from vllm import LLM, SamplingParams
    from vllm.platforms import current_platform

    prompts = json.loads((options.folder / "prompts.json").read_text(encoding="utf-8"))[: options.prompts]
    settings: dict[str, Any] = {}
    if options.subject != "alone":
        settings["speculative_config"] = {"method": "draft_model", "model": str(options.folder / options.subject), "num_speculative_tokens": options.drafted}
    llm = LLM(model=str(options.folder / "alone"), dtype="float32", max_model_len=512, max_num_seqs=1, disable_log_stats=False, enable_prefix_caching=False, seed=0,
              enforce_eager=current_platform.is_cpu(), **settings)  # compiling takes minutes there
    greedy = SamplingParams(temperature=0.0, max_tokens=options.max_tokens)
    llm.generate([{"prompt_token_ids": prompts[0]}], greedy, use_tqdm=False)  # the first request sets things up
    before, texts, start = counters(llm), [], time.perf_counter()
    for prompt in prompts:
        texts.append(list(llm.generate([{"prompt_token_ids": prompt}], greedy, use_tqdm=False)[0].outputs[0].token_ids))
    seconds = time.perf_counter() - start
    counted = {name: [new - old for new, old in zip(values, before.get(name, [0] * len(values)), strict=True)] for name, values in counters(llm).items()}
    return {"texts": texts, "seconds": seconds, "counters": counted}


def counters(llm: Any) -> dict[str, list[int]]:
    """vLLM's counters of speculative decoding, as lists."""
    found = {}
    for metric in llm.get_metrics():
        if "spec_decode" in metric.name:
            found[metric.name.removeprefix("vllm:")] = list(getattr(metric, "values", None) or [metric.value])
    return found


def measure(options: argparse.Namespace) -> None:
    """Every subject in turn, each in a process of its own; then the table."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in SUBJECTS}
    for _ in range(options.repeats):
        for name in SUBJECTS:
            command = [sys.executable, __file__, "measure", str(options.folder), "--subject", name, "--drafted", str(options.drafted),
                       "--max-tokens", str(options.max_tokens), "--prompts", str(options.prompts)]  # fmt: skip
            subprocess.run(command, check=True)
            options.subject = name
            found[name].append(json.loads(answer(options).read_text(encoding="utf-8")))
    print("\n".join(table(found, options.drafted)))


def table(found: dict[str, list[dict[str, Any]]], drafted: int) -> list[str]:
    """A column for each subject; speed is the median over repeats of plain seconds over these."""
    lines = [f"| vLLM, greedy, {drafted} drafted | {' | '.join(found)} |", "| --- | --- | --- | --- |"]
    rows: dict[str, list[str]] = {"tokens a second": [], "times plain decoding": [], "tokens a verification": [], "accepted by position": [], "texts equal to plain": []}
    for runs in found.values():
        last = runs[-1]
        tokens, counted = sum(map(len, last["texts"])), last["counters"]
        rows["tokens a second"].append(f"{median(sum(map(len, one['texts'])) / one['seconds'] for one in runs):.1f}")
        rows["times plain decoding"].append(", ".join(f"{plain['seconds'] / one['seconds']:.2f}" for plain, one in zip(found["alone"], runs, strict=True)))
        drafts = sum(counted.get("spec_decode_num_drafts", [0]))
        accepted = counted.get("spec_decode_num_accepted_tokens_per_pos", [])
        rows["tokens a verification"].append(f"{1 + sum(accepted) / drafts:.3f}" if drafts else "1")
        rows["accepted by position"].append(", ".join(f"{one / drafts:.3f}" for one in accepted) if drafts else "–")
        same = sum(one == plain for one, plain in zip(last["texts"], found["alone"][-1]["texts"], strict=True))
        rows["texts equal to plain"].append(f"{same} of {len(last['texts'])} ({tokens} tokens)")
    return lines + [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]


if __name__ == "__main__":
    main()
