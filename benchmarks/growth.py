"""How time and memory of the loss, and of a whole training step, grow with tokens, vocabulary and prompt: numbers, plots, and exponents.

    python benchmarks/growth.py                      # all three, on 2 cores in a quarter of an hour
    python benchmarks/growth.py --only vocab --limit-gib 4
    python benchmarks/growth.py --plot               # the plots anew, from the numbers that are there

    tokens   loss core against response tokens N at V=49152, D=576
    vocab    loss core against the vocabulary V at N=512, D=576
    prompt   step of SmolLM2-135M, one pair, against the length of its prompt at responses of 64 tokens

Every point is a process of its own with a time limit: peak memory beyond the inputs (or the models) in its first run, then the median
of --repeats runs by CPU time, kernel time included; a first run of more than 4 s is not repeated. Liger's is compiled before. A point that would take more than --limit-gib, were its
memory to grow in proportion from the point before, is left out, and so is one that fails or is too slow, with those after it.
Exponents are slopes between logarithms, of the larger half of the points. float32. Writes growth.json and SVG files to --output.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: its threads would spin, and spinning is CPU time

WIDTH, RESPONSE = 576, 64
SLOW = 4.0  # seconds of a first run that is not repeated


class Series(NamedTuple):
    """What grows: its plot's name, the axis, the points, and the variants with their names in the plot."""

    title: str
    axis: str
    points: tuple[int, ...]
    variants: dict[str, str]


LOSS = {"ours": "hubdistill, skl + srkl", "plain": "full logits, skl + srkl", "trl": "TRL chunked, JSD", "liger": "Liger fused, JSD"}
STEP = {"shared": "hubdistill, prompt read once", "unshared": "hubdistill, prompt read twice", "official": "official arithmetic", "trl": "TRL DistillationTrainer, JSD"}
SERIES = {
    "tokens": Series("loss core, V = 49,152", "response tokens N", (256, 512, 2048, 8192), LOSS),
    "vocab": Series("loss core, N = 512", "vocabulary V", (16384, 65536, 131072, 262144), LOSS),
    "prompt": Series("training step, SmolLM2-135M", "prompt tokens", (64, 256, 512, 1024, 2048), STEP),
}


def point(series: str, variant: str, x: int, repeats: int) -> dict[str, float]:
    """Seconds and MiB of one variant at one size, in this process."""
    import gc

    from loss_core import peak_mib, reset_peak, seconds_of

    run = _step(variant, x) if series == "prompt" else _loss(variant, *((x, 49152) if series == "tokens" else (512, x)))
    if variant == "liger":
        run()
    gc.collect()
    reset_peak()
    before = peak_mib()
    seconds = [seconds_of(run, "cpu")]
    memory = peak_mib() - before
    if seconds[0] < SLOW:
        seconds = [seconds_of(run, "cpu") for _ in range(repeats)]
    return {"seconds": statistics.median(seconds), "mib": memory}


def _loss(variant: str, tokens: int, vocab: int) -> Any:
    import torch
    from loss_variants import VARIANTS, make_inputs

    work = VARIANTS[variant][1]
    if variant != "liger":
        work(make_inputs(8, 64, 8, torch.float32))  # imports and threads
    inputs = make_inputs(tokens, vocab, WIDTH, torch.float32)
    return lambda: work(inputs)


def _step(variant: str, prompt: int) -> Any:
    import logging
    import warnings

    from train_step_variants import make_case, prepare, step
    from transformers.utils.logging import disable_progress_bar

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    disable_progress_bar()
    case = make_case("text", (prompt, RESPONSE), 1, "cpu", "float32", None)
    prepare(case, variant)

    def run() -> None:
        step(case, variant)
        case.student.zero_grad(set_to_none=True)

    return run


def measured(series: str, variant: str, args: argparse.Namespace) -> dict[int, dict[str, float]]:
    """Points of one variant, smallest first, each in a process of its own; says on stderr what it leaves out."""
    found: dict[int, dict[str, float]] = {}
    for x in sorted(args.points or SERIES[series].points):
        if found:
            last = max(found)
            expected = found[last]["mib"] / 1024 * x / last
            if expected > args.limit_gib:
                print(f"{series}, {variant}: {x} left out, it would take about {expected:.1f} GiB", file=sys.stderr, flush=True)
                break
        try:
            done = subprocess.run([sys.executable, __file__, "--point", series, variant, str(x), "--repeats", str(args.repeats), "--threads", str(args.threads)],
                                  capture_output=True, text=True, check=True, timeout=args.timeout)  # fmt: skip
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as problem:
            why = (getattr(problem, "stderr", None) or str(problem)).strip().splitlines()[-1]
            print(f"{series}, {variant}: {x} and more left out: {why}", file=sys.stderr, flush=True)
            break
        found[x] = json.loads(done.stdout.splitlines()[-1])
        print(f"{series}, {variant}, {x}: {found[x]['seconds']:.2f} s, {found[x]['mib']:.0f} MiB", file=sys.stderr, flush=True)
    return found


