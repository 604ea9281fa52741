"""What the student's responses and the teacher's were worth to the student before a round: the reference of DPO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from hubdistill.losses.preference import Preference, summed_logps
from hubdistill.models.load import base_of, head_of

if TYPE_CHECKING:
    from peft import PeftModel

    from hubdistill.pairs.join import Pair
    from hubdistill.training.trainer import Distillation, PairCollator

Likelihoods = dict[str, tuple[float, float]]  # prompt id -> log-probability of the teacher's and of the student's response


@torch.no_grad()
def likelihoods_before(model: PeftModel, pairs: Sequence[Pair], collate: PairCollator, distillation: Distillation, batch: int) -> Likelihoods:
    """Log-probabilities of both responses of every pair under the model as it is, `batch` pairs at a time. All processes call this together.

    `model` has the adapter that the round starts from, also where training goes on from a checkpoint: that is loaded later.
    """
    found: Likelihoods = {}
    once = list({pair.prompt_id: pair for pair in pairs}.values())
    head, device = head_of(base_of(model)), next(model.parameters()).device
    for start in range(0, len(once), batch):
        micro = collate(once[start : start + batch])["micro"]
        rows = micro.batch
        hidden_ND = distillation.reading.hidden(model, rows.student, rows.student_rows_N, rows.student_columns_N)
        settings = Preference(distillation.preset.strength, len(once), distillation.vocab)
        teacher_B, student_B = summed_logps(hidden_ND, head, rows.labels_N.to(device), rows.lengths_B, settings).chunk(2)
        found.update(zip(micro.prompt_ids, zip(teacher_B.tolist(), student_B.tolist(), strict=True), strict=True))
    return found
