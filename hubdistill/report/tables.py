"""The tables of a report: measured results, results by the length of the prompt, responses, time and memory. Plain text in
every cell; the template escapes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from hubdistill.evaluation.gate import beginning
from hubdistill.evaluation.questions import OF_TYPE
from hubdistill.evaluation.statistics import Difference, Measurement
from hubdistill.hub.card import duration
from hubdistill.hub.lengths import prompt_tokens
from hubdistill.hub.results import COSTS, METRICS, SUBJECTS, in_words, judged, number, prompts_of
from hubdistill.losses.contrastive import INTERLEAVED
from hubdistill.report.curves import Plot
from hubdistill.report.gathered import Gathered
from hubdistill.report.plots import COLOURS, PLAIN, Style, dots

HEAD = ("kl", "acceptance", "gap_closed", "vqa_accuracy", "exact_match", "win_rate", "rouge_l", "perplexity", "nll")  # the first that was measured heads the report
DRAWN = ("kl", "agreement", "rouge_l", "acceptance", "vqa_accuracy", "exact_match", "win_rate", "perplexity", "speed_up", "latency")
BEFORE = [name for name in SUBJECTS if name not in ("distilled", "teacher")]
STYLES = {SUBJECTS["student"]: PLAIN} | {SUBJECTS[name]: Style(COLOURS[number]) for name, number in (("warm-up", 4), ("before preference", 3), ("distilled", 0), ("teacher", 2))}


class Table(NamedTuple):
    """Cells of a table; of each row the first is its name. `note` stands below."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def headline(measurements: Sequence[Measurement]) -> tuple[Measurement, list[Measurement]] | None:
    """The result that heads the report, and the same of the subjects before it."""
    found = [row for metric in HEAD for row in measurements if (row.metric, row.subject) == (metric, "distilled")]
    if not found:
        return None
    return found[0], [row for subject in BEFORE for row in measurements if (row.metric, row.on, row.subject) == (found[0].metric, found[0].on, subject)]


def label(row: Measurement | Mapping[str, Any]) -> str:
    """A metric and what it was measured on."""
    metric, on = (row.metric, row.on) if isinstance(row, Measurement) else (row["metric"], row["on"])
    return f"{METRICS.get(metric, metric)} on {on}"


def verdict(row: Measurement, one: Difference) -> str:
    """What a difference says, in words."""
    return in_words(one.low, one.high, row.better, row.n)


def results(measurements: Sequence[Measurement]) -> Table:
    """A row for each metric, a column for each subject, and how the distilled student differs from what it started from."""
    subjects = [name for name in SUBJECTS if any(row.subject == name for row in measurements)]
    subjects += sorted({row.subject for row in measurements} - set(SUBJECTS))
    groups: dict[tuple[str, str], dict[str, Measurement]] = {}
    for row in measurements:
        groups.setdefault((row.metric, row.on), {})[row.subject] = row
    rows = []
    for group in sorted(groups.values(), key=_rank):
        first = next(iter(group.values()))
        cells = [_cell(group.get(name)) for name in subjects]
        rows.append([f"{label(first)}, {first.unit} ({_arrow(first.better)})", *cells, _difference(group.get("distilled")), prompts_of(group.values())])
    judges = "".join(f" {SUBJECTS.get(row.subject, row.subject)}, {row.on}, by the judge {row.judged['judge']}: {judged(row.judged)}." for row in measurements if row.judged and OF_TYPE not in row.on)
    return Table(["", *(SUBJECTS.get(name, name) for name in subjects), "this adapter, minus what it started from", "n"], rows,
                 "Means over n held-out prompts with 95 % bootstrap intervals, paired differences on the same prompts; ↓ lower is better, ↑ higher is better. The intervals say what other prompts might have given; it is one training run." + judges)  # fmt: skip


def _rank(group: Mapping[str, Measurement]) -> int:
    """What is drawn comes first, in the order of DRAWN where it heads the report."""
    metric = next(iter(group.values())).metric
    return HEAD.index(metric) if metric in HEAD and metric in DRAWN else len(HEAD) + (metric not in DRAWN)


def result_plots(measurements: Sequence[Measurement]) -> list[Plot]:
    """What was measured of several subjects, as dots with intervals; types of question are in the table alone."""
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for row in measurements:
        if row.metric in DRAWN and OF_TYPE not in row.on:
            groups.setdefault((row.metric, row.on), []).append(row)
    found, order = [], list(SUBJECTS)
    for rows in groups.values():
        rows.sort(key=lambda row: order.index(row.subject) if row.subject in order else len(order))
        caption = f"{label(rows[0])} ({_arrow(rows[0].better)})"
        if len(rows) > 1:
            found.append(Plot(caption, dots({SUBJECTS.get(row.subject, row.subject): (row.value, row.low, row.high) for row in rows}, STYLES, caption, rows[0].unit)))
    return found


