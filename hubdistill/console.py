"""What a person sees while a run goes on: stages and progress on stderr (rich). Data go to stdout, by cli.py alone."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import warnings
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hubdistill.forecast_text import forecast_lines
from hubdistill.losses.contrastive import INTERLEAVED
from hubdistill.pairs.prompt_report import counted

SKIPPED, REDONE = "skipped", "redone"
SHOWN = 5  # of the first and of the last rounds, where there are many


class ConsoleReporter:
    """A line per stage; under it a bar with throughput where there is something to count."""

    def __init__(self, *, quiet: bool = False):
        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self._bar: Progress | None = None
        self._tokens, self._began = 0, 0.0
        self._interrupted = False
        signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, number: int, frame: Any) -> None:
        """Ctrl-C raises KeyboardInterrupt as ever, and again at the next report: libraries that are just being imported
        swallow it (a bare `except`, a callback from C), and the run would go on."""
        self._interrupted = True
        signal.default_int_handler(number, frame)

    def _obey(self) -> None:
        if self._interrupted:
            raise KeyboardInterrupt

    def stage(self, name: str, what: str) -> None:
        """A stage begins, is done again because its files changed, or is kept from before."""
        self._obey()
        self.stop()
        words = {SKIPPED: "[dim]kept from before[/dim]", REDONE: "[yellow]its files changed, done again[/yellow]"}
        self.console.print(f"[bold]{name}[/bold] {words.get(what, '')}".rstrip())

    def start(self, label: str, total: int, unit: str) -> None:
        """A countable piece of work begins."""
        self._obey()
        self.stop()
        self._tokens, self._began = 0, time.monotonic()
        # 80 columns in all, the width of a plain terminal and of a log.
        columns = (TextColumn("  {task.description}"), BarColumn(bar_width=10), MofNCompleteColumn(), TextColumn(unit),
                   TextColumn("{task.fields[rate]}"), TimeRemainingColumn(compact=True, elapsed_when_finished=True))  # fmt: skip
        self._bar = Progress(*columns, console=self.console, transient=False)
        self._bar.start()
        self._bar.add_task(label, total=total, rate="")

    def advance(self, done: int, tokens: int = 0) -> None:
        """`done` more units are finished; they brought `tokens` tokens."""
        self._obey()
        if self._bar is None:
            return
        self._tokens += tokens
        rate = f"{self._tokens / max(time.monotonic() - self._began, 1e-3):,.0f} tokens/s" if self._tokens else ""
        task = self._bar.tasks[0]
        self._bar.update(task.id, advance=done, rate=rate)
        if task.finished:
            self.stop()

    def note(self, text: str) -> None:
        """Something worth knowing."""
        self.console.print(f"  {text}", markup=False)

    def stop(self) -> None:
        """Close the bar, if one is open."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def plan_text(plan: dict[str, Any], no_forecast: str = "") -> str:
    """A plan for people: what will be done, with which files, the schedules, and what it takes; or why that is not known."""
    steps = plan["steps_per_round_at_most"]
    lines = [
        f"teacher   {_pinned(plan['teacher'])}",
        f"student   {_pinned(plan['student'])}",
        f"prompts   {_pinned(plan['prompts'])}",
        f"          {_at_most(plan['prompts_at_most'], 'training prompt')}, {plan['recipe']['prompts']['heldout']} held out",
        *(f"questions {_pinned(one)}, {_at_most(_fewer(one['rows'], spec['count']), 'question')}" for one, spec in _questions(plan)),
        *_served(plan),
        *_judged(plan),
        f"rounds    {plan['rounds']} of {_at_most(steps, 'step')} of {_size_of_step(plan)}"
        f" ({plan['micro_batches_per_step']} micro-batches on {plan['processes']} process{'es' if plan['processes'] > 1 else ''})",
        *(_reading(plan["prompt_read_once"]) if plan["loss"]["beta"] not in ("off", "full") else []),
        f"vocabulary {plan['common_vocabulary'] or 'not compared'}",
        "files     run directory: recipe.yaml plan.json prompts/ round_N/ warmup/ metrics.jsonl measurements.json report.html README.md hub/",
        "",
        f"loss      {plan['loss']['name']}: " + ", ".join(f"{k} {v}" for k, v in plan["loss"].items() if k not in _unused(plan["loss"])),
        "round     beta first  last   mean   alpha",
        *_some([f"{row['round']:>5}     {row['first']:.3f}       {row['last']:.3f}  {row['mean']:.3f}  {alpha}" for row, alpha in zip(plan["beta"], plan["alpha"], strict=True)]),
    ]
    lines += ["", *(forecast_lines(plan["forecast"]) if plan.get("forecast") else [f"memory    not forecast: {no_forecast}"])]
    return "\n".join([*lines, *(f"warning: {text}" for text in plan["warnings"])])


def _unused(loss: dict[str, Any]) -> set[str]:
    """Fields of a loss that have no effect beside the others."""
    rules = {"top_k": "top_k", "typical": "epsilon", "mixed": "teacher_share"}  # acceptance -> the field that it reads
    both = INTERLEAVED in (loss["fixed_responses"], loss["student_responses"])
    hidden = {"name", *rules.values(), *([] if both else ["acceptance"]), *(["strength", "preference"] if loss["preference"] == "off" else [])}
    return (hidden - {rules[loss["acceptance"]]} if both else hidden) | ({"policy_gradient"} if not loss["policy_gradient"] else set())


