"""Which loss makes the drafter whose tokens are accepted most? Seeds and losses on recipes/drafter/smollm2-135m.yaml.

    python benchmarks/drafter_study.py [--seeds 0 1 2] [--losses distillm2 gkd seqkd tvd] [--output runs/drafter_study] [KEY=VALUE ...]

Every loss of a seed learns from the same teacher responses, in as many steps of as many pairs: one run directory a seed, in
which what does not depend on the loss (the teacher's responses, the warm-up, the first responses of the student) is made
once. Run it again after an interruption: finished cells are kept. Prints a Markdown table: means over seeds (each seed in
brackets), then the first loss against the others, paired over prompts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from studies import duel, keep_settings, seeds_of

RECIPE = Path(__file__).parents[1] / "recipes" / "drafter" / "smollm2-135m.yaml"
ROWS = {"acceptance": 3, "agreement": 3, "kl": 3, "accepted_length": 3, "accepted_1": 3, "accepted_2": 3, "accepted_3": 3, "same_text": 2, "speed_up": 2}
BEFORE = ("student", "warm-up")
Values = dict[str, dict[str, dict[str, float]]]  # "metric, on" -> subject -> prompt id -> value


def main() -> None:
    options = _options()
    keep_settings(options.output, RECIPE, options.overrides)
    for seed in options.seeds:
        for loss in options.losses:
            if not _cell(options, seed, loss).is_file():
                train(options, seed, loss)
    print("\n".join(table(options)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--losses", nargs="+", default=["distillm2", "gkd", "seqkd", "tvd"])
    parser.add_argument("--output", type=Path, default=Path("runs/drafter_study"))
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the recipe")
    return parser.parse_args()


def _cell(options: argparse.Namespace, seed: int, loss: str) -> Path:
    return options.output / f"seed_{seed}_{loss}.json"


def train(options: argparse.Namespace, seed: int, loss: str) -> None:
    """A run with one loss, and what it measured for each prompt."""
    from hubdistill.console import ConsoleReporter, calm_libraries
    from hubdistill.files import write_json
    from hubdistill.plan import make_plan
    from hubdistill.recipe import load_recipe
    from hubdistill.run import Run
    from hubdistill.rundir import RunDirectory

    calm_libraries()
    reporter = ConsoleReporter()
    plan = make_plan(load_recipe(RECIPE, [*options.overrides, f"train.seed={seed}", f"loss.preset={loss}"]))
    with RunDirectory(options.output / f"seed_{seed}", reporter.stage).locked() as directory:
        run = Run(plan, directory, reporter)
        run.distil()
        results, seconds = run.results(), directory.seconds()
    found = {
        "values": json.loads((options.output / f"seed_{seed}" / "evaluation" / "values.json").read_text(encoding="utf-8")),
        "note": results["before-training"]["note"],
        "teacher_tokens": results["round_1-teacher"]["tokens"],
        "train_minutes": sum(taken for stage, taken in seconds.items() if stage.endswith("-train")) / 60,
    }
    write_json(_cell(options, seed, loss), found)


def table(options: argparse.Namespace) -> list[str]:
    """A column for the student before, after the warm-up, and after each loss."""
    cells = {loss: {seed: json.loads(_cell(options, seed, loss).read_text(encoding="utf-8")) for seed in options.seeds} for loss in options.losses}
    first = cells[options.losses[0]]
    columns = {name: (first, name) for name in BEFORE} | {loss: (found, "distilled") for loss, found in cells.items()}
    lines = [f"| measured | {' | '.join(columns)} |", "| --- " * (len(columns) + 1) + "|"]
    for key in first[options.seeds[0]]["values"]:
        metric, on = key.split(", ", 1)
        if metric in ROWS and on != "own responses":
            lines.append(f"| {metric} ({on}) | {' | '.join(seeds_of((_mean(one, key, who) for one in found.values()), ROWS[metric]) for found, who in columns.values())} |")
    lines.append(f"| training, minutes | – | – | {' | '.join(seeds_of((one['train_minutes'] for one in found.values()), 1) for found in cells.values())} |")
    notes = [f"- seed {seed}: {one['note']}" for seed, one in first.items()]
    return [*lines, "", *_duels(cells), "", *notes, "", f"Teacher tokens: {', '.join(str(one['teacher_tokens']) for one in first.values())}."]


def _mean(cell: Mapping[str, Any], key: str, subject: str) -> float:
    return mean(cell["values"][key][subject].values())


def _duels(cells: Mapping[str, Mapping[int, Any]]) -> list[str]:
    """The first loss against each other one, all seeds together; prompts are resampled, and a prompt's seeds stay together."""
    first, *others = cells
    lines = []
    for key in ("acceptance, teacher responses", "agreement, teacher responses", "kl, teacher responses"):
        for other in others:
            found = duel(*([cell["values"][key]["distilled"] for cell in cells[loss].values()] for loss in (first, other)))
            lines.append(f"- {key.split(',')[0]} on teacher responses, {first} minus {other}: {found}")
    return lines


if __name__ == "__main__":
    main()
