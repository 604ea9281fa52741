"""What quantisation cost, and how much of it an adapter won back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hubdistill.evaluation.heldout import ON_TEACHER, ON_TRUTH, HeldOut
from hubdistill.evaluation.statistics import ENOUGH, Measurement, mean_and_interval, paired_difference, share

CLOSED, PERPLEXITY = "gap_closed", "perplexity"
# Nats a token of kl that say nothing: about what rounding the logits of one and the same model to 16 bits makes. A kl is
# never negative, so no interval of it reaches zero.
ROUNDING = 1e-3


def within_noise(heldout: HeldOut) -> str | None:
    """What the student without adapter costs on the teacher's responses, in words, where it may be rounding alone;
    None where it is more, and where there are too few prompts to tell.

    Of the full distributions, at every token: the likelihood of the responses would not do, for they are sampled at the
    recipe's temperature and top-p, and a student that is a little sharper than its teacher finds such text likelier.
    """
    rows = list(heldout.teacher_responses.rows())
    if len(rows) < ENOUGH:
        return None
    with heldout.subjects[0].opened() as model:
        found = heldout.scorer.score(model, rows)["kl"]
    value, low, high = mean_and_interval([found[key] for key in sorted(found)], heldout.seed)
    return f"{value:.5f} nats/token of kl [{low:.5f}, {high:.5f}] on {len(rows)} of its responses, and up to {ROUNDING} is rounding" if low <= ROUNDING else None


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

    None where the gap itself is within noise (a kl: of rounding): a share of nothing is no number to print.
    """
    like = next((row for row in rows if (row.metric, row.on) == (metric, on)), None)
    if like is None or "student" not in values:
        return []
    quantised = values["student"]
    full = values.get("teacher", dict.fromkeys(quantised, 0.0))
    if paired_difference(quantised, full, "teacher", like.seed).low <= (ROUNDING if metric == "kl" else 0):
        return []
    found = []
    for subject in [name for name in values if name not in ("student", "teacher")]:
        ids = sorted(quantised.keys() & full.keys() & values[subject].keys())
        value, low, high = share([quantised[i] - values[subject][i] for i in ids], [quantised[i] - full[i] for i in ids], like.seed)
        found.append(replace(like, metric=CLOSED, subject=subject, on=f"{metric}, {on}", value=value, low=low, high=high, n=len(ids), unit="share", better="higher", differences=()))
    return found