def _some(lines: list[str]) -> list[str]:
    """The first and the last of many."""
    return lines if len(lines) <= 2 * SHOWN else [*lines[:SHOWN], "  ...", *lines[-SHOWN:]]


def _reading(sharing: dict[str, Any]) -> list[str]:
    """How often training reads the prompt of a pair, and why twice."""
    once = " and ".join(who for who, answer in sharing.items() if answer["shared"])
    lines = [f"pairs     prompt read once for both responses, by {once}"] if once else []
    return lines + [f"pairs     prompt read twice by the {who}: {answer['reason']}" for who, answer in sharing.items() if not answer["shared"]]


def comparison_text(would: dict[str, Any]) -> str:
    """What `compare` would do, for people."""
    most = would["tokens_per_round_at_most"]
    lines = [
        f"methods   {', '.join(would['methods'])}; each against the first",
        *(f"          {name}: {' '.join(overrides)}" for name, overrides in would["methods"].items() if overrides),
        f"seeds     {', '.join(map(str, would['seeds']))}",
        f"prompts   {_at_most(would['prompts_at_most'], 'training prompt')}, {would['heldout']} held out",
        f"tokens    twice those of the teacher's responses, in each of {counted(would['rounds'], 'round')}" + (f" (at most {most:,} a round)" if most else ""),
        f"runs      {len(would['runs'])}, one for each method and seed:",
        *(f"          {run}" for run in would["runs"]),
    ]
    return "\n".join([*lines, "", "Nothing was done."])


def _size_of_step(plan: dict[str, Any]) -> str:
    """Twice as many responses where one of a pair is trained on alone."""
    pairs = int(plan["recipe"]["train"]["pairs_per_step"])
    return counted(2 * pairs, "response") if plan["loss"]["beta"] in ("off", "full") else counted(pairs, "pair")


def _served(plan: dict[str, Any]) -> list[str]:
    """Who answers for the teacher, where its own engine does not."""
    server = plan["recipe"]["sampling"]["server"]
    return [f"answers   of the teacher come from {server['url']}, as {server['model'] or plan['recipe']['teacher']['model']}"] if server else []


def _judged(plan: dict[str, Any]) -> list[str]:
    """Who judges, and how much there is to judge."""
    return [
        f"judge     {one['model']}, {_at_most(one['verdicts_at_most'], 'verdict')}: {', '.join(one['subjects'])} against the {one['against']}, in both orders"
        for one in plan["judges"]
    ]  # fmt: skip


def _pinned(found: dict[str, Any]) -> str:
    """A model or data set and what pins it: a commit is the Hub's alone, and the whole SHA-256 that of a file."""
    digest = "sha256" if len(found["commit"]) == 64 else "digest"
    return f"{found['reference']}  {'commit' if found['kind'] == 'hub' else digest} {found['commit']}"


def _questions(plan: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """What is known of each set of questions, and what the recipe says of it."""
    specs = [one["questions"] for one in plan["recipe"]["evaluate"] if one["questions"]]
    return list(zip(plan["questions"], specs, strict=True))


def _fewer(*numbers: int | None) -> int | None:
    return min((number for number in numbers if number is not None), default=None)


def _at_most(number: int | None, what: str) -> str:
    return f"at most {counted(number, what)}" if number else f"an unknown number of {what}s"


def summary_text(summary: dict[str, Any]) -> str:
    """What a run ended with: the numbers, where the files are, and the next command."""
    on = f"Held-out results on {counted(summary['prompts'], 'prompt')}" if summary["prompts"] else "Results"
    lines = [f"Distilled in {summary['time']}. {on} (mean and 95 % interval):"]
    lines += [f"  {row}" for row in summary["results"]] or ["  nothing was evaluated"]
    lines += [f"  judged: {line}" for line in summary["judged"]]
    lines += ["", f"Run       {summary['run']}", f"Adapter   {summary['adapter']}", f"Card      {summary['card']}", f"Report    {summary['report']}"]
    lines.append(f"Gate      {summary['gate']}")
    if summary["memory"]:
        peak = max(summary["memory"], key=lambda row: row["measured"])
        lines.append(f"Memory    {peak['measured'] / 2**30:.1f} GiB at most, in {peak['stage']} (forecast: {peak['predicted'] / 2**30:.1f})")
    if summary.get("url"):
        lines.append(f"Published {summary['url']} at commit {summary['commit']} ({summary['visibility']})")
        lines += [f"Beside it {url}" for url in summary["beside"]]
    return "\n".join([*lines, "", f"Next: {summary['next']}"])


def calm_libraries() -> None:
    """Libraries below talk through progress bars and warnings of their own; ours say what matters."""
    from hubdistill.hub.failures import hub_token
    from hubdistill.hub.secrets import RedactingFilter

    handler = logging.StreamHandler()
    handler.addFilter(RedactingFilter(hub_token()))
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    if os.environ.get("HUBDISTILL_DEBUG") == "1":
        return
    warnings.filterwarnings("ignore")
    for name in ("bitsandbytes", "kernels", "datasets", "trl", "transformers", "accelerate", "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when it is imported
    if "transformers" not in sys.modules and os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS") == "1":
        return  # silent from its import on, which takes a second, and which `plan` can often do without
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
