"""What quantisation cost, and how much of it an adapter won back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hubdistill.evaluation.heldout import ON_TEACHER, ON_TRUTH, HeldOut
from hubdistill.evaluation.statistics import ENOUGH, Measurement, paired_difference, share

CLOSED, PERPLEXITY = "gap_closed", "perplexity"


def within_noise(heldout: HeldOut) -> str | None:
    """What the student without adapter costs on the teacher's responses, in words, where its interval reaches zero;
    None where it does not, and where there are too few prompts to tell.

    Over the teacher's own samples the mean of NLL(student) - NLL(teacher) estimates KL(teacher || student) without bias.
    """
    rows = list(heldout.teacher_responses.rows())
    if len(rows) < ENOUGH:
        return None
    full = heldout.scorer.score(heldout.scorer.teacher, rows)["nll"]
    with heldout.subjects[0].opened() as model:
        cost = paired_difference(heldout.scorer.score(model, rows)["nll"], full, "teacher", heldout.seed)
    return f"{cost.value:+.4f} nats/token [{cost.low:+.4f}, {cost.high:+.4f}] on {len(rows)} of its responses" if cost.low <= 0 else None


def with_gap(heldout: HeldOut, rows: Sequence[Measurement]) -> list[Measurement]:
    """The share of the gap that the later subjects closed; then `rows`, with a perplexity after each NLL of ground truth."""
    found = [one for metric, on in (("kl", ON_TEACHER), ("nll", ON_TRUTH)) for one in _closed(rows, heldout.values.get((metric, on), {}), metric, on)]
    for row in rows:
        found.append(row)
        if (row.metric, row.on) == ("nll", ON_TRUTH):
            low, value, high = (math.exp(number) for number in (row.low, row.value, row.high))
            found.append(replace(row, metric=PERPLEXITY, value=value, low=low, high=high, unit="per token", differences=()))
    return found


def _closed(rows: Sequence[Measurement], values: Mapping[str, Mapping[str, float]], metric: str, on: str) -> list[Measurement]:
    """(student - subject) / (student - teacher), over the prompts that all have; the teacher's kl to itself is zero.

    None where the gap itself is within noise: a share of nothing is no number to print.
    """
    like = next((row for row in rows if (row.metric, row.on) == (metric, on)), None)
    if like is None or "student" not in values:
        return []
    quantised = values["student"]
    full = values.get("teacher", dict.fromkeys(quantised, 0.0))
    if paired_difference(quantised, full, "teacher", like.seed).low <= 0:
        return []
    found = []
    for subject in [name for name in values if name not in ("student", "teacher")]:
        ids = sorted(quantised.keys() & full.keys() & values[subject].keys())
        value, low, high = share([quantised[i] - values[subject][i] for i in ids], [quantised[i] - full[i] for i in ids], like.seed)
        found.append(replace(like, metric=CLOSED, subject=subject, on=f"{metric}, {on}", value=value, low=low, high=high, n=len(ids), unit="share", better="higher", differences=()))
    return found
