"""Measurements as the rows of a card's results table and as the Hub's `model-index`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hubdistill.evaluation.questions import QUESTIONS, RIGHT_ANSWERS, set_of
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
    "perplexity": "perplexity",
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


def _interval(low: float, high: float) -> str:
    return f"({number(low)} to {number(high)})"


def _label(m: Measurement) -> str:
    return f"{METRICS.get(m.metric, m.metric)} on {m.on}"


def results(measurements: Sequence[Measurement]) -> Results:
    """Arrange `measurements` for the card: one row for each metric, one column for each subject that was measured."""
    subjects = [s for s in SUBJECTS if any(m.subject == s for m in measurements)]
    subjects += sorted({m.subject for m in measurements} - set(SUBJECTS))
    groups: dict[tuple[object, ...], dict[str, Measurement]] = {}
    for m in measurements:
        groups.setdefault((m.metric, m.on, m.unit, m.better, m.split, m.n), {})[m.subject] = m
    head = ("metric", *(SUBJECTS.get(s, s) for s in subjects), "better", "n")
    return Results(
        header=tuple(text(h) for h in head),
        rows=tuple(_row(group, subjects) for group in groups.values()),
        differences=_differences(measurements),
        decoding=tuple(text(line) for line in dict.fromkeys(_how(m) for m in measurements)),
        counted=any(not m.n for m in measurements),
    )


def _row(group: dict[str, Measurement], subjects: Sequence[str]) -> tuple[Markdown, ...]:
    first = next(iter(group.values()))
    cells = [text(f"{_label(first)} ({first.unit})")]
    for subject in subjects:
        m = group.get(subject)
        bold = "**" if subject == "distilled" else ""
        interval = f" {_interval(m.low, m.high)}" if m and m.n else ""
        cells.append(Markdown(f"{bold}{number(m.value)}{bold}{interval}") if m else Markdown("–"))
    return (*cells, text(first.better), Markdown(str(first.n or "–")))


def _differences(measurements: Sequence[Measurement]) -> tuple[Markdown, ...]:
    """A line for each difference that can be judged, and one for all the others."""
    told = tuple(_difference(m, d) for m in measurements for d in m.differences if m.n >= ENOUGH)
    untold = sum(len(m.differences) for m in measurements if m.n < ENOUGH)
    few = f"{counted(untold, 'difference is', 'differences are')} not listed, for too few prompts to tell (fewer than {ENOUGH})"
    return (*told, text(few)) if untold else told


def _difference(m: Measurement, d: Difference) -> Markdown:
    improved = d.value > 0 if m.better == "higher" else d.value < 0
    verdict = ("better" if improved else "worse") if d.significant else "no clear difference"
    who, other = SUBJECTS.get(m.subject, m.subject), SUBJECTS.get(d.against, d.against)
    value = f"{'+' if d.value > 0 else ''}{number(d.value)} {_interval(d.low, d.high)}"
    return text(f"{_label(m)}, {who} minus {other}: {value} {m.unit}: {verdict}")


def _how(m: Measurement) -> str:
    if not m.n:  # counted, not a mean over prompts
        return f"{_label(m)}: all weights, as they are loaded here"
    decoding = f", decoding {m.decoding}" if m.decoding else ""
    if m.metric in RIGHT_ANSWERS:
        return f"{set_of(m.on)}: questions with and without their images{decoding}, seed {m.seed}"
    return f"{m.on}: {m.split} prompts{decoding}, seed {m.seed}"


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
