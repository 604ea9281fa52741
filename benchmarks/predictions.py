"""How far the forecast of memory is from what is measured, over a grid of batches and lengths.

    OMP_NUM_THREADS=1 python benchmarks/predictions.py            # about 20 minutes on 2 cores; Markdown on stdout

Each row is a process of its own: `hubdistill plan quickstart KEY=VALUE ... --probe --json`, which runs two optimiser steps and
samples 17 tokens at the longest lengths. Measured is the largest resident set of that process (on a GPU: what torch reserved),
libraries included; keys and values of tokens that were not sampled are added to it from the forecast.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True)
class Shape:
    pairs: int  # of a micro-batch
    prompt: int  # tokens
    response: int
    prompts: int = 8  # answered at once
    recipe: str = "quickstart"
    more: tuple[str, ...] = ()

    def command(self, device: str) -> list[str]:
        values = (f"train.micro_batch={self.pairs}", f"train.pairs_per_step={self.pairs}", f"prompts.max_tokens={self.prompt}", f"sampling.max_tokens={self.response}",
                  f"sampling.batch_size={self.prompts}", f"train.device={device}", *self.more)  # fmt: skip
        return [sys.executable, "-m", "hubdistill", "plan", self.recipe, *values, "--probe", "--json"]


CHECKPOINTING, INT4 = ("train.gradient_checkpointing=true",), "int4/smollm2-135m"
GRID = (
    Shape(1, 64, 64, 4), Shape(1, 256, 256, 8), Shape(1, 512, 256, 16), Shape(1, 1024, 256, 4), Shape(1, 256, 1024, 4), Shape(2, 512, 512, 4), Shape(4, 64, 64, 32),
    Shape(4, 160, 48, 16), Shape(4, 256, 256, 8), Shape(8, 64, 64, 8), Shape(8, 256, 128, 8),
    Shape(4, 256, 256, 8, more=CHECKPOINTING), Shape(2, 1024, 512, 4, more=CHECKPOINTING), Shape(4, 160, 48, 8, more=("teacher.placement=cached",)),
    Shape(2, 256, 128, 8, recipe=INT4), Shape(4, 128, 128, 8, recipe=INT4, more=CHECKPOINTING),
)  # fmt: skip


def rows_of(shape: Shape, device: str) -> list[dict]:
    """Stages with forecast and measured bytes."""
    done = subprocess.run(shape.command(device), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{shape}: exit {done.returncode}: {done.stderr[-2000:]}")
    return [stage for stage in json.loads(done.stdout)["forecast"]["memory"] if stage["measured"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="train.device (default: cpu)")
    device = parser.parse_args().device
    print("| recipe | pairs | prompt | response | answered at once | | stage | forecast MiB | measured MiB | error |\n|---|---|---|---|---|---|---|---|---|---|", flush=True)
    errors: dict[str, list[float]] = {}
    for shape in GRID:
        for stage in rows_of(shape, device):
            error = stage["bytes"] / stage["measured"] - 1
            errors.setdefault(stage["stage"], []).append(error)
            print(f"| {shape.recipe} | {shape.pairs} | {shape.prompt} | {shape.response} | {shape.prompts} | {' '.join(shape.more)} | {stage['stage']} "
                  f"| {stage['bytes'] / MIB:.0f} | {stage['measured'] / MIB:.0f} | {error:+.1%} |", flush=True)  # fmt: skip
    for stage, found in errors.items():
        sizes = [abs(error) for error in found]
        print(f"\n{stage}: {len(found)} shapes, mean error {statistics.mean(found):+.1%}, mean size {statistics.mean(sizes):.1%}, largest {max(sizes):.1%}")


if __name__ == "__main__":
    main()
