"""Sampling written out, for what is compared with it."""

from __future__ import annotations


def drawn(probabilities: list[float], number: float, top_p: float) -> int:
    """The id that a number in [0, 1) picks in the nucleus, one id at a time."""
    kept, mass = [], 0.0
    for i in sorted(range(len(probabilities)), key=lambda i: -probabilities[i]):
        if mass >= top_p:
            break
        kept.append(i)
        mass += probabilities[i]
    left = (1 - number) * mass
    for i in sorted(kept):
        left -= probabilities[i]
        if left <= 0:
            break
    return i
