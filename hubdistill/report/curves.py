"""What training logged, as plots: both sides of the loss, likelihoods (Figure 1b of the paper), alpha, beta, gaps, lengths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean
from typing import Any, NamedTuple

from hubdistill.hub.run_card import DIVERGENCES, whose_responses
from hubdistill.report.plots import COLOURS, PLAIN, Style, bars, lines

MOST = 400  # points of a curve; more are means of neighbours
NAMED, MARKED = 4, 20  # rounds up to which the beginning of each is named in a plot, and marked
Row = Mapping[str, Any]
TEACHER, STUDENT = Style(COLOURS[0]), Style(COLOURS[1], "6 3")
SIDES = ("teacher", "student")


class Plot(NamedTuple):
    """A plot with its caption, and what there is to know when one reads it."""

    caption: str
    svg: str
    note: str = ""


def training_plots(rows: Sequence[Row], warmup: Sequence[Row], loss: Mapping[str, Any]) -> list[Plot]:
    """Of everything that was logged; `loss` is the preset that was trained with."""
    found = [one for one in _training(Logged(rows), loss) if one] if rows else []
    if len(warmup) > 1:
        found.append(Plot("Warm-up: loss", Logged(warmup).plot({"loss": ("loss", TEACHER)}, "Warm-up: loss by step", "nats/token")))
    return found


class Logged:
    """Rows of metrics over all rounds, thinned to MOST points, with the steps that they stand for."""

    def __init__(self, rows: Sequence[Row]):
        size = -(-len(rows) // MOST)
        groups = [rows[start : start + size] for start in range(0, len(rows), size)]
        self.rows = [_mean_of(group) for group in groups]
        self.steps = [1 + min(number * size + size // 2, len(rows) - 1) for number in range(len(groups))]
        first = {row["round"]: number for number, row in reversed(list(enumerate(rows)))}
        few = len(first) <= NAMED
        self.marks = {number + 0.5: f"round {round}" if few else "" for round, number in sorted(first.items()) if number} if len(first) <= MARKED else {}

    def has(self, key: str) -> bool:
        return any(key in row for row in self.rows)

    def plot(self, curves: Mapping[str, tuple[str, Style]], label: str, unit: str) -> str:
        """`curves` are name -> (key of the rows, style)."""
        shown = {name: (key, one) for name, (key, one) in curves.items() if self.has(key)}
        if not shown:
            return ""
        return lines({name: [row.get(key) for row in self.rows] for name, (key, _) in shown.items()}, {name: one for name, (_, one) in shown.items()},
                     label, unit=unit, legend=len(shown) > 1, steps=self.steps, marks=self.marks)  # fmt: skip


def _mean_of(rows: Sequence[Row]) -> dict[str, float]:
    keys = {key for row in rows for key, value in row.items() if isinstance(value, int | float)}
    return {key: mean(row[key] for row in rows if key in row) for key in keys}


def _training(logged: Logged, loss: Mapping[str, Any]) -> Iterator[Plot | None]:
    kinds = dict(zip(SIDES, (DIVERGENCES[kind] for kind in loss["kinds"]), strict=True))
    whose = dict(zip(SIDES, whose_responses(loss), strict=True))

    def sides(caption: str, what: str, unit: str, note: str = "") -> Plot | None:
        curves = {f"{whose[side]} responses": (f"{side}/{what}", one) for side, one in zip(SIDES, (TEACHER, STUDENT), strict=True)}
        return _plot(logged, caption, curves, unit, note)

    per_side = {f"{kinds[side]} on {whose[side]} responses": (f"{side}/divergence", one) for side, one in zip(SIDES, (TEACHER, STUDENT), strict=True)}
    yield _plot(logged, "Loss on each side", per_side, "nats/token", "Before beta weighs them.")
    for side in SIDES:
        curves = {"under the student": (f"{side}/student_nll", STUDENT), "under the teacher": (f"{side}/teacher_nll", TEACHER)}
        yield _plot(logged, f"Negative log-likelihood of the {whose[side]} responses", curves, "nats/token", "Figure 1b of the paper.")
    yield sides("Top-1 agreement with the teacher", "agreement", "share of tokens")
    yield _plot(logged, "Beta, the weight of the student's side", {"beta": ("beta", TEACHER)}, "share")
    if loss["anchor"] != "off":
        yield from _alpha(logged, loss, whose, sides)
    yield sides("Response length", "length", "tokens")
    yield _plot(logged, "Loss", {"loss": ("loss", TEACHER)}, "nats/token", "What the optimiser sees: both sides, weighed.")
    yield _plot(logged, "Norm of the gradient, before clipping", {"norm": ("grad_norm", TEACHER)}, "")
    yield _plot(logged, "Learning rate", {"learning rate": ("learning_rate", TEACHER)}, "")


def _plot(logged: Logged, caption: str, curves: Mapping[str, tuple[str, Style]], unit: str, note: str = "") -> Plot | None:
    svg = logged.plot(curves, f"{caption}, by optimiser step", unit)
    return Plot(caption, svg, note) if svg else None


def _alpha(logged: Logged, loss: Mapping[str, Any], whose: Mapping[str, str], sides: Any) -> Iterator[Plot | None]:
    low, high = loss["alpha_low"], loss["alpha_high"]
    yield sides("Alpha, mean over responses", "alpha", "", f"Clipped to [{low:g}, {high:g}]; round 1 has {loss['alpha']:g} for all.")
    styles = {"teacher": TEACHER, "student": STUDENT}
    bounds = {f"{whose[side]} responses, at the {word} one": (f"{side}/alpha_at_{bound}", styles[side]._replace(dash="" if bound == "low" else "2 3"))
              for side in SIDES for bound, word in (("low", "lower"), ("high", "upper"))}  # fmt: skip
    yield _plot(logged, "Responses whose alpha is at a bound", bounds, "share of responses")
    yield _histogram(logged, loss, whose, styles)
    yield sides("Gap that alpha is chosen by", "gap", "probability", "Geometric means over a response, eq. 7.")


def _histogram(logged: Logged, loss: Mapping[str, Any], whose: Mapping[str, str], styles: Mapping[str, Style]) -> Plot | None:
    """Alphas of all rounds in which they are chosen."""
    rows = [row for row in logged.rows if row["round"] > 1]
    keys = sorted((key for row in rows[:1] for key in row if "/alpha_in_" in key), key=lambda key: int(key.rpartition("_")[2]))
    shares = {side: [mean(row[key] for row in rows if key in row) for key in keys if key.startswith(side)] for side in SIDES}
    count = max(map(len, shares.values()))
    if not count:
        return None
    width = (loss["alpha_high"] - loss["alpha_low"]) / count
    names = [f"{loss['alpha_low'] + width * (number + 0.5):.2g}" if number % 3 == 0 else "" for number in range(count)]
    series = {f"{whose[side]} responses": one for side, one in shares.items() if one}
    caption = "Alpha from round 2 on"
    return Plot(caption, bars(series, names, {f"{whose[side]} responses": styles.get(side, PLAIN) for side in SIDES}, f"{caption}, histogram", "share of responses, by the middle of a bin"))
