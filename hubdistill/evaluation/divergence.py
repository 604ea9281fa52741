"""How far a model is from the teacher on given responses, token by token over the whole vocabulary.

Computed with the readable divergences, not with the training loss: what a card says does not rest on what it judges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from hubdistill.evaluation.budget import KEPT_BYTES, ROWS, TILE_BYTES
from hubdistill.losses.divergences import kl, skl, srkl, tv
from hubdistill.losses.head import Head, Projector
from hubdistill.modalities.base import Batch, Reading, Row
from hubdistill.models.load import head_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hubdistill.pairs.store import Response

METRICS = ("kl", "skl", "srkl", "nll", "agreement", "acceptance")
ALPHA = 0.1  # the skew of the reported skl and srkl, whatever the recipe trains with, so that cards compare


@dataclass(frozen=True)
class Scorer:
    """Measures models against one teacher. `row_of` finds what each model reads before a response."""

    teacher: PreTrainedModel
    reading: Reading
    vocab: int
    row_of: Callable[[Response], Row] = field(default=lambda response: Row(response.prompt_ids, response.response_ids))
    read: dict[tuple[Response, ...], torch.Tensor] = field(default_factory=dict, init=False, repr=False)  # the teacher's states of batches that come again, in main memory

    def score(self, model: PreTrainedModel, responses: Sequence[Response], progress: Callable[[int], None] | None = None, *, again: bool = False) -> dict[str, dict[str, float]]:
        """Per-prompt means over response tokens: metric -> prompt id -> value.

        kl, skl, srkl in nats a token (method.md; alpha 0.1), nll of the response under the model, and agreement: the
        share of tokens where both models have the same most likely next token. acceptance: sum min(p, q), the probability
        that a token drafted by the model is accepted by the teacher (Leviathan et al. 2023, corollary 3.6).
        `again`: the same responses come again with another model, so the teacher reads them once, within KEPT_BYTES.
        """
        return self._means(partial(self._divergences, model, again=again), METRICS, responses, progress)

    def nll(self, model: PreTrainedModel, responses: Sequence[Response], *, again: bool = False) -> dict[str, float]:
        """The nll of `score` alone: the teacher reads nothing for another model. `again`, of the teacher: as in `score`."""
        return self._means(partial(self._nll, model, again=again), ("nll",), responses)["nll"]

    @torch.inference_mode()
    def _means(self, measure: Callable[[Sequence[Response], Batch], dict[str, torch.Tensor]], metrics: Sequence[str], responses: Sequence[Response],
               progress: Callable[[int], None] | None = None) -> dict[str, dict[str, float]]:  # fmt: skip
        found: dict[str, dict[str, float]] = {name: {} for name in metrics}
        usable = [response for response in responses if response.response_ids]
        ordered = sorted(usable, key=lambda response: -len(response.prompt_ids) - len(response.response_ids))
        for start in range(0, len(ordered), ROWS):
            rows = ordered[start : start + ROWS]
            batch = self.reading.collate([self.row_of(row) for row in rows])
            lengths = batch.lengths_B.tolist()
            for metric, values_N in measure(rows, batch).items():
                means = [part.double().mean().item() for part in values_N.cpu().split(lengths)]
                found[metric].update(zip((row.prompt_id for row in rows), means, strict=True))
            if progress:
                progress(len(rows))
        return found

    def _divergences(self, model: PreTrainedModel, rows: Sequence[Response], batch: Batch, *, again: bool) -> dict[str, torch.Tensor]:
        teacher_ND = self._teacher_states(tuple(rows), batch, again=again).to(model.device)
        student_ND = teacher_ND if model is self.teacher else self._states(model, batch)
        teacher_head, student_head = (_head_on(each, model.device).first(self.vocab) for each in (self.teacher, model))
        return token_metrics(teacher_ND, student_ND, teacher_head, student_head, batch.labels_N.to(model.device))

    def _nll(self, model: PreTrainedModel, rows: Sequence[Response], batch: Batch, *, again: bool) -> dict[str, torch.Tensor]:
        head = _head_on(model, model.device).first(self.vocab)
        states_ND = self._teacher_states(tuple(rows), batch, again=again) if model is self.teacher else self._states(model, batch)
        return {"nll": token_nll(states_ND.to(model.device), head, batch.labels_N.to(model.device))}

    def _teacher_states(self, rows: tuple[Response, ...], batch: Batch, *, again: bool) -> torch.Tensor:
        if rows in self.read:
            return self.read[rows]
        states_ND = self._states(self.teacher, batch)
        if again and states_ND.nbytes + sum(kept.nbytes for kept in self.read.values()) <= KEPT_BYTES:
            self.read[rows] = states_ND.cpu()
        return states_ND

    def _states(self, model: PreTrainedModel, batch: Batch) -> torch.Tensor:
        """Hidden states (N, D) that predict the responses' tokens."""
        if model is self.teacher:
            return self.reading.hidden(model, batch.teacher, batch.teacher_rows_N, batch.teacher_columns_N)
        return self.reading.hidden(model, batch.student, batch.student_rows_N, batch.student_columns_N)


def token_metrics(teacher_ND: torch.Tensor, student_ND: torch.Tensor, teacher_head: Head, student_head: Head, labels_N: torch.Tensor) -> dict[str, torch.Tensor]:
    """Each metric of `Scorer.score` for each of N tokens, from the hidden states that predict them, in tiles of tokens.

    The heads have equally many ids.
    """
    projectors = (Projector(teacher_head, teacher_ND), Projector(student_head, student_ND))
    tiles = []
    for rows in _tiles(labels_N, student_head):
        p, q = (_log_probabilities(projector, states[rows]) for projector, states in zip(projectors, (teacher_ND, student_ND), strict=True))
        agreement = (p.argmax(-1) == q.argmax(-1)).float()
        tiles.append({"kl": kl(p, q), "skl": skl(p, q, ALPHA), "srkl": srkl(p, q, ALPHA), "nll": _of_labels(q, labels_N[rows]), "agreement": agreement, "acceptance": 1 - tv(p, q)})
    return {metric: torch.cat([tile[metric] for tile in tiles]) for metric in METRICS}


def token_nll(states_ND: torch.Tensor, head: Head, labels_N: torch.Tensor) -> torch.Tensor:
    """The nll of `token_metrics` alone, (N,)."""
    projector = Projector(head, states_ND)
    return torch.cat([_of_labels(_log_probabilities(projector, states_ND[rows]), labels_N[rows]) for rows in _tiles(labels_N, head)])


def _tiles(labels_N: torch.Tensor, head: Head) -> tuple[torch.Tensor, ...]:
    """Numbers of the tokens whose log-probabilities are in memory together."""
    return torch.arange(len(labels_N), device=labels_N.device).split(max(1, TILE_BYTES // (4 * len(head.weight))))


def _log_probabilities(projector: Projector, states_ND: torch.Tensor) -> torch.Tensor:
    return projector.logits(states_ND, torch.empty(len(states_ND), len(projector.weight), device=states_ND.device)).log_softmax(-1)


def _of_labels(logp_NV: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    return -logp_NV.gather(-1, labels_N[:, None]).squeeze(-1)


def _base(model: Any) -> PreTrainedModel:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _head_on(model: PreTrainedModel, device: torch.device) -> Head:
    head = head_of(_base(model))
    return replace(head, weight=head.weight.to(device), bias=None if head.bias is None else head.bias.to(device))