def exponent(points: dict[int, float]) -> float | None:
    """The slope of log y over log x by least squares, of the larger half of the points, three at least; None where there are fewer than two."""
    from math import log

    half = sorted(points)[-max(3, -(-len(points) // 2)) :]
    pairs = [(log(x), log(points[x])) for x in half if points[x] > 0]
    return statistics.linear_regression(*zip(*pairs, strict=True)).slope if len(pairs) > 1 else None


def table(found: dict[str, Any]) -> list[str]:
    """Markdown: the largest point and the exponents of each variant."""
    lines = ["| | against | variant | largest | CPU time | extra memory | time grows as | memory grows as |", "|---|---|---|---|---|---|---|---|"]
    for name, by_variant in found.items():
        series = SERIES[name]
        for variant, points in by_variant.items():
            values = {int(x): value for x, value in points.items()}
            if not values:
                continue
            last = max(values)
            powers = [exponent({x: value[kind] for x, value in values.items()}) for kind in ("seconds", "mib")]
            shown = ["" if power is None else f"x^{power:.2f}" for power in powers]
            lines.append(f"| {series.title} | {series.axis} | {series.variants[variant]} | {last:,} | {values[last]['seconds']:.2f} s | {values[last]['mib']:,.0f} MiB | {' | '.join(shown)} |")
    return lines


def draw(folder: Path, found: dict[str, Any]) -> None:
    """A plot of time and one of memory for each series."""
    from growth_plot import loglog
    from studies import on_white

    for name, by_variant in found.items():
        series = SERIES[name]
        for kind, unit in (("seconds", "CPU time, s"), ("mib", "extra memory, MiB")):
            curves = {series.variants[variant]: {int(x): value[kind] for x, value in points.items() if value[kind] > 0} for variant, points in by_variant.items()}
            curves = {label: curve for label, curve in curves.items() if curve}
            if curves:
                plot = loglog(curves, f"{series.title}: {unit} against {series.axis}", x_unit=series.axis, y_unit=f"{series.title}: {unit}")
                (folder / f"growth_{name}_{'time' if kind == 'seconds' else 'memory'}.svg").write_text(on_white(plot) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    import importlib.util

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(SERIES), choices=list(SERIES))
    parser.add_argument("--points", nargs="+", type=int, help="in place of the usual ones")
    parser.add_argument("--skip", nargs="*", default=[], choices=[*LOSS, *STEP], help="variants to leave out")
    parser.add_argument("--limit-gib", type=float, default=13.0, help="extra memory of a point (default 13)")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds of a point with its start (default 120)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "docs" / "benchmarks")
    parser.add_argument("--plot", action="store_true", help="measure nothing")
    parser.add_argument("--point", nargs=3, metavar=("SERIES", "VARIANT", "X"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.skip += [variant for variant, package in (("trl", "trl"), ("liger", "liger_kernel")) if importlib.util.find_spec(package) is None]
    return args


def main() -> None:
    args = parse()
    file = args.output / "growth.json"
    if args.point:
        import torch

        torch.set_num_threads(args.threads)
        print(json.dumps(point(args.point[0], args.point[1], int(args.point[2]), args.repeats)))
        return
    if not args.plot:
        import torch

        args.output.mkdir(parents=True, exist_ok=True)
        kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"series": {}}
        where = f"{date.today()}, {args.threads} threads, {platform.machine()}, torch {torch.__version__}"
        for name in args.only:
            found = {variant: measured(name, variant, args) for variant in SERIES[name].variants if variant not in args.skip}
            kept["series"][name] = {"where": where, "points": found}
            file.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    elif not file.is_file():
        raise SystemExit(f"{file} is not there; run without --plot first")
    kept = json.loads(file.read_text(encoding="utf-8"))["series"]
    points = {name: kept[name]["points"] for name in SERIES if name in kept}
    draw(args.output, points)
    print("; ".join(sorted({one["where"] for one in kept.values()})) + "\n")
    print("\n".join(table(points)))


if __name__ == "__main__":
    main()
