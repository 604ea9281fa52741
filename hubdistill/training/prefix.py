"""Which of the two models read the prompt of a pair once: what the config says (models/sharing.py), tried on a pair.

Training on a row of pairs is exact or it is not done: a model that makes something else of such a row than of each response
alone reads two rows a pair, as any model can, and the reason is told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from hubdistill.modalities.base import rows_of
from hubdistill.models.load import base_of
from hubdistill.models.pair_attention import pair_attention
from hubdistill.models.sharing import Sharing

if TYPE_CHECKING:
    from hubdistill.modalities.base import Reading
    from hubdistill.pairs.join import Pair

CLOSE, CLOSE_IN_HALF = 1e-3, 0.05  # mean relative distance of hidden states; a wrong mask gives 0.3 and more


def who_shares(said: Mapping[str, Sharing], models: Mapping[str, Any], reading: Reading, pair: Pair, note: Callable[[str], None]) -> frozenset[str]:
    """Names of the `models` that read prompts once; `note` gets a line for each that does not. All processes call this together."""
    found = {who: said[who] if not said[who].shared else tried(who, model, reading, pair) for who, model in models.items()}
    for who, answer in found.items():
        if not answer.shared:
            note(f"the {who} reads each prompt twice, once for each response of its pair: {answer.reason}")
    return frozenset(who for who, answer in found.items() if answer.shared)


@torch.no_grad()
def tried(who: str, model: Any, reading: Reading, pair: Pair) -> Sharing:
    """The pair in one row against its two responses apart; twice, so that the row has a common beginning too, where no images forbid one."""
    if not getattr(base_of(model), "_supports_attention_backend", False):
        return Sharing(False, "its attention cannot be exchanged (transformers' attention interface)")
    training = model.training
    model.eval()
    try:
        apart, together = _states(who, model, reading, pair, ()), _in_one_row(who, model, reading, pair)
    except (ValueError, TypeError) as problem:  # of a forward that takes no such arguments, or of the attention
        return Sharing(False, str(problem))
    finally:
        model.train(training)
    error = float(((together - apart).norm(dim=1) / apart.norm(dim=1)).mean())
    if not error <= (CLOSE if model.dtype == torch.float32 else CLOSE_IN_HALF):  # a NaN too
        return Sharing(False, f"it reads a pair in one row otherwise than two responses apart (hidden states are off by {error:.1%})")
    return Sharing(True)


def _in_one_row(who: str, model: Any, reading: Reading, pair: Pair) -> torch.Tensor:
    with pair_attention(model):
        return _states(who, model, reading, pair, (who,))


def _states(who: str, model: Any, reading: Reading, pair: Pair, shared: tuple[str, ...]) -> torch.Tensor:
    batch = reading.collate(rows_of([pair] if pair.images else [pair, pair]), shared)
    view = (batch.teacher, batch.teacher_rows_N, batch.teacher_columns_N) if who == "teacher" else (batch.student, batch.student_rows_N, batch.student_columns_N)
    return reading.hidden(model, *view).float()
