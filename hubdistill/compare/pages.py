"""A comparison as Markdown, and as one HTML file with its plots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from hubdistill.files import write_atomically
from hubdistill.hub.markdown import one_line, text
from hubdistill.hub.results import METRICS
from hubdistill.report.curves import Plot
from hubdistill.report.page import rendered
from hubdistill.report.plots import Style, dots, lines, style, swatch
from hubdistill.report.tables import Table

STEPS_APART = 1.1  # ratio of steps above which it is said that methods differ in them
RESULT, MARKDOWN, PAGE = "comparison.json", "comparison.md", "comparison.html"
SIDES = {"teacher": "NLL of the fixed responses under the student", "student": "NLL of the student's responses under the student"}


def write_pages(folder: Path, found: Mapping[str, Any]) -> None:
    """Write both files."""
    write_atomically(folder / MARKDOWN, (markdown(found) + "\n").encode())
    write_atomically(folder / PAGE, page(found).encode())


def markdown(found: Mapping[str, Any]) -> str:
    """A table of values, one of paired differences, and what each method trained on."""
    parts = [f"# {text(found['recipe'])}: {len(found['methods'])} methods, seeds {', '.join(map(str, found['seeds']))}", "", *_about(found), ""]
    for header, rows in (_values(found), _differences(found), _trained(found)):
        if rows:
            body = [[_cell(row[0]), *row[1:]] for row in rows]
            parts += [_line(map(_cell, header)), "| --- " * len(header) + "|", *map(_line, body), ""]
    return "\n".join(parts).rstrip()


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: str) -> str:
    """A name from outside (of a method, of a data set) that no table cell or HTML can end or start in."""
    return escape(one_line(value), quote=False).replace("|", "\\|")


def page(found: Mapping[str, Any]) -> str:
    """The same as HTML, with plots; every text in it is escaped."""
    parts = {"Values": _values(found), f"Differences to {found['reference']}": _differences(found), "What each method trained on": _trained(found)}
    tables = [(caption, Table(header, [[row[0], *(cell.replace(" [", "\n[", 1) for cell in row[1:])] for row in rows])) for caption, (header, rows) in parts.items() if rows]
    legend = {name: swatch(one) for name, one in _styles(found).items()}
    return rendered("comparison.html.jinja", name=found["recipe"], about=_about(found, plain=True), tables=tables, plots=plots_of(found), legend=legend)


def _styles(found: Mapping[str, Any]) -> dict[str, Style]:
    return {method["name"]: style(number) for number, method in enumerate(found["methods"])}


def plots_of(found: Mapping[str, Any], *, legend: bool = False) -> list[Plot]:
    """One for each metric, then the curves of each side; these with a legend of their own where it is asked for."""
    styles, plots = _styles(found), list[Plot]()
    for one in found["metrics"]:
        label = f"{title(one)} ({_arrow(one)})"
        plots.append(Plot(label, dots({name: (row["value"], row["low"], row["high"]) for name, row in one["rows"].items()}, styles, label, one["unit"])))
    for side, label in SIDES.items():
        curves = {name: curve[side] for name, curve in found["curves"].items() if len(curve.get(side, [])) > 1}
        plots += [Plot(label, lines(curves, styles, label, unit="nats/token", legend=legend), "Figure 1b of the paper; means over seeds.")] if curves else []
    return plots


def title(metric: Mapping[str, Any]) -> str:
    """A metric and what it was measured on."""
    return f"{METRICS[metric['metric']]} on {metric['on']}"


def _arrow(metric: Mapping[str, Any]) -> str:
    return "↓" if metric["better"] == "lower" else "↑"


def _about(found: Mapping[str, Any], *, plain: bool = False) -> list[str]:
    def outside(value: str) -> str:
        return value if plain else str(text(value))

    several = len(found["seeds"]) > 1
    seeds = "each seed's mean stands in brackets, and each seed has drawn training and held-out prompts of its own" if several else "with one seed, methods may differ by what the student happened to say"
    n = _most_prompts(found)
    said = [
        f"{outside(found['student'])} learns from {outside(found['teacher'])}. All methods of a seed train on the same prompts, teacher responses and warm-up, with the same number of response tokens in a round and of responses in a step.",
        f"Means over {n} held-out prompts with 95 % bootstrap intervals over prompts; a prompt's value is its mean over the seeds that hold it out. Differences are paired by prompt and seed; p is of a sign-flip permutation test, adjusted for the number of methods (Holm). Intervals and p speak of other prompts, not of other seeds: {seeds}.",
    ]
    said += [f"Not finished: {outside(', '.join(found['unfinished']))}. What follows is of seeds that are done with every method in it."] if found.get("unfinished") else []
    few = [outside(title(one)) for one in found["metrics"] if _prompts(one) < found["enough"]]
    said += [f"Fewer than {found['enough']} prompts, so that intervals are too narrow to judge by: {'all' if len(few) == len(found['metrics']) else ', '.join(few)}."] if few else []
    return said + [outside(line) for line in _unequal_steps(found["methods"])]


def _prompts(metric: Mapping[str, Any]) -> int:
    return min(int(row["n"]) for row in metric["rows"].values())


def _most_prompts(found: Mapping[str, Any]) -> int:
    return max(map(_prompts, found["metrics"]))


def _unequal_steps(methods: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the reader must know where equal tokens came in unequally many steps."""
    most, fewest = (of(methods, key=lambda one: sum(one["steps"])) for of in (max, min))
    more, fewer = sum(most["steps"]), sum(fewest["steps"])
    if more <= STEPS_APART * fewer:
        return []
    return [f"Not equal: {most['name']} took {more} optimiser steps and {fewest['name']} {fewer}, at the same learning rate. The responses that {most['name']} trains on are shorter, so the same tokens are more of them, and a step holds equally many responses."]


