"""What the responses of a round were worth to the student before it: the reference of DPO, and of policy gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from hubdistill.losses.chunked import label_logps
from hubdistill.models.load import base_of, head_of

if TYPE_CHECKING:
    from peft import PeftModel

    from hubdistill.pairs.join import Pair
    from hubdistill.training.trainer import Distillation, PairCollator

Likelihoods = dict[str, tuple[torch.Tensor, ...]]  # prompt id -> log-probabilities (n,) of the tokens of each response, the teacher's first


@torch.no_grad()
def likelihoods_before(model: PeftModel, pairs: Sequence[Pair], collate: PairCollator, distillation: Distillation, batch: int) -> Likelihoods:
    """Log-probabilities of the responses of every pair under the model as it is, `batch` pairs at a time. All processes call this together.

    `model` has the adapter that the round starts from, also where training goes on from a checkpoint: that is loaded later.
    """
    found: Likelihoods = {}
    once = list({pair.prompt_id: pair for pair in pairs}.values())
    head, device = head_of(base_of(model)), next(model.parameters()).device
    for start in range(0, len(once), batch):
        micro = collate(once[start : start + batch])["micro"]
        rows = micro.batch
        hidden_ND = distillation.reading.hidden(model, rows.student, rows.student_rows_N, rows.student_columns_N)
        parts = label_logps(hidden_ND, head, rows.labels_N.to(device), distillation.vocab).cpu().split(rows.lengths_B.tolist())
        names = micro.prompt_ids
        found.update({name: parts[number :: len(names)] for number, name in enumerate(names)})  # a side after the other
    return found
