"""What a model's forward and backward pass hold at most, beside its weights. `meta.py` finds it; what was found is kept."""

from __future__ import annotations

from dataclasses import asdict
from functools import lru_cache

from hubdistill.estimate.calls import Call, Trace
from hubdistill.models.kept import kept


@lru_cache(maxsize=256)
def trace(call: Call) -> Trace:
    """What the call holds. Raises what transformers raises for a config that it cannot make a model of."""

    def found() -> dict[str, int]:
        from hubdistill.estimate.meta import traced

        return asdict(traced(call))

    return Trace(**kept(["trace", asdict(call)], found))