def lengths(found: Sequence[Mapping[str, Any]]) -> list[tuple[str, Table]]:
    """A table for each metric by the length of the prompt."""
    tables = []
    for one in found:
        subjects = [name for name in SUBJECTS if any(name in bucket["subjects"] for bucket in one["buckets"])]
        rows = [[prompt_tokens(bucket), str(bucket["n"]), *(_interval(*bucket["subjects"][name]) if name in bucket["subjects"] else "–" for name in subjects), _bucket_difference(bucket, one["better"])]
                for bucket in one["buckets"]]  # fmt: skip
        tables.append((f"{label(one)}, {one['unit']} ({_arrow(one['better'])})", Table(["prompt tokens", "n", *(SUBJECTS[name] for name in subjects), "this adapter, minus what it started from"], rows)))
    return tables


def responses(run: Gathered) -> Table:
    """What was sampled to train on, set by set."""
    rows = []
    for name, manifest in run.stages.items():
        result = manifest["result"]
        if name.endswith(("-teacher", "-student", f"-{INTERLEAVED}")) and result["rows"]:
            who, of_round = name.partition("-")[2], name.partition("-")[0].replace("_", " ")
            rows.append([f"{of_round}, {who}", f"{result['rows']:,}", f"{result['tokens'] / result['rows']:.1f}", f"{result['truncated'] / result['rows']:.0%}", str(result.get("unusable", 0))])
    return Table(["", "responses", "mean tokens", "cut at the length limit", "unusable"], rows)


def pairs(run: Gathered) -> Table:
    """What each round trained on."""
    rows = []
    for name, manifest in run.stages.items():
        if name.endswith("-train"):
            one = manifest["result"]
            rows.append([name.partition("-")[0].replace("_", " "), f"{one['pairs']:,}", f"{one['steps']:,}", f"{one['tokens']:,}", str(one["empty"]), str(one["unmatched"])])
    return Table(["", "pairs", "steps", "response tokens", "left out: empty", "left out: no partner"], rows)


def costs(run: Gathered) -> Iterator[tuple[str, Table]]:
    """Time and memory of every stage; beside the forecast, where the run has recorded it."""
    rows = [[name.replace("_", " "), duration(one["seconds"]), _gib(max(one.get("memory", {}).values(), default=0))] for name, one in run.stages.items()]
    yield "By stage, measured", Table(["stage", "time", "memory at most"], rows, "Memory of the first process; on a GPU the larger of the device's and the process's own.")
    record = run.record or {}
    for key, caption, shown, note in (
        ("memory", "Memory, forecast and measured", _gib, "The forecast is of every prompt and response at its limit."),
        ("time", "Time, forecast and measured", duration, "The forecast is guessed from the sizes of the models, with every response at its limit (docs/forecast.md)."),
    ):
        if beside := record.get(key):
            yield caption, Table(["", "forecast", "measured", "forecast / measured"], [[row["stage"], shown(row["predicted"]), shown(row["measured"]), _ratio(row)] for row in beside], note)


def _ratio(row: Mapping[str, Any]) -> str:
    return f"{row['predicted'] / row['measured']:.2f}" if row["measured"] else "–"


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size else "–"


def _arrow(better: str) -> str:
    return "↓" if better == "lower" else "↑"


def _cell(row: Measurement | None) -> str:
    if row is None:
        return "–"
    return _interval(row.value, row.low, row.high) if row.n else shown(row.value)


def shown(value: float) -> str:
    """Three decimals, which can be compared down a column; four significant digits of what is very large or small."""
    return f"{value:.3f}" if 0.01 <= abs(value) < 1000 or value == 0 else number(value)


def _interval(value: float, low: float, high: float) -> str:
    return f"{shown(value)}\n[{shown(low)}, {shown(high)}]"


def _change(one: Mapping[str, Any], words: str) -> str:
    return f"{one['value']:+.3f} {words}\n[{one['low']:+.3f}, {one['high']:+.3f}]"


def _difference(row: Measurement | None) -> str:
    one = beginning(row) if row and row.metric not in COSTS else None
    return _change(asdict(one), verdict(row, one)) if row and one else "–"


def _bucket_difference(bucket: Mapping[str, Any], better: str) -> str:
    one = bucket["difference"]
    return "–" if one is None else _change(one, in_words(one["low"], one["high"], better, bucket["n"]))
