"""Choosing the next token of each row of a batch, reproducibly and without sorting the whole vocabulary.

Legend: B rows, V vocabulary, K candidates of a row, T tokens of the longest response.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

CANDIDATES = (1024, 8192)  # tried in turn; a flatter distribution is sorted whole


class Choice(LogitsProcessor, ABC):
    """Chooses a token of each row; leaves 0 at the chosen id and -inf elsewhere, for a greedy `generate` to take."""

    @abstractmethod
    def choose(self, scores_BV: Tensor) -> Tensor:
        """The next token (B, 1) of each row."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return only(scores, self.choose(scores))


def only(scores_BV: Tensor, chosen_B1: Tensor) -> Tensor:
    """Scores that leave no other choice."""
    return torch.full_like(scores_BV, -torch.inf).scatter_(-1, chosen_B1, 0.0)


class Greedy(Choice):
    """The most likely token of each row."""

    def choose(self, scores_BV: Tensor) -> Tensor:
        return scores_BV.argmax(-1, keepdim=True)


class SeededChoice(Choice):
    """Samples the nucleus of each row.

    Each row has numbers of its own, drawn on the CPU, one a token: the same scores give the same text
    beside other rows, and on another device. `generate(do_sample=True)` draws all rows from one stream. Each number picks its token
    by the inverse of the cumulative probabilities in the order of the ids.
    """

    def __init__(self, seeds: Sequence[int], top_p: float, tokens: int, device: torch.device):
        self.exact = torch.float32 if device.type == "mps" else torch.float64
        # In (0, 1]: zero would choose an id that has no probability.
        self.numbers_BT = (1 - uniform(seeds, tokens)).to(device, self.exact)
        self.top_p = top_p
        self.done = 0

    def choose(self, scores_BV: Tensor) -> Tensor:
        ids_BK, weights_BK = nucleus(scores_BV, self.top_p)
        cumulative_BK = weights_BK.to(self.exact).cumsum(-1)
        wanted_B1 = self.numbers_BT[:, self.done, None] * cumulative_BK[:, -1:]
        self.done += 1
        return ids_BK.gather(-1, torch.searchsorted(cumulative_BK, wanted_B1))


def uniform(seeds: Sequence[int], tokens: int) -> Tensor:
    """Numbers (B, T) in [0, 1), float64, of each row from its own seed; drawn on the CPU."""
    return torch.stack([torch.rand(tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds])


def nucleus(scores_BV: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Ids (B, K) in rising order and their probabilities, zero outside the nucleus.

    The nucleus is the smallest set of most likely ids that holds `top_p` (Holtzman et al. 2020, arXiv 1904.09751).
    """
    scores_BV = scores_BV.float()
    if top_p >= 1:
        return torch.arange(scores_BV.shape[-1], device=scores_BV.device).expand_as(scores_BV), scores_BV.softmax(-1)
    probabilities, ids = _most_likely(scores_BV, top_p)
    before = probabilities.cumsum(-1) - probabilities
    rising = ids.argsort(-1)
    return ids.gather(-1, rising), probabilities.masked_fill(before >= top_p, 0.0).gather(-1, rising)


def _most_likely(scores_BV: Tensor, mass: float) -> tuple[Tensor, Tensor]:
    """Probabilities and ids, the most likely first: enough of them to hold `mass` in every row."""
    log_z = scores_BV.logsumexp(-1, keepdim=True)
    for count in CANDIDATES:
        if count >= scores_BV.shape[-1]:
            break
        best, ids = scores_BV.topk(count, -1)
        probabilities = (best - log_z).exp()
        if bool((probabilities.sum(-1) >= mass).all()):
            return probabilities, ids
    best, ids = scores_BV.sort(-1, descending=True)
    return (best - log_z).exp(), ids