def _values(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    n = {_prompts(one): f", n = {_prompts(one)}" for one in found["metrics"]} | {_most_prompts(found): ""}  # said above
    header = ["", *(f"{title(one)}, {one['unit']} ({_arrow(one)}{n[_prompts(one)]})" for one in found["metrics"])]
    names = list(dict.fromkeys(name for one in found["metrics"] for name in one["rows"]))
    return header, [[name, *(_value(one["rows"].get(name), len(found["seeds"])) for one in found["metrics"])] for name in names]


def _value(row: Mapping[str, Any] | None, seeds: int) -> str:
    if row is None:
        return "–"
    each = f" ({', '.join('–' if value is None else f'{value:.3f}' for value in row['by_seed'])})" if seeds > 1 else ""
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]{each}"


def _differences(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    reference, seeds = found["reference"], len(found["seeds"])
    header = [f"minus {reference}", *(f"{title(one)} ({'negative' if one['better'] == 'lower' else 'positive'} is better)" for one in found["metrics"])]
    names = [method["name"] for method in found["methods"][1:]]
    return header, [[name, *(_difference(one["rows"][name]["difference"], several=seeds > 1) for one in found["metrics"])] for name in names]


def _difference(one: Mapping[str, Any], *, several: bool) -> str:
    alike = f", {one['seeds_alike']} of {one['seeds']} seeds alike" if several else ""
    p = "p < 0.001" if one["p_adjusted"] < 0.001 else f"p = {one['p_adjusted']:.3f}"
    return f"{one['value']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}], {p}{alike}"


def _trained(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    def each(values: list[float], form: str) -> str:
        return ", ".join(format(value, form) for value in values)

    header = ["method", "trained on", "response tokens, by seed", "steps", "minutes of training, and of sampling the student"]
    return header, [[one["name"], trained_on(one["loss"]), each(one["tokens"], ",d"), each(one["steps"], "d"), each([s / 60 for s in one["seconds"]], ".1f")] for one in found["methods"]]


def trained_on(loss: Mapping[str, Any]) -> str:
    """Whose responses, in words."""
    both = "those that both models write together"
    fixed = {"teacher": "the teacher's", "data": "the data set's", "interleaved": both}[loss["fixed_responses"]]
    own = {"round": "the student's of the round", "replay": "the student's of all rounds so far", "initial": "the student's of round 1", "interleaved": both}[loss["student_responses"]]
    return " and ".join([fixed] * (loss["beta"] != "full") + [own] * (loss["beta"] != "off"))
