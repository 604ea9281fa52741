"""How far a model is from the teacher on given responses, token by token over the whole vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from hubdistill.losses.chunked import Head, Responses, chunked_divergence
from hubdistill.models.load import head_of
from hubdistill.modalities.base import Modality, Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hubdistill.pairs.store import Response

ALPHA = 0.1  # the skew of the reported skl and srkl, whatever the recipe trains with, so that cards compare
ROWS = 8  # responses in one forward pass


@dataclass(frozen=True)
class Scorer:
    """Measures models against one teacher."""

    teacher: PreTrainedModel
    modality: Modality
    vocab: int
    pad_id: int

    def score(self, model: PreTrainedModel, responses: Sequence[Response], progress: Callable[[int], None] | None = None) -> dict[str, dict[str, float]]:
        """Per-prompt means over response tokens: metric -> prompt id -> value.

        kl, skl, srkl in nats a token (method.md; alpha 0.1), nll of the response under the model, and agreement: the
        share of tokens where both models have the same most likely next token.
        """
        found: dict[str, dict[str, float]] = {name: {} for name in ("kl", "skl", "srkl", "nll", "agreement")}
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
        batch = self.modality.collate([Row(row.prompt_ids, row.response_ids) for row in rows], self.pad_id)
        side = self.modality.hidden
        responses = Responses(
            student_ND=side(model, _on(model, batch.student), batch.student_rows_N, batch.student_columns_N),
            teacher_ND=side(self.teacher, _on(self.teacher, batch.teacher), batch.teacher_rows_N, batch.teacher_columns_N).to(model.device),
            labels_N=batch.labels_N.to(model.device),
            lengths_B=batch.lengths_B,
            from_student_B=batch.from_student_B,
        )
        weights = torch.ones(len(batch.labels_N), device=model.device)
        teacher_head = _head_on(self.teacher, model.device)
        results: dict[str, torch.Tensor] = {}
        for kind in ("kl", "skl", "srkl"):
            _, tokens = chunked_divergence(responses, head_of(_base(model)), teacher_head, weights, ALPHA, vocab=self.vocab, kinds=(kind, kind))
            results[kind] = tokens.divergence_N
        results |= {"nll": -tokens.student_logp_N, "agreement": tokens.agree_N.float()}
        lengths = batch.lengths_B.tolist()
        return {metric: [part.double().mean().item() for part in values.cpu().split(lengths)] for metric, values in results.items()}


def _base(model: Any) -> PreTrainedModel:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _on(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.to(model.device) for name, value in inputs.items()}


def _head_on(model: PreTrainedModel, device: torch.device) -> Head:
    head = head_of(_base(model))
    return replace(head, weight=head.weight.to(device), bias=None if head.bias is None else head.bias.to(device))
