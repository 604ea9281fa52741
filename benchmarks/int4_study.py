"""What wins back the most of what 4 bit cost? Three seeds, three losses, on recipes/int4/smollm2-135m.yaml.

    python benchmarks/int4_study.py [--seeds 0 1 2] [--losses distillm2 gkd seqkd] [--output runs/int4_study] [KEY=VALUE ...]

Every loss of a seed learns from the same teacher responses, in as many steps of as many pairs: one run directory a seed, in
which what does not depend on the loss (the teacher's responses, the first of the student, those to held-out prompts) is
sampled once. Run it again after an interruption: finished cells are kept. Prints a Markdown table: means over seeds (each
seed in brackets), shares of the gap with intervals over prompts, of each seed and of all seeds together.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from studies import duel, keep_settings, seeds_of

RECIPE = Path(__file__).parents[1] / "recipes" / "int4" / "smollm2-135m.yaml"
KL, TRUTH = "kl, teacher responses", "nll, ground-truth responses"
ROWS = ((KL, "kl to full precision on its responses, nats/token"), ("kl, own responses", "kl to full precision on own responses, nats/token"),
        ("agreement, teacher responses", "agreement on the next token"), (TRUTH, "nll of people's responses, nats/token"))  # fmt: skip
Values = dict[str, dict[str, dict[str, float]]]  # "metric, on" -> subject -> prompt id -> value


def main() -> None:
    options = _options()
    if options.cell:
        measure_cell(options, int(options.cell[0]), options.cell[1])
        return
    keep_settings(options.output, RECIPE, options.overrides)
    for seed in options.seeds:
        for loss in options.losses:
            if not _cell_file(options, seed, loss).is_file():  # a process of its own: its memory is measured
                subprocess.run([sys.executable, __file__, "--cell", str(seed), loss, "--output", str(options.output), *options.overrides], check=True)
    print("\n".join(table(options)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--losses", nargs="+", default=["distillm2", "gkd", "seqkd"])
    parser.add_argument("--output", type=Path, default=Path("runs/int4_study"))
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the recipe")
    return parser.parse_args()


def _cell_file(options: argparse.Namespace, seed: int, loss: str) -> Path:
    return options.output / f"seed_{seed}_{loss}.json"


def measure_cell(options: argparse.Namespace, seed: int, loss: str) -> None:
    """Train with one loss, and write what was measured for each prompt. What depends on the seed alone is measured by the first loss."""
    from hubdistill.console import ConsoleReporter, calm_libraries
    from hubdistill.plan import make_plan
    from hubdistill.recipe import load_recipe
    from hubdistill.run import Run
    from hubdistill.rundir import RunDirectory

    calm_libraries()
    reporter, started = ConsoleReporter(), time.monotonic()
    plan = make_plan(load_recipe(RECIPE, [*options.overrides, f"train.seed={seed}", f"loss.preset={loss}", "target.gap=ignore"]))
    with RunDirectory(options.output / f"seed_{seed}", reporter.stage).locked() as directory:
        run = Run(plan, directory, reporter)
        run.distil(until="train")
        trained = {name: seconds for name, seconds in directory.seconds().items() if name.endswith("-train")}
        tokens = directory_tokens(run.results())
        base = options.output / f"seed_{seed}_base.json"
        values, costs = measured(run, alone=base.is_file())
    if not base.is_file():
        _write(base, {"values": values, "costs": costs, "teacher_tokens": tokens})
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    _write(_cell_file(options, seed, loss), {"values": values, "train_seconds": sum(trained.values()), "seconds": time.monotonic() - started, "gib": memory, "teacher_tokens": tokens})


def _write(path: Path, found: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    from hubdistill.files import write_json

    write_json(path, dict(found))


def directory_tokens(results: Mapping[str, Mapping[str, Any]]) -> int:
    """Tokens of the teacher's responses that were trained on, each round."""
    return int(results["round_1-teacher"]["tokens"])


def measured(run: Any, alone: bool) -> tuple[Values, list[dict[str, Any]]]:
    """Every metric of every prompt; `alone`: of the distilled student only. And memory and time of each model."""
    from hubdistill.evaluation.cost import Costs
    from hubdistill.evaluation.heldout import _measure_subject, measure
    from hubdistill.examination import Examination
    from hubdistill.specs import EvaluationSpec

    adapters = {"distilled": run._adapter(run.plan.recipe.train.rounds)}
    with Examination(run.shop, adapters if alone else {"student": None, **adapters})._held_out() as heldout:
        costs = Costs(heldout)
        if alone:
            _measure_subject(heldout, heldout.subjects[0], {"divergence"}, None)
        else:
            measure(heldout, [EvaluationSpec(kind="divergence")], also=costs)
    return {f"{metric}, {on}": by_subject for (metric, on), by_subject in heldout.values.items()}, [] if alone else [row.as_dict() for row in costs.measurements()]


