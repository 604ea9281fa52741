"""How far a model is from the teacher on given responses, token by token over the whole vocabulary.

Computed with the readable divergences, not with the training loss: what a card says does not rest on what it judges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from hubdistill.evaluation.budget import ROWS, TILE_BYTES
from hubdistill.losses.divergences import kl, skl, srkl, tv
from hubdistill.losses.head import Head, Projector
from hubdistill.modalities.base import Reading, Row
from hubdistill.models.load import head_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hubdistill.pairs.store import Response

ALPHA = 0.1  # the skew of the reported skl and srkl, whatever the recipe trains with, so that cards compare


@dataclass(frozen=True)
class Scorer:
    """Measures models against one teacher. `row_of` finds what each model reads before a response."""

    teacher: PreTrainedModel
    reading: Reading
    vocab: int
    row_of: Callable[[Response], Row] = field(default=lambda response: Row(response.prompt_ids, response.response_ids))

    def score(self, model: PreTrainedModel, responses: Sequence[Response], progress: Callable[[int], None] | None = None) -> dict[str, dict[str, float]]:
        """Per-prompt means over response tokens: metric -> prompt id -> value.

        kl, skl, srkl in nats a token (method.md; alpha 0.1), nll of the response under the model, and agreement: the
        share of tokens where both models have the same most likely next token. acceptance: sum min(p, q), the probability
        that a token drafted by the model is accepted by the teacher (Leviathan et al. 2023, corollary 3.6).
        """
        found: dict[str, dict[str, float]] = {name: {} for name in ("kl", "skl", "srkl", "nll", "agreement", "acceptance")}
        usable = [response for response in responses if response.response_ids]
        ordered = sorted(usable, key=lambda response: -len(response.prompt_ids) - len(response.response_ids))
        for start in range(0, len(ordered), ROWS):
            rows = ordered[start : start + ROWS]
            for metric, values in self._score_rows(model, rows).items():
                found[metric].update(zip((row.prompt_id for row in rows), values, strict=True))
            if progress:
                progress(len(rows))
        return found

    @torch.inference_mode()
    def _score_rows(self, model: PreTrainedModel, rows: Sequence[Response]) -> dict[str, list[float]]:
        batch = self.reading.collate([self.row_of(row) for row in rows])
        hidden = self.reading.hidden
        teacher_ND = hidden(self.teacher, batch.teacher, batch.teacher_rows_N, batch.teacher_columns_N)
        student_ND = teacher_ND if model is self.teacher else hidden(model, batch.student, batch.student_rows_N, batch.student_columns_N)
        teacher_head, student_head = (_head_on(each, model.device).first(self.vocab) for each in (self.teacher, model))
        found = token_metrics(teacher_ND.to(model.device), student_ND, teacher_head, student_head, batch.labels_N.to(model.device))
        lengths = batch.lengths_B.tolist()
        return {metric: [part.double().mean().item() for part in values.cpu().split(lengths)] for metric, values in found.items()}


def token_metrics(teacher_ND: torch.Tensor, student_ND: torch.Tensor, teacher_head: Head, student_head: Head, labels_N: torch.Tensor) -> dict[str, torch.Tensor]:
    """Each metric of `Scorer.score` for each of N tokens, from the hidden states that predict them, in tiles of tokens.

    The heads have equally many ids.
    """
    vocab = len(student_head.weight)
    projectors = (Projector(teacher_head, teacher_ND), Projector(student_head, student_ND))
    tiles = []
    for rows in torch.arange(len(labels_N), device=labels_N.device).split(max(1, TILE_BYTES // (4 * vocab))):
        p, q = (
            projector.logits(states[rows], torch.empty(len(rows), vocab, device=states.device)).log_softmax(-1)
            for projector, states in zip(projectors, (teacher_ND, student_ND), strict=True)
        )
        nll = -q.gather(-1, labels_N[rows, None]).squeeze(-1)
        agreement = (p.argmax(-1) == q.argmax(-1)).float()
        tiles.append({"kl": kl(p, q), "skl": skl(p, q, ALPHA), "srkl": srkl(p, q, ALPHA), "nll": nll, "agreement": agreement, "acceptance": 1 - tv(p, q)})
    return {metric: torch.cat([tile[metric] for tile in tiles]) for metric in tiles[0]}


def _base(model: Any) -> PreTrainedModel:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _head_on(model: PreTrainedModel, device: torch.device) -> Head:
    head = head_of(_base(model))
    return replace(head, weight=head.weight.to(device), bias=None if head.bias is None else head.bias.to(device))
