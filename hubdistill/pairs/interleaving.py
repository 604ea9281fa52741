"""Responses that student and teacher write together: the student proposes each token, the teacher keeps it or puts its own.

Interleaved sampling of Speculative KD (Xu et al. 2024, arXiv 2410.11325, algorithm 1), and y_spec of DistiLLM-2 (Figure 2),
whose teacher accepts as Medusa's does (Cai et al. 2024, arXiv 2401.10774). Both models go one token a step, each with keys and
values of its own: nothing has to be taken back after a token that is not kept, and the text is the one that the rule says,
not a faster one.

Legend: B rows, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from hubdistill.errors import InputError
from hubdistill.losses.contrastive import LossPreset
from hubdistill.pairs.choice import Choice, only, uniform
from hubdistill.pairs.padding import padded
from hubdistill.pairs.sampling import TransformersSampler
from hubdistill.pairs.store import Question, Response
from hubdistill.specs import SamplingSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Acceptance:
    """Which of the student's tokens the teacher keeps.

    top_k: those among its own `top_k` most likely (SKD). typical: those with p(y) > min(epsilon^2, epsilon exp(-H(p))), H the
    entropy: less has to be said of a token where the teacher itself is unsure. (DistiLLM-2 prints the student's probability on
    the left; Medusa, which it cites, has the verifier's, and so has this.) mixed: any, with probability 1 - `teacher_share`, so that
    tokens are drawn from teacher_share p + (1 - teacher_share) q (MiniLLM, Gu et al. 2024, arXiv 2306.08543).
    """

    rule: str
    top_k: int
    epsilon: float
    teacher_share: float

    @classmethod
    def of(cls, preset: LossPreset) -> Acceptance:
        return cls(preset.acceptance, preset.top_k, preset.epsilon, preset.teacher_share)

    def __call__(self, scores_BV: Tensor, proposed_B1: Tensor, coins_B1: Tensor) -> Tensor:
        """Bool (B, 1), from the teacher's scores at the sampling temperature (-inf for ids that are not to be sampled) and numbers in [0, 1)."""
        if self.rule == "mixed":
            return coins_B1 >= self.teacher_share
        if self.rule == "top_k":
            return (scores_BV > scores_BV.gather(-1, proposed_B1)).sum(-1, keepdim=True) < self.top_k
        logp_BV = scores_BV.float().log_softmax(-1)
        entropy_B1 = torch.special.entr(logp_BV.exp()).sum(-1, keepdim=True)
        log_epsilon = torch.tensor(self.epsilon, device=scores_BV.device).log()  # -inf at 0, where all is kept
        return logp_BV.gather(-1, proposed_B1) > torch.minimum(2 * log_epsilon, log_epsilon - entropy_B1)


class Companion:
    """A model that reads a batch beside the one that writes it, left-padded, with keys and values of its own."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad_id: int):
        self.model = model
        self.mask_BL = padded(prompts, pad_id, "left")[1].to(model.device)
        self.cache: Any = None
        self.read = 0
        self._positions = "position_ids" in inspect.signature(model.forward).parameters

    def scores(self, ids_BL: Tensor) -> Tensor:
        """Logits (B, V) of the next token, float32, after `ids_BL`: what was given before, and what came since."""
        new_BL = ids_BL[:, self.read :].to(self.model.device)
        grown = ids_BL.shape[1] - self.mask_BL.shape[1]
        self.mask_BL = torch.cat([self.mask_BL, self.mask_BL.new_ones(len(ids_BL), grown)], -1)
        positions = {"position_ids": (self.mask_BL.cumsum(-1) - 1).clamp(min=0)[:, self.read :]} if self._positions else {}
        output = self.model(input_ids=new_BL, attention_mask=self.mask_BL, past_key_values=self.cache, use_cache=True, logits_to_keep=1, return_dict=True, **positions)
        self.cache, self.read = getattr(output, "past_key_values", None), ids_BL.shape[1]
        if self.cache is None:
            raise InputError(f"{type(self.model).__name__} keeps no keys and values, and cannot write responses together with the student; choose a loss without interleaved responses")
        return output.logits[:, -1].float()


class Interleaving(LogitsProcessor):
    """The student's choice `own` where the teacher keeps it, else the teacher's choice `its`. `steps` says of each step which rows (B,) kept the student's."""

    def __init__(self, own: Choice, its: Choice, teacher: Companion, allowed: Sequence[LogitsProcessor], acceptance: Acceptance, coins_BT: Tensor):
        self.own, self.its, self.teacher, self.allowed, self.acceptance, self.coins_BT = own, its, teacher, LogitsProcessorList(allowed), acceptance, coins_BT
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores_BV = self.allowed(input_ids, self.teacher.scores(input_ids))  # type: ignore[arg-type]
        proposed_B1 = self.own.choose(scores).to(scores_BV.device)
        kept_B1 = self.acceptance(scores_BV, proposed_B1, self.coins_BT[:, len(self.steps), None])
        self.steps.append(kept_B1.squeeze(-1))
        return only(scores, torch.where(kept_B1, proposed_B1, self.its.choose(scores_BV)).to(scores.device))


@dataclass(kw_only=True)
class InterleavedSampler(TransformersSampler):
    """`model` is the student, and draws with the seeds that `sample` is given; the teacher draws with those of `seeds_of("teacher")`.
    So a response of which everything is kept is the one that the student gives alone, and one of which nothing is, the teacher's.

    At temperature 0 both choose their most likely token, and the teacher accepts by its scores at temperature 1. `kept` of
    the `said` tokens so far are the student's.
    """

    teacher: PreTrainedModel
    acceptance: Acceptance
    seeds_of: Callable[[str], Callable[[str], int]]
    said: int = 0
    kept: int = 0

    def _answer(self, batch: list[Question], settings: SamplingSpec, seeds: list[int]) -> list[Response]:
        responses = super()._answer(batch, settings, seeds)
        for row, response in zip(torch.stack(self._interleaving.steps, -1).tolist(), responses, strict=True):
            self.said += len(response.response_ids)
            self.kept += sum(row[: len(response.response_ids)])
        return responses

    def _processors(self, batch: Sequence[Question], settings: SamplingSpec, seeds: Sequence[int]) -> LogitsProcessorList:
        its_seeds, coins = ([self.seeds_of(what)(question.prompt_id) for question in batch] for what in ("teacher", "acceptance"))
        own, its = self._choice(settings, seeds, self.model.device), self._choice(settings, its_seeds, self.teacher.device)
        beside = Companion(self.teacher, [question.prompt_ids for question in batch], self.pad_id)
        flipped = uniform(coins, settings.max_tokens).to(self.teacher.device, torch.float32)  # MPS has no float64
        self._interleaving = Interleaving(own, its, beside, self._allowed(settings), self.acceptance, flipped)
        return LogitsProcessorList([*self._allowed(settings), self._interleaving])