def table(options: argparse.Namespace) -> list[str]:
    """Full precision, 4 bit, and 4 bit with the adapter of each loss; then shares of the gap, and who beats whom."""
    bases = {seed: json.loads((options.output / f"seed_{seed}_base.json").read_text()) for seed in options.seeds}
    cells = {loss: {seed: json.loads(_cell_file(options, seed, loss).read_text()) for seed in options.seeds} for loss in options.losses}
    lines = [f"| measured | full precision | 4 bit | {' | '.join(options.losses)} |", "| --- " * (len(options.losses) + 3) + "|"]
    columns = {"teacher": bases, "student": bases} | cells
    for key, name in ROWS:
        by_column = {column: [mean(found.values()) for one in seeds.values() if (found := _values(one, key, column))] for column, seeds in columns.items()}
        lines.append(_row(name, by_column.values(), 3))
        if key == TRUTH:
            from math import exp

            lines.append(_row("perplexity of people's responses", [[exp(value) for value in values] for values in by_column.values()], 2))
    for key, name in ((KL, "share of the kl gap closed"), (TRUTH, "share of the nll gap closed")):
        lines.append(f"| {name}, all seeds | – | – | {' | '.join(_share(bases, found, key, options.seeds) for found in cells.values())} |")
        lines += [f"| seed {seed} | – | – | {' | '.join(_share(bases, found, key, [seed]) for found in cells.values())} |" for seed in options.seeds]
    lines.append(f"| training, minutes | – | – | {' | '.join(seeds_of([one['train_seconds'] / 60 for one in found.values()], 1) for found in cells.values())} |")
    lines.append(f"| memory at most, GiB | – | – | {' | '.join(seeds_of([one['gib'] for one in found.values()], 1) for found in cells.values())} |")
    return [*lines, "", *_costs(bases), "", *_duels(cells, options.seeds), "", f"Teacher tokens a round: {', '.join(str(one['teacher_tokens']) for one in bases.values())}."]


def _values(found: Mapping[str, Any], key: str, column: str) -> dict[str, float]:
    """Prompt id -> value; the teacher's kl to itself is left out."""
    return dict(found["values"].get(key, {}).get(column if column in ("teacher", "student") else "distilled", {}))


def _row(name: str, columns: Iterable[list[float]], digits: int) -> str:
    return f"| {name} | {' | '.join(seeds_of(values, digits) for values in columns)} |"


def _share(bases: Mapping[int, Any], cells: Mapping[int, Any], key: str, seeds: list[int]) -> str:
    """(4 bit - with adapter) / (4 bit - full precision). Of several seeds, a prompt's values are added up, so that prompts are resampled and not responses."""
    from hubdistill.evaluation.statistics import share

    parts, wholes = dict[str, float](), dict[str, float]()
    for seed in seeds:
        quantised, closed, full = _values(bases[seed], key, "student"), _values(cells[seed], key, "distilled"), _values(bases[seed], key, "teacher")
        for prompt in quantised.keys() & closed.keys():
            parts[prompt] = parts.get(prompt, 0) + quantised[prompt] - closed[prompt]
            wholes[prompt] = wholes.get(prompt, 0) + quantised[prompt] - full.get(prompt, 0)
    ids = sorted(parts)
    if not ids:
        return "–"
    value, low, high = share([parts[one] for one in ids], [wholes[one] for one in ids])
    return f"{value:.0%} [{low:.0%}, {high:.0%}]"


def _costs(bases: Mapping[int, Any]) -> list[str]:
    """Memory and time of each model, seeds in brackets; the adapter's size and speed do not depend on the loss."""
    found: dict[tuple[str, str], list[float]] = {}
    for base in bases.values():
        for row in base["costs"]:
            found.setdefault((f"{row['metric']}, {row['unit']}", row["subject"]), []).append(row["value"])
    names = list(dict.fromkeys(name for name, _ in found))
    lines = ["| cost of use | full precision | 4 bit | 4 bit with adapter |", "| --- | --- | --- | --- |"]
    return lines + [_row(name, [found.get((name, who), []) for who in ("teacher", "student", "distilled")], 1) for name in names]


def _duels(cells: Mapping[str, Mapping[int, Any]], seeds: list[int]) -> list[str]:
    """Each loss against the first, all seeds together; negative: the first has the lower kl or nll."""
    first, *others = cells
    lines = []
    for key, name in ((KL, "kl on its responses"), ("kl, own responses", "kl on own responses"), (TRUTH, "nll of people's responses")):
        for other in others:
            if found := duel(*([_values(cells[loss][seed], key, "distilled") for seed in seeds] for loss in (first, other))):
                lines.append(f"- {name}, {first} minus {other}: {found} nats/token")
    return lines


if __name__ == "__main__":
    main()
