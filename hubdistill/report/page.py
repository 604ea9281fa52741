"""The report of a run: `report.html`, one file that needs nothing else. `run` writes it at its end; `hubdistill report RUN` at any time."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hubdistill import __version__
from hubdistill.evaluation.gate import beginning, verdict_of
from hubdistill.files import write_atomically
from hubdistill.hub.card import duration
from hubdistill.hub.run_card import DIVERGENCES, whose_responses
from hubdistill.pairs.prompt_report import counted
from hubdistill.report import tables
from hubdistill.report.curves import Plot, training_plots
from hubdistill.report.examples import with_images
from hubdistill.report.gathered import Gathered, gather
from hubdistill.shipped import model_cards_root

PAGE = "report.html"


def write_report(folder: Path) -> Path:
    """Write the report of a run directory, finished or not. Raises MissingError, InputError (see gathered.py)."""
    path = folder / PAGE
    write_atomically(path, report(gather(folder)).encode())
    return path


def report(run: Gathered) -> str:
    """The page; every text in it is data of others, and escaped."""
    examples = run.examples()
    return rendered(
        "report.html.jinja",
        name=run.name,
        about=_about(run),
        state=_state(run),
        headline=_headline(run),
        gate=f"Before publication: {verdict_of(run.record, run.measurements).text}." if run.record else "",
        results=tables.results(run.measurements) if run.measurements else None,
        result_plots=tables.result_plots(run.measurements),
        lengths=tables.lengths(run.by_length()),
        curves=training_plots(run.rounds, run.warmup, run.plan["loss"]),
        responses=[one for one in (tables.responses(run), tables.pairs(run)) if one.rows],
        examples=with_images(run.folder, examples) if examples else None,
        costs=list(tables.costs(run)),
        settings=_settings(run),
        recipe=(run.folder / "recipe.yaml").read_text(encoding="utf-8"),
        command=_command(run),
        warnings=run.plan["warnings"],
        version=__version__,
    )


def rendered(template: str, **values: Any) -> str:
    """A page from its template. What is printed is escaped, unless it is a plot."""
    from jinja2 import FileSystemLoader, StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment
    from markupsafe import Markup

    def drawn(plot: Plot | str) -> Markup:
        return Markup(plot.svg if isinstance(plot, Plot) else plot)

    env = SandboxedEnvironment(loader=FileSystemLoader(model_cards_root()), undefined=StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    env.filters["drawn"] = drawn
    return env.get_template(template).render(**values)


def _about(run: Gathered) -> str:
    plan, loss = run.plan, run.plan["loss"]
    sides = [f"{DIVERGENCES[kind]} on {whose} responses" for kind, whose, there in zip(loss["kinds"], whose_responses(loss), (loss["beta"] != "full", loss["beta"] != "off"), strict=True) if there]
    kept = run.stages.get("prompts", {}).get("result", {}).get("kept_train")
    prompts = f" on {counted(kept, 'prompt')}" if kept else ""
    return f"{plan['student']['reference']} learns from {plan['teacher']['reference']}{prompts}, in {counted(plan['rounds'], 'round')}, with {loss['name']}: {', '.join(sides)}."


def _state(run: Gathered) -> str:
    """What is said of a run that is not finished; empty of one that is."""
    if run.record is not None:
        return ""
    done = list(run.stages)
    return f"Not finished: {'the last stage that is done is ' + done[-1] if done else 'no stage is done'}. What follows is what there is so far."


def _headline(run: Gathered) -> dict[str, Any] | None:
    found = tables.headline(run.measurements)
    if found is None:
        return None
    row, before = found
    one = beginning(row)
    change = f"{one.value:+.3f} [{one.low:+.3f}, {one.high:+.3f}] against {tables.SUBJECTS.get(one.against, one.against)}: {tables.verdict(row, one)}" if one else ""
    steps = [(tables.SUBJECTS[each.subject], tables.shown(each.value), f"[{tables.shown(each.low)}, {tables.shown(each.high)}]") for each in [*before, row]]
    return {"label": f"{tables.label(row)}, {row.unit}, {row.better} is better, n = {row.n}", "steps": steps, "change": change}


def _command(run: Gathered) -> str:
    """What makes this run again; a run that is not finished goes on with it."""
    recipe = run.record["name"] if run.record else "RECIPE"
    return shlex.join(["hubdistill", "run", recipe, *run.plan["overrides"]])


def _settings(run: Gathered) -> Mapping[str, str]:
    plan, record = run.plan, run.record or {}
    rows = {name: f"{plan[name]['reference']}, {'commit' if plan[name]['kind'] == 'hub' else 'digest'} {plan[name]['commit']}" for name in ("teacher", "student", "prompts")}
    if record:
        rows |= {"hardware": record["hardware"], "time": duration(sum(record["seconds"].values())), "versions": ", ".join(f"{name} {version}" for name, version in record["versions"].items())}
    return {**rows, "hubdistill": plan["hubdistill"]}
