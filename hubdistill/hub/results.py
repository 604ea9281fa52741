"""Measurements as the rows of a card's results table and as the Hub's `model-index`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hubdistill.evaluation.judge import WIN_RATE
from hubdistill.evaluation.questions import OF_TYPE, QUESTIONS, RIGHT_ANSWERS, SCORE, set_of
from hubdistill.evaluation.statistics import ENOUGH, Difference, Measurement
from hubdistill.hub.markdown import Markdown, text
from hubdistill.pairs.prompt_report import counted

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

SUBJECTS = {"student": "base", "warm-up": "after warm-up", "before preference": "after distillation", "distilled": "this adapter", "teacher": "teacher"}
METRICS = {
    "kl": "KL(teacher ‖ student)",
    "skl": "skew KL",
    "srkl": "skew reverse KL",
    "nll": "negative log-likelihood",
    "agreement": "top-1 agreement with the teacher",
    "preference": "preferred response likelier than the other",
    "rouge_l": "ROUGE-L against the teacher's response",
    "vqa_accuracy": "VQA accuracy",
    "exact_match": "exact match",
    "score": "score",
    "perplexity": "perplexity",
    WIN_RATE: "win rate",
    "acceptance": "expected acceptance of a drafted token",
    "speed_up": "speed of decoding with it as drafter",
    "accepted_length": "tokens that a verification gives",
    "same_text": "text equal to plain decoding",
    **{f"accepted_{i}": f"first {i} drafted tokens accepted" if i > 1 else "first drafted token accepted" for i in range(1, 9)},
    "gap_closed": "share of the gap to full precision that was closed",
    "latency": "time of a decoded token",
    "memory": "memory of the weights",
}
COSTS = ("latency", "memory")  # of a machine as much as of a model: in the card, and not in the Hub's results on a data set


@dataclass(frozen=True)
class Source:
    """A data set that was measured on; `hub_id` and `commit` None for a local file."""

    name: str
    hub_id: str | None = None
    commit: str | None = None


@dataclass(frozen=True, kw_only=True)
class Results:
    """What the template prints: a table (header, rows), a line for each paired difference, how it was measured, and
    whether a row was counted and not estimated."""

    header: tuple[Markdown, ...]
    rows: tuple[tuple[Markdown, ...], ...]
    differences: tuple[Markdown, ...]
    decoding: tuple[Markdown, ...]
    counted: bool


def number(value: float) -> str:
    """`value` with four significant digits, never in scientific notation for ordinary sizes."""
    return f"{value:.4g}" if value == 0 or 1e-4 <= abs(value) < 1e6 else f"{value:.3e}"


def interval(low: float, high: float) -> str:
    """An interval in words."""
    return f"({number(low)} to {number(high)})"


def _label(m: Measurement) -> str:
    return f"{METRICS.get(m.metric, m.metric)} on {m.on}"


def results(measurements: Sequence[Measurement]) -> Results:
    """Arrange `measurements` for the card: one row for each metric, one column for each subject that was measured."""
    subjects = [s for s in SUBJECTS if any(m.subject == s for m in measurements)]
    subjects += sorted({m.subject for m in measurements} - set(SUBJECTS))
    groups: dict[tuple[object, ...], dict[str, Measurement]] = {}
    for m in measurements:
        same = () if m.judged else (m.n,)  # of each subject a judge may leave other prompts without a verdict
        groups.setdefault((m.metric, m.on, m.unit, m.better, m.split, *same), {})[m.subject] = m
    head = ("metric", *(SUBJECTS.get(s, s) for s in subjects), "better", "n")
    return Results(
        header=tuple(text(h) for h in head),
        rows=tuple(_row(group, subjects) for group in groups.values()),
        differences=_differences(measurements),
        decoding=tuple(text(line) for line in dict.fromkeys(line for m in measurements for line in _how(m))),
        counted=any(not m.n for m in measurements),
    )


def in_words(low: float, high: float, better: str, n: int) -> str:
    """What a difference with this interval says, in words."""
    if n < ENOUGH:
        return "too few prompts to tell"
    return "no clear difference" if low <= 0 <= high else "better" if (low > 0) == (better == "higher") else "worse"


def _row(group: dict[str, Measurement], subjects: Sequence[str]) -> tuple[Markdown, ...]:
    first = next(iter(group.values()))
    cells = [text(f"{_label(first)} ({first.unit})")]
    for subject in subjects:
        m = group.get(subject)
        bold = "**" if subject == "distilled" else ""
        spread = f" {interval(m.low, m.high)}" if m and m.n else ""
        cells.append(Markdown(f"{bold}{number(m.value)}{bold}{spread}") if m else Markdown("–"))
    return (*cells, text(first.better), Markdown(prompts_of(group.values())))


def prompts_of(rows: Iterable[Measurement]) -> str:
    """On how many prompts a metric was measured: the fewest and the most, where a judge left some subjects without verdicts."""
    counts = sorted({row.n for row in rows})
    return "–" if not counts[-1] else str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"


def _differences(measurements: Sequence[Measurement]) -> tuple[Markdown, ...]:
    """A line for each difference that can be judged, and one for all the others."""
    told = tuple(_difference(m, d) for m in measurements for d in m.differences if m.n >= ENOUGH)
    untold = sum(len(m.differences) for m in measurements if m.n < ENOUGH)
    few = f"{counted(untold, 'difference is', 'differences are')} not listed, for too few prompts to tell (fewer than {ENOUGH})"
    return (*told, text(few)) if untold else told


def _difference(m: Measurement, d: Difference) -> Markdown:
    verdict = in_words(d.low, d.high, m.better, m.n)
    who, other = SUBJECTS.get(m.subject, m.subject), SUBJECTS.get(d.against, d.against)
    value = f"{'+' if d.value > 0 else ''}{number(d.value)} {interval(d.low, d.high)}"
    return text(f"{_label(m)}, {who} minus {other}: {value} {m.unit}: {verdict}")


def judged(tally: Mapping[str, Any]) -> str:
    """What came of judging one subject, in words."""
    verdicts = tally["wins"] + tally["ties"] + tally["losses"]
    parts = [f"{counted(verdicts, 'verdict')} ({tally['wins']} won, {tally['ties']} tied, {tally['losses']} lost), {tally['unparsed']} more that could not be read"]
    parts += [f"{counted(tally['equal'], 'answer')} equal to the other, a tie without asking"] if tally["equal"] else []
    parts += [f"the same verdict in both orders on {tally['consistent']:.0%} of the prompts"] if tally["consistent"] is not None else []
    parts += [f"{tally['tokens_in']:,} tokens read and {tally['tokens_out']:,} written" + (f", ${tally['cost']:.2f}" if tally["cost"] is not None else "")]
    return "; ".join(parts)


def _how(m: Measurement) -> tuple[str, ...]:
    if not m.n:  # counted, not a mean over prompts
        return (f"{_label(m)}: all weights, as they are loaded here",)
    decoding = f", decoding {m.decoding}" if m.decoding else ""
    if m.metric in RIGHT_ANSWERS:
        return (f"{set_of(m.on)}: questions with and without their images{decoding}, seed {m.seed}",)
    if m.metric == SCORE:
        return (f"{set_of(m.on)}: {m.n} questions{decoding}",)
    if m.judged:
        return _judging(m, decoding)
    return (f"{m.on}: {m.split} prompts{decoding}, seed {m.seed}",)


def _judging(m: Measurement, decoding: str) -> tuple[str, ...]:
    """How answers were judged, and for the whole set what came of it."""
    tally: Mapping[str, Any] = m.judged or {}
    on, of_type, _ = m.on.partition(OF_TYPE)
    heat = "the server's temperature" if tally["temperature"] is None else f"temperature {tally['temperature']:g}"
    how = f"{on}: answers{decoding}, seed {m.seed}, compared by the judge {tally['judge']} ({heat}) in both orders; a win counts 1, a tie 1/2, and a prompt without two verdicts is left out"
    return (how,) if of_type else (how, f"{on}, {SUBJECTS.get(m.subject, m.subject)}: {judged(tally)}")


def eval_results(measurements: Sequence[Measurement], *, task: str, prompts: Source, questions: Mapping[str, Source]) -> list[EvalResult]:
    """The distilled student's measurements as the Hub's `model-index` entries. `prompts` are where the held-out prompts
    are from, `questions` each set of questions by its name in the measurements."""
    from huggingface_hub import EvalResult

    def source(m: Measurement) -> Source:
        name = set_of(m.on)
        return questions.get(name, Source(name)) if m.split == QUESTIONS else prompts

    return [
        EvalResult(
            task_type=task,
            dataset_type=source(m).hub_id or "local",
            dataset_name=source(m).name,
            dataset_split=m.split,
            dataset_revision=source(m).commit if source(m).hub_id else None,
            metric_type=m.metric,
            metric_value=round(m.value, 6),
            metric_name=f"{_label(m)} ({m.unit}, {m.better} is better, n={m.n})",
        )
        for m in measurements
        if m.subject == "distilled" and m.metric not in COSTS
    ]
