"""The command line: the only file that exits, and (with console.py) that prints. Data on stdout, all else on stderr."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from hubdistill.errors import GateError, HubdistillError, InputError, MissingError
from hubdistill.files import write_atomically, write_problem
from hubdistill.hub.asked import Asked
from hubdistill.processes import told

INTERRUPTED = 130

app = typer.Typer(
    name="hubdistill",
    help="Distil a strong teacher into a LoRA adapter on the Hugging Face Hub (the whole of DistiLLM-2).\n\n"
    "Start: `hubdistill run quickstart` distils a real model on a CPU in minutes. "
    "Then: `hubdistill recipes`, `hubdistill plan RECIPE`, `hubdistill run RECIPE`, `hubdistill push RUN --repo ORG/NAME`.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A .yaml file, the name of a shipped recipe (see `hubdistill recipes`), or ORG/NAME of an adapter that hubdistill published.")]
OverridesArgument = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Values that override the recipe's, for example `train.rounds=2 lora.rank=8`.")]
OutputOption = Annotated[Path | None, typer.Option("--output", "-o", metavar="DIR", help="Run directory; runs/<recipe name> without it.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
RemoteCodeOption = Annotated[bool, typer.Option("--allow-remote-code", help="Let a recipe from the Hub run Python code of the model repositories it pins. Read that code first.")]
RevisionOption = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of the recipe, where RECIPE is ORG/NAME on the Hub.")]
MirrorOption = Annotated[str | None, typer.Option("--mirror", metavar="ORG/NAME", help="Private Hub repository for finished stages: fetched first, sent as they finish, so that a run goes on on another machine.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run directory, or the name of the recipe it was made with.")]


@app.command()
def run(recipe: RecipeArgument, overrides: OverridesArgument = None, output: OutputOption = None, json_: JsonOption = False,
        quiet: QuietOption = False, allow_remote_code: RemoteCodeOption = False, revision: RevisionOption = None,
        no_push: Annotated[bool, typer.Option("--no-push", help="Do not publish, whatever the recipe says.")] = False,
        mirror: MirrorOption = None) -> None:  # fmt: skip
    """Distil: every stage from the prompts to the card, and the push if the recipe has `publish`.

    Finished stages are kept: run the same command again after an interruption and it goes on where it stopped.

    Examples: `hubdistill run quickstart` · `hubdistill run my.yaml train.rounds=2` · `hubdistill run ORG/ADAPTER`
    """
    started = _Started(Asked(recipe, overrides, allow_remote_code, revision), output, quiet)
    publish = None if no_push else started.plan.recipe.publish
    from hubdistill.publication import announce, publish_as_recipe

    if publish:
        announce(publish, started.reporter.note)
    mirror = mirror if told().first else None  # the others write nothing, and need no token
    if mirror:
        from hubdistill.hub.mirror import attach, check_mirror

        started.reporter.note(f"finished stages go to {check_mirror(mirror, started.plan)}")
    with started.opened() as current:
        mirrored = attach(mirror, current.directory, started.plan, started.reporter.note) if mirror else None
        current.distil()
        if not current.processes.first:
            return
        current.finish()
        refused, done = None, None
        try:
            done = publish_as_recipe(current.path, publish) if publish else None
        except GateError as problem:
            refused = problem  # said after the results that it is about
        if mirrored:
            mirrored.close()
    summary = _summary(started.path, done)
    from hubdistill.console import summary_text

    _print(json.dumps(summary, indent=2) if json_ else summary_text(summary))
    if refused:
        raise refused


@app.command()
def compare(recipe: RecipeArgument,
            methods: Annotated[str, typer.Option("--methods", metavar="A,B,...", help="Losses by the name of their preset (docs/baselines.md), `recipe` for the recipe's own; each may change it, as in `distillm2:loss.beta=paper`. The first is what the others are held against.")],
            overrides: OverridesArgument = None,
            seeds: Annotated[int, typer.Option("--seeds", min=1, max=100, help="Training seeds, from the recipe's `train.seed` on.")] = 1,
            output: Annotated[Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder; runs/<recipe name>-compare without it.")] = None,
            dry_run: Annotated[bool, typer.Option("--dry-run", help="Check every method's recipe and show what would be done.")] = False,
            json_: JsonOption = False, quiet: QuietOption = False, allow_remote_code: RemoteCodeOption = False, revision: RevisionOption = None) -> None:  # fmt: skip
    """Compare methods on the same responses, with the same number of training tokens: a table, paired tests, and a page with plots.

    Each method and seed is a run of its own in the folder. Run the same command again after an interruption, or with more
    methods or seeds: what is done is kept.

    Examples: `hubdistill compare quickstart --methods distillm2,gkd,kd` · `hubdistill compare my.yaml --methods distillm2,gkd,seqkd --seeds 3`
    """
    from hubdistill.compare.cells import Comparison, described
    from hubdistill.compare.methods import parse_methods
    from hubdistill.console import ConsoleReporter, calm_libraries, comparison_text

    calm_libraries()
    asked = Asked(recipe, overrides, allow_remote_code, revision)
    name = asked.load().name.replace("/", "-")
    comparison = Comparison(asked, parse_methods(methods), seeds, output or Path("runs") / f"{name}-compare")
    comparison.check()
    if dry_run:
        would = described(comparison)
        _print(json.dumps(would, indent=2) if json_ else comparison_text(would))
        return
    reporter = ConsoleReporter(quiet=quiet)
    for line in comparison.changes():
        reporter.note(line)
    try:
        comparison.run(reporter)
    finally:
        reporter.stop()
    from hubdistill.compare.pages import markdown, write_pages
    from hubdistill.compare.results import collected

    found = collected(comparison)
    write_pages(comparison.folder, found)
    _print(json.dumps(found, indent=2) if json_ else f"{markdown(found)}\n\nPage      {comparison.folder / 'comparison.html'}\nRuns      {comparison.folder}")


@app.command()
def plan(recipe: RecipeArgument, overrides: OverridesArgument = None, json_: JsonOption = False, allow_remote_code: RemoteCodeOption = False,
         revision: RevisionOption = None,
         offline: Annotated[bool, typer.Option("--offline", help="Do not ask the Hub or a server of the recipe; what is not cached stays unresolved.")] = False,
         gpu: Annotated[str | None, typer.Option("--gpu", metavar="NAME", help="Forecast memory, time and cost on this GPU, such as A100-80GB, instead of on this machine.")] = None,
         usd_per_hour: Annotated[float | None, typer.Option("--usd-per-hour", min=0, help="Its price, instead of the table's.")] = None,
         probe: Annotated[bool, typer.Option("--probe", help="Load the models and run two real steps at the longest lengths, here, to correct the forecast.")] = False) -> None:  # fmt: skip
    """Show what a recipe would do, what it takes, and every mistake in it, without loading weights.

    Prints resolved commits, rounds and steps, the alpha and beta schedules, memory and disk at most, and about how long it takes and what it costs.
    Exit code 2 if the recipe cannot run, 3 if it does not fit the device.

    Examples: `hubdistill plan quickstart --probe` · `hubdistill plan my.yaml --gpu A100-80GB`
    """
    from hubdistill.console import calm_libraries, plan_text
    from hubdistill.plan import make_plan

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # of files that are small; read when the libraries are imported
    if probe and gpu:
        raise InputError("--probe runs on this machine, and --gpu names another; use one of them")
    calm_libraries()
    asked = Asked(recipe, overrides, allow_remote_code, revision)
    planned = make_plan(asked.load(), offline=offline, ask_server=not offline)
    expected, why = _forecast(planned, gpu, usd_per_hour, probe)
    found = planned.as_dict() | {"forecast": expected.as_dict() if expected else None}
    proposed = "" if (expected and not expected.fits) or gpu else f"\n\nNext: {asked.run_command(None)}"
    _print(json.dumps(found, indent=2) if json_ else plan_text(found, why) + proposed)
    if expected:
        expected.require_fit()


def _forecast(planned: Any, gpu: str | None, usd_per_hour: float | None, probe: bool) -> tuple[Any, str]:
    """What the plan takes; or None, and why that is not known."""
    from hubdistill.console import ConsoleReporter
    from hubdistill.estimate.machines import gpu_named

    if gpu:
        gpu_named(gpu)
    if not (planned.teacher.config and planned.student.config):
        return None, "a model's config is not in the cache; plan once without --offline"
    from hubdistill.estimate.forecast import forecast

    try:
        found = forecast(planned, gpu, usd_per_hour)
    except InputError as problem:
        return None, str(problem)
    if not probe:
        return found, ""
    from hubdistill.probe import probe as measure

    found.require_fit()
    reporter = ConsoleReporter(quiet=True)
    return forecast(planned, gpu, usd_per_hour, measure(planned, reporter)), ""


def _until(stage: str, help_text: str, *, of_a_round: bool = False) -> None:
    def of_round(recipe: RecipeArgument, overrides: OverridesArgument = None, output: OutputOption = None, quiet: QuietOption = False,
                 allow_remote_code: RemoteCodeOption = False, revision: RevisionOption = None,
                 round_: Annotated[int | None, typer.Option("--round", min=1, help="Round to stop after; the last without it.")] = None) -> None:  # fmt: skip
        asked = Asked(recipe, overrides, allow_remote_code, revision)
        started = _Started(asked, output, quiet)
        if round_ is not None and round_ > started.plan.recipe.train.rounds:
            raise typer.BadParameter(f"the recipe has {started.plan.recipe.train.rounds} rounds", param_hint="--round")
        with started.opened() as current:
            current.distil(until=stage, round=round_)
            if not current.processes.first:
                return
            if stage == "evaluate":
                current.finish()
        _print(f"{stage} is done in {started.path}\nNext: {asked.run_command(output)}")

    def of_run(recipe: RecipeArgument, overrides: OverridesArgument = None, output: OutputOption = None, quiet: QuietOption = False,
               allow_remote_code: RemoteCodeOption = False, revision: RevisionOption = None) -> None:  # fmt: skip
        of_round(recipe, overrides, output, quiet, allow_remote_code, revision)

    command = of_round if of_a_round else of_run
    command.__doc__ = f"{help_text}\n\nStages before it that are not done yet are done first; finished ones are kept."
    app.command(name=stage)(command)


_until("prompts", "Read the prompts, filter and split them.")
_until("sample", "Sample the responses of a round: of the teacher and of the student as it is then.", of_a_round=True)
_until("warmup", "Fine-tune the fresh adapter before the first round.")
_until("train", "Train a round on its pairs.", of_a_round=True)
_until("evaluate", "Measure the student before and after on the held-out prompts. Without a run: `hubdistill benchmark`.")


@app.command()
def benchmark(model: Annotated[str, typer.Argument(metavar="MODEL", help="A model (Hub id, folder, pypi:PACKAGE, toy:NAME), an adapter (folder or ORG/NAME), or a run directory.")],
              task: Annotated[str, typer.Option("--task", metavar="NAME", help="gsm8k, math, ifeval, humaneval or mbpp.")],
              against: Annotated[list[str] | None, typer.Option("--against", metavar="OTHER", help="What it is held against, question by question: as MODEL, or `base` for the base of its adapter. May be given again.")] = None,
              data: Annotated[str | None, typer.Option("--data", metavar="FILE", help="Questions from a .jsonl file, or a Hub id; without it the task's own data set on the Hub, at a pinned commit.")] = None,
              limit: Annotated[int | None, typer.Option("--limit", min=1, help="Ask the first questions only.")] = None,
              max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="Longest answer, in tokens; the task's own without it.")] = None,
              batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Questions that are answered at once.")] = 8,
              allow_code_execution: Annotated[bool, typer.Option("--allow-code-execution", help="humaneval and mbpp: run the programs that the model writes, isolated (docs/evaluation.md).")] = False,
              no_isolation: Annotated[bool, typer.Option("--no-isolation", help="Run them where the kernel cannot isolate them, too: on a machine that holds nothing of value.")] = False,
              output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Where answers and scores are kept; runs/benchmark-TASK without it.")] = None,
              json_: JsonOption = False, quiet: QuietOption = False) -> None:  # fmt: skip
    """Ask a benchmark of models and adapters, without a run: scores, their 95 % intervals, and paired differences.

    GSM8K, MATH and IFEval by lm-eval, HumanEval and MBPP as EvalPlus asks them. What was answered is kept: the same command asks nobody again.

    Examples: `hubdistill benchmark ORG/ADAPTER --against base --task gsm8k` · `hubdistill benchmark runs/quickstart --task humaneval --limit 20 --allow-code-execution`
    """
    from hubdistill.console import ConsoleReporter, calm_libraries

    calm_libraries()
    from hubdistill import benchmarking, candidates
    from hubdistill.tasks.catalog import benchmark as benchmark_named

    if data is not None and os.path.isfile(data):
        data = os.path.abspath(data)
    asked = benchmark_named(task, dataset=data, base_dir=Path(), limit=limit, max_tokens=max_tokens, allow_code_execution=allow_code_execution, key="--data", allow="--allow-code-execution")
    first = candidates.find(model)
    others = [candidates.against(one, first) for one in against or []]
    reporter = ConsoleReporter(quiet=quiet)
    try:
        result = benchmarking.run(asked, [first, *others], output or Path("runs") / f"benchmark-{task}", reporter, batch_size=batch_size, confined=not no_isolation)
    finally:
        reporter.stop()
    _print(json.dumps(result.as_dict(), indent=2) if json_ else benchmarking.table(result))


class Where(StrEnum):
    """Who runs a launched recipe."""

    HF_JOBS = "hf-jobs"
    SKYPILOT = "skypilot"


@app.command()
def launch(recipe: RecipeArgument,
           on: Annotated[Where, typer.Option("--on", help="hf-jobs starts a job on the Hub; skypilot writes a task for `sky launch`.")],
           flavor: Annotated[str, typer.Option("--flavor", metavar="NAME", help="The machine: of `hf jobs hardware`, such as a100-large; with skypilot its accelerators, such as A100-80GB:1.")],
           max_usd: Annotated[float, typer.Option("--max-usd", help="The job is stopped when it has cost so many US dollars.")],
           overrides: OverridesArgument = None,
           timeout: Annotated[str | None, typer.Option("--timeout", metavar="6h", help="Stop the job after this time, if the money lasts longer.")] = None,
           usd_per_hour: Annotated[float | None, typer.Option("--usd-per-hour", help="Price of the machine, where the Hub states none; with skypilot the most it may cost.")] = None,
           mirror: Annotated[str | None, typer.Option("--mirror", metavar="ORG/NAME", help="Private Hub repository for the recipe and the finished stages; YOU/<recipe name>-run without it.")] = None,
           namespace: Annotated[str | None, typer.Option("--namespace", metavar="ORG", help="Whose job it is, and who pays; yours without it.")] = None,
           image: Annotated[str | None, typer.Option("--image", metavar="NAME:TAG", help="Container image; that of this version without it.")] = None,
           output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="With skypilot: the file to write; <recipe name>.sky.yaml without it.")] = None,
           dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and show what would be sent; send nothing.")] = False,
           detach: Annotated[bool, typer.Option("--detach", help="Do not follow the job's log.")] = False,
           allow_remote_code: RemoteCodeOption = False, revision: RevisionOption = None) -> None:  # fmt: skip
    """Run a recipe on a rented machine, with a limit on its cost.

    The recipe and finished stages go to a private mirror repository, so the same command goes on with a job that was cut off.

    Examples: `hubdistill launch my.yaml --on hf-jobs --flavor a100-large --max-usd 20 --dry-run`
    """
    from hubdistill.hub import jobs, skypilot

    order, whose = _order(Asked(recipe, overrides, allow_remote_code, revision), on, flavor, max_usd, timeout, usd_per_hour, mirror, namespace, image)
    if on is Where.SKYPILOT:
        text, file = skypilot.task_text(order, flavor), output or Path(f"{order.mirror.split('/')[1].removesuffix('-run')}.sky.yaml")
        if dry_run:
            _print(f"{order.recipe_text()}\n\nWrite {file}:\n\n{text}\nNothing was sent.")
            return
        order.send_recipe()
        write_atomically(file, text.encode())
        _print(f"{file}\nNext: sky launch {shlex.quote(str(file))} --secret HF_TOKEN\nTo go on anywhere: {order.resume}")
        return
    job = jobs.job_of(order, flavor, whose)
    jobs.refuse_second(order, whose)
    if dry_run:
        _print(f"{order.recipe_text()}\n\nStart a job in {whose}:\n\n{jobs.shown(job)}\n\nNothing was sent.")
        return
    running = jobs.start(order, job)
    _print(f"{running.url}\nFollow:  {running.follow_command}\nStop:    {running.cancel_command}\nGo on:   {order.resume}   (on any machine, if the job is cut off)")
    if not detach:
        sys.stdout.flush()
        jobs.follow(running, _complain, order.resume)
        _print(f"Done: {running.url}")


def _order(asked: Asked, on: Where, flavor: str, max_usd: float, timeout: str | None, usd_per_hour: float | None, mirror: str | None,
           namespace: str | None, image: str | None) -> tuple[Any, str]:  # fmt: skip
    """The order for a job and the namespace it belongs to, with everything checked; said on stderr, nothing sent."""
    from hubdistill.console import calm_libraries
    from hubdistill.hub import jobs
    from hubdistill.hub import launch as launches
    from hubdistill.hub.budget import budget
    from hubdistill.plan import make_plan
    from hubdistill.publication import announce

    calm_libraries()
    if on is Where.SKYPILOT and usd_per_hour is None:
        raise InputError("--max-usd: the price of a machine that SkyPilot finds is not known here; add --usd-per-hour with the most it may cost")
    price = (usd_per_hour or 0, "--usd-per-hour") if on is Where.SKYPILOT else jobs.hourly_price(flavor, usd_per_hour)
    limits = budget(max_usd, timeout, *price)
    plan = make_plan(asked.load(), elsewhere=True)
    whose = namespace or launches.user_name()
    if plan.recipe.publish:
        announce(plan.recipe.publish, _say)
    order = launches.prepare(plan, mirror or launches.default_mirror(plan, whose), image or launches.IMAGE, limits)
    for warning in (*plan.warnings, *order.warnings):
        _say(f"warning: {warning}")
    _say(limits.text())
    return order, whose


@app.command()
def card(run: RunArgument) -> None:
    """Write the model card of a finished run, and the folder laid out as its repository would be."""
    from hubdistill.publication import build_local
    from hubdistill.rundir import RunDirectory

    path = _run_directory(run)
    with RunDirectory(path).locked():
        folder = build_local(path)
    _print(f"{folder}\nNext: hubdistill push {shlex.quote(run)} --repo ORG/NAME --dry-run")


@app.command()
def report(run: Annotated[str, typer.Argument(metavar="RUN", help="A run directory, or the name of the recipe it was made with; or the folder of a comparison.")]) -> None:
    """Write the report of a run, finished or not, or of a comparison: one HTML file with plots that needs nothing else.

    `run` and `compare` write it when they end.

    Examples: `hubdistill report quickstart` · `hubdistill report runs/quickstart-compare`
    """
    from hubdistill.compare.steady import CELLS

    compared = next((path for path in _folders(run) if (path / CELLS).is_file()), None)
    if compared:
        from hubdistill.compare.results import write_again

        _print(str(write_again(compared)))
        return
    from hubdistill.report.page import write_report

    _print(str(write_report(_run_directory(run))))


@app.command()
def push(run: RunArgument,
         repo: Annotated[str, typer.Option("--repo", metavar="ORG/NAME", help="Repository of the adapter; created if it is not there.")],
         base_repo: Annotated[str | None, typer.Option("--base-repo", metavar="ORG/NAME", help="Repository for the base, if that is not on the Hub (a pruned or local student).")] = None,
         merged_repo: Annotated[str | None, typer.Option("--merged-repo", metavar="ORG/NAME", help="Repository for the model with the adapter merged in, if you want one (engines take no adapter as drafter).")] = None,
         public: Annotated[bool, typer.Option("--public", help="Create repositories public; they are private without it. Existing ones keep their visibility.")] = False,
         pr: Annotated[bool, typer.Option("--pr", help="Open a pull request instead of committing to main.")] = False,
         tag: Annotated[str | None, typer.Option("--tag", help="Tag the commit, for example v0.1.")] = None,
         revision: Annotated[str | None, typer.Option("--revision", help="Branch to push to.")] = None,
         overwrite_card: Annotated[bool, typer.Option("--overwrite-card", help="Replace an existing card, hand-written text included.")] = False,
         force: Annotated[bool, typer.Option("--force", help="Push a student that is worse than what its training began with; its card says so.")] = False,
         dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be pushed; no network needed.")] = False) -> None:  # fmt: skip
    """Publish a finished run: one commit with the adapter, its card and its recipe. Needs `hf auth login` or HF_TOKEN.

    Exit code 1, and nothing is pushed, where the distilled student is worse than the warm-up (the recipe's `gate`).
    """
    from hubdistill import publication
    from hubdistill.rundir import RunDirectory

    path = _run_directory(run)
    if dry_run:
        with RunDirectory(path).locked():
            text = publication.preview_text(path, repo, base_repo=base_repo, private=not public, create_pr=pr, tag=tag, revision=revision, merged_repo=merged_repo)
        _print(text)
        return
    with RunDirectory(path).locked():
        done = publication.publish(path, repo, base_repo=base_repo, private=not public, create_pr=pr, tag=tag, revision=revision, overwrite_card=overwrite_card,
                                   merged_repo=merged_repo, force=force)  # fmt: skip
    for warning in done.warnings:
        _say(f"warning: {warning}")
    shown = f"refs/pr/{done.pr}" if done.pr else revision
    at = ["--revision", shown] if shown and shown != "main" else []
    what = f"pull request {done.pr}" if done.pr else f"commit {done.commit}"
    beside = "".join(f"beside it {url}\n" for url in done.beside)
    _print(f"{done.url}\n{what}, {done.visibility}{', tag ' + done.tag if done.tag else ''}\n{beside}Next: {shlex.join(['hubdistill', 'pull', repo, *at])}")


@app.command()
def pull(adapter: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Adapter on the Hub, or a folder laid out like one.")],
         revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit.")] = None,
         output: OutputOption = None,
         base: Annotated[str | None, typer.Option("--base", metavar="ORG/NAME", help="Refuse the adapter unless it is for this base.")] = None,
         json_: JsonOption = False) -> None:  # fmt: skip
    """Fetch an adapter at one commit, check that it is what it claims to be, and show how to use it."""
    from dataclasses import asdict

    from hubdistill.hub.pull import pull as fetch
    from hubdistill.hub.pull import usage

    found = fetch(adapter, revision=revision, output=output, expect_base=base)
    _print(json.dumps(asdict(found), indent=2, default=str) if json_ else f"{found.folder}\n\n{usage(found)}")


@app.command()
def recipes(name: Annotated[str | None, typer.Argument(help="Show this recipe instead of the list.")] = None,
            copy: Annotated[Path | None, typer.Option("--copy", metavar="FILE", help="Copy it to a file of your own, to edit.")] = None) -> None:  # fmt: skip
    """List the recipes that ship with hubdistill; show or copy one."""
    from hubdistill.shipped import list_recipes

    if name is None:
        _print("\n".join(f"{recipe.name:<48} {recipe.about}" for recipe in list_recipes()))
        return
    loaded = Asked(name).load()
    if copy is None:
        _print(loaded.text.rstrip())
        return
    try:
        with copy.open("x", encoding="utf-8") as file:
            file.write(loaded.text)
    except FileExistsError as problem:
        raise InputError(f"{copy} is there already; choose another file name") from problem
    except OSError as problem:
        raise write_problem(problem, copy, "--copy") from problem
    _print(f"{copy}\nNext: hubdistill plan {shlex.quote(str(copy))}")


class _Started:
    """A recipe loaded and planned, with its run directory."""

    def __init__(self, asked: Asked, output: Path | None, quiet: bool):
        from hubdistill.console import ConsoleReporter, calm_libraries
        from hubdistill.plan import make_plan

        calm_libraries()
        self.plan = make_plan(asked.load())
        self._in_processes()
        # Not before: it brings torch, and a recipe that is refused need not wait for that.
        from hubdistill.estimate.forecast import memory_problem

        self.path = output or Path("runs") / self.plan.loaded.name.replace("/", "-")
        self.reporter = ConsoleReporter(quiet=quiet or not told().first)
        for warning in self.plan.warnings:
            self.reporter.note(f"warning: {warning}")
        if told().first and (problem := memory_problem(self.plan)):  # no reason to refuse: the forecast is of the longest prompts and responses
            self.reporter.note(f"warning: the run may need more memory than there is: {problem}")

    def _in_processes(self) -> None:
        """Where the plan has several processes and this is none of them: start them, and end with them."""
        from hubdistill.launcher import start

        if self.plan.processes > 1 and told().alone:
            code, said = start(self.plan.processes, sys.argv[1:])
            if said:
                _say(said.rstrip())
            sys.exit(code)

    def opened(self) -> Any:
        from contextlib import contextmanager

        from hubdistill.models.hardware import pick_device
        from hubdistill.processes import joined
        from hubdistill.run import Run
        from hubdistill.rundir import RunDirectory

        @contextmanager
        def locked():
            try:
                device = pick_device(self.plan.recipe.train.device).type
                with joined(device) as processes, RunDirectory(self.path, self.reporter.stage, processes=processes).locked() as directory:
                    yield Run(self.plan, directory, self.reporter)
            finally:
                self.reporter.stop()

        return locked()


def _summary(path: Path, done: Any) -> dict[str, Any]:
    from hubdistill.publication import load_run
    from hubdistill.summary import summary

    return summary(path, *load_run(path), done)


def _folders(reference: str) -> tuple[Path, Path]:
    return Path(reference), Path("runs") / reference.replace("/", "-")


def _run_directory(reference: str) -> Path:
    for path in _folders(reference):
        if os.path.isfile(path / "plan.json"):
            return path
    raise MissingError(f"there is no run at {reference} or runs/{reference}; name a run directory, or make one: hubdistill run RECIPE")


def _print(text: str) -> None:
    print(text)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _complain(text: str) -> None:
    from hubdistill.hub.failures import hub_token
    from hubdistill.hub.secrets import redact

    _say(redact(text, hub_token()))


def main() -> None:
    """Entry point. Exit codes: 0 ok, 1 training failed or its result is not published, 2 user error, 130 interrupted; no traceback unless HUBDISTILL_DEBUG=1."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when huggingface_hub is imported
    try:
        app()
    except HubdistillError as problem:
        if os.environ.get("HUBDISTILL_DEBUG") == "1":
            raise
        _complain(str(problem))
        sys.exit(problem.exit_code)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:  # typer ends an interrupted command with this code
            _say(f"\nInterrupted; finished stages are kept. To go on: {shlex.join(['hubdistill', *sys.argv[1:]])}")
        raise
    except Exception as problem:
        if os.environ.get("HUBDISTILL_DEBUG") == "1":
            raise
        if not told().alone:
            time.sleep(3)  # when another process is gone, this one fails too; it is ended in this time, and the other's message stands
        if type(problem).__name__ == "OutOfMemoryError":  # torch's; not imported for a name
            _complain(f"{problem}\nThe device has too little memory; lower sampling.batch_size where this happened while sampling or evaluating, "
                      "train.micro_batch where it happened while training (or set train.gradient_checkpointing: true), and run again: finished stages are kept")  # fmt: skip
            sys.exit(1)
        _complain(f"Unexpected {type(problem).__name__}: {problem}\nRun again with HUBDISTILL_DEBUG=1 for the traceback, and report it.")
        sys.exit(1)
