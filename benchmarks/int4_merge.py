"""What merging costs an adapter of the int4 target: kl to full precision of the model unmerged, and merged into either base.

    hubdistill run int4/smollm2-135m
    python benchmarks/int4_merge.py runs/int4-smollm2-135m [--adapter DIR] [KEY=VALUE ...]

`KEY=VALUE` are the overrides that the run was started with. Scores the teacher's responses to the held-out prompts, which
lie in the run directory, and prints a Markdown table with 95 % intervals over the prompts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--adapter", type=Path, help="another one than that of the last round")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    print("| model | kl to full precision, nats/token | agreement |", "| --- | --- | --- |", *rows(options), sep="\n")


def rows(options: argparse.Namespace) -> list[str]:
    """A row for each way to use the adapter."""
    from hubdistill.console import ConsoleReporter, calm_libraries
    from hubdistill.evaluation.statistics import mean_and_interval
    from hubdistill.examination import Examination
    from hubdistill.plan import make_plan
    from hubdistill.recipe import load_recipe
    from hubdistill.stages import Workshop, borrowed

    calm_libraries()
    plan = make_plan(load_recipe(options.run / "recipe.yaml", options.overrides))
    shop = Workshop(plan, ConsoleReporter(quiet=True), options.run)
    found = []
    with Examination(shop, {})._held_out() as heldout:
        said = list(heldout.teacher_responses.rows())
        for name, load in ways(shop, options.adapter or options.run / f"round_{plan.recipe.train.rounds}" / "adapter").items():
            with borrowed(load) as model:
                scores = heldout.scorer.score(model, said)
            means = [mean_and_interval([scores[metric][key] for key in sorted(scores[metric])]) for metric in ("kl", "agreement")]
            found.append(f"| {name} | {' | '.join(f'{value:.4f} [{low:.4f}, {high:.4f}]' for value, low, high in means)} |")
    return found


def ways(shop: Any, adapter: Path) -> dict[str, Callable[[], Any]]:
    """Name -> what loads it. Merged into 4 bit, PEFT takes a layer out of 4 bit, adds the adapter and rounds it again."""
    from hubdistill.models.lora import load_adapter

    def merged(base: Any) -> Any:
        return load_adapter(base, adapter, trainable=False).merge_and_unload(safe_merge=True)

    return {
        "4 bit": shop.load_student,
        "4 bit, adapter beside it": lambda: load_adapter(shop.load_student(), adapter, trainable=False),
        "4 bit, adapter merged in": lambda: merged(shop.load_student()),
        "full precision, adapter merged in": lambda: merged(shop.load_teacher()),
    }


if __name__ == "__main__":
    main()
