"""What `run` ends with: the results that matter most, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hubdistill.evaluation.gate import verdict_of
from hubdistill.evaluation.judge import WIN_RATE
from hubdistill.evaluation.questions import OF_TYPE, RIGHT_ANSWERS, SCORE
from hubdistill.evaluation.statistics import Measurement
from hubdistill.hub import card as cards
from hubdistill.hub.publish import Published
from hubdistill.hub.results import judged
from hubdistill.publication import location
from hubdistill.report.page import PAGE

SHOWN = ("gap_closed", "speed_up", "accepted_length", "acceptance", "perplexity", "kl", "agreement", "rouge_l", "preference", "vqa_accuracy", "exact_match", "win_rate", SCORE, "latency", "memory")  # metrics that `run` ends with; of questions the whole set
OF_QUESTIONS = (*RIGHT_ANSWERS, WIN_RATE, SCORE)


def summary(path: Path, record: Mapping[str, Any], measurements: tuple[Measurement, ...], done: Published | None) -> dict[str, Any]:
    """What `run` ends with, as data."""
    chosen = [row for row in measurements if row.subject == "distilled" and row.metric in SHOWN and (OF_TYPE not in row.on or row.metric == SCORE)]
    prompts = max((row.n for row in chosen if row.metric not in (*OF_QUESTIONS, "preference")), default=0)
    by_key = {(row.metric, row.on, row.subject): row for row in measurements}
    base_missing = not location(path).on_hub
    name = record["name"].replace("/", "-")
    verdict = verdict_of(record, measurements)
    following = f"hubdistill push {shlex.quote(str(path))} --repo YOU/{name}" + (f" --base-repo YOU/{name}-base" if base_missing else "")
    return {
        "run": str(path),
        "adapter": str(path / "hub"),
        "card": str(path / "README.md"),
        "report": str(path / PAGE),
        "time": cards.duration(sum(record["seconds"].values())),
        "memory": record.get("memory", []),
        "prompts": prompts,
        "gate": verdict.text,
        "results": [_result_line(row, by_key) + (f"   (n = {row.n})" if row.n and (row.metric in OF_QUESTIONS or row.n != prompts) else "") for row in chosen],
        "judged": [f"{row.subject} {row.on}: {judged(row.judged)}" for row in measurements if row.judged and OF_TYPE not in row.on],
        "measurements": [row.as_dict() for row in measurements],
        "repo": done.repo if done else None,
        "url": done.url if done else None,
        "commit": done.commit if done else None,
        "visibility": done.visibility if done else None,
        "beside": list(done.beside) if done else [],
        "next": f"hubdistill pull {done.repo}" if done else f"{path / PAGE} shows where it became worse; `push` is refused without --force" if verdict.refuses else following,
    }


def _result_line(row: Measurement, by_key: Mapping[tuple[str, str, str], Measurement]) -> str:
    before = [by_key[key] for subject in ("student", "warm-up", "before preference") if (key := (row.metric, row.on, subject)) in by_key]
    steps = " -> ".join(f"{one.subject} {one.value:.3f}" for one in [*before, row])
    own = [one for one in row.differences if one.against != "teacher"]  # what training changed, where that was measured
    difference = (own or row.differences or (None,))[-1]
    change = f"   ({difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}] against {difference.against})" if difference else ""
    change = change or f"   [{row.low:.3f}, {row.high:.3f}]" * (not before)  # a share of what was before has nothing to stand against
    return f"{row.metric} on {row.on}, {row.unit}, {row.better} is better: {steps}{change}"
