"""Whether a model finds the preferred response of a pair likelier than the other one: measured before and after preference tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hubdistill.evaluation.divergence import Scorer
from hubdistill.modalities.base import Row
from hubdistill.pairs.store import Response

ON_PREFERENCES = "held-out preferences"


@dataclass(frozen=True)
class Preferences:
    """Pairs that were not trained on: the preferred responses, and the other ones to the same prompts."""

    chosen: Sequence[Response]
    rejected: Sequence[Response]

    def scored(self, scorer: Scorer, model: Any) -> dict[str, float]:
        """Prompt id -> 1 where log q(preferred) > log q(other), both summed over their tokens as in DPO; 1/2 where they are equal."""
        reading = replace(scorer, row_of=lambda response: Row(response.prompt_ids, response.response_ids))
        chosen, rejected = (_summed(reading, model, one) for one in (self.chosen, self.rejected))
        return {id: 0.5 if chosen[id] == rejected[id] else float(chosen[id] > rejected[id]) for id in chosen}


def _summed(scorer: Scorer, model: Any, responses: Sequence[Response]) -> dict[str, float]:
    """Prompt id -> log-probability of its response, nats."""
    nll = scorer.nll(model, responses)
    return {one.prompt_id: -nll[one.prompt_id] * len(one.response_ids) for one in responses}
