"""Speculative decoding for real, by transformers' assisted generation: what is accepted, how long it takes, and whether the
text is the one that the verifier writes alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from hubdistill.errors import TrainingError
from hubdistill.evaluation.acceptance import finished
from hubdistill.pairs.sampling import neutral_generation

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hubdistill.evaluation.heldout import HeldOut

# How far apart two logits may be, as a share of their size, to count as equal: a pass over k + 1 tokens rounds in another
# order than k + 1 passes over one.
TIE = {torch.float32: 1e-4, torch.float64: 1e-9}
TIE_OF_16_BITS = 0.02


@dataclass(frozen=True)
class Decoded:
    """`steps`: tokens that each pass of the verifier gave, in order; with a drafter the accepted ones and one of its own."""

    ids: tuple[int, ...]
    steps: tuple[int, ...]
    seconds: float


class _Steps(BaseStreamer):
    """Counts what arrives together: the prompt first, then the tokens of each pass."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        self.sizes.append(value.numel())

    def end(self) -> None:
        pass


@dataclass(frozen=True)
class Decoder:
    """Greedy decoding of one prompt at a time, at most `longest` tokens."""

    verifier: PreTrainedModel
    longest: int
    stop_ids: tuple[int, ...]

    def decode(self, prompt: Sequence[int], drafter: PreTrainedModel | None = None, drafted: int = 0) -> Decoded:
        """Alone, or with `drafted` tokens of a drafter before each pass."""
        ids = torch.tensor([list(prompt)], device=self.verifier.device)
        config = GenerationConfig(do_sample=False, max_new_tokens=self.longest, eos_token_id=list(self.stop_ids), pad_token_id=self.stop_ids[0])
        assistant: dict[str, Any] = {}
        if drafter is not None:
            # Neither longer drafts after success nor a stop where the drafter is unsure: what is measured is `drafted` tokens.
            draft = GenerationConfig(num_assistant_tokens=drafted, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.0)
            inner: Any = drafter
            inner.generation_config = draft
            assistant = {"assistant_model": drafter}
        seen = _Steps()
        with neutral_generation(self.verifier, config) as verifier, torch.inference_mode():
            finished(self.verifier.device)
            start = time.perf_counter()
            output = verifier.generate(ids, attention_mask=torch.ones_like(ids), streamer=seen, **assistant)
            finished(self.verifier.device)
            seconds = time.perf_counter() - start
        return Decoded(tuple(output[0, len(prompt) :].tolist()), tuple(seen.sizes[1:]), seconds)

    def require_same(self, prompt: Sequence[int], alone: Sequence[int], assisted: Sequence[int], prompt_id: str) -> bool:
        """Whether both texts are equal. Raises TrainingError where they differ by more than a rounding of the logits."""
        if tuple(alone) == tuple(assisted):
            return True
        first = next((i for i, (a, b) in enumerate(zip(alone, assisted, strict=False)) if a != b), None)
        if first is None or not self._tie([*prompt, *alone[:first]], alone[first], assisted[first]):
            raise TrainingError(
                f"decoding with the drafter gave another text than without it, on prompt {prompt_id}: a drafter must change the speed alone. "
                "Compare the versions of transformers in run.json; without `kind: acceptance` under `evaluate` the run goes on"
            )
        return False

    @torch.inference_mode()
    def _tie(self, ids: Sequence[int], one: int, other: int) -> bool:
        logits = self.verifier(torch.tensor([list(ids)], device=self.verifier.device), logits_to_keep=1).logits[0, -1].float()
        apart, size = (logits[one] - logits[other]).abs(), logits.abs().max()
        return bool(apart <= TIE.get(self.verifier.dtype, TIE_OF_16_BITS) * size)


def merged(model: Any) -> PreTrainedModel:
    """The drafter as an engine runs it: its adapter merged into its weights."""
    result: PreTrainedModel = model.merge_and_unload(safe_merge=True) if hasattr(model, "merge_and_unload") else model
    return result.eval()


def draft(heldout: HeldOut, drafted: int, timed: int) -> None:
    """Decode held-out prompts with every subject as drafter and without, and keep what was found (see `found_of`)."""
    decoder = Decoder(heldout.scorer.teacher, heldout.longest, heldout.stop_ids)
    rows = list(heldout.teacher_responses.rows())[:timed]
    if rows:
        decoder.decode(rows[0].prompt_ids)  # the first call sets things up
    on = f"greedy decoding, {drafted} drafted"
    for subject in heldout.subjects:
        with subject.opened() as model:
            drafter = merged(model)
            decoder.decode(rows[0].prompt_ids, drafter, drafted)
            found: dict[str, dict[str, float]] = {}
            for turn, row in enumerate(rows):
                for metric, value in _compare(decoder, row, drafter, drafted, turn % 2 == 0).items():
                    found.setdefault(metric, {})[row.prompt_id] = value
        for metric, values in found.items():
            heldout.keep(subject.name, metric, on, values)


def _compare(decoder: Decoder, row: Any, drafter: PreTrainedModel, drafted: int, alone_first: bool) -> dict[str, float]:
    """One prompt both ways, one right after the other; who goes first takes turns."""
    decoded = {}
    for way in (False, True) if alone_first else (True, False):
        decoded[way] = decoder.decode(row.prompt_ids, drafter, drafted) if way else decoder.decode(row.prompt_ids)
    same = decoder.require_same(row.prompt_ids, decoded[False].ids, decoded[True].ids, row.prompt_id)
    return found_of(decoded[False], decoded[True], drafted) | {"same_text": float(same)}


def found_of(alone: Decoded, assisted: Decoded, drafted: int) -> dict[str, float]:
    """speed_up: seconds a token alone / with the drafter (where logits tie, texts may be of unequal length). accepted_length:
    tokens a pass of the verifier. accepted_I: share of the drafts whose first I tokens were all accepted, which is vLLM's
    acceptance by position, of one prompt; a last draft that the length limit cut short is left out."""
    room, drafts = sum(assisted.steps), list[int]()
    for step in assisted.steps:
        if room > drafted:
            drafts.append(step - 1)
        room -= step
    found = {"speed_up": alone.seconds / len(alone.ids) / (assisted.seconds / len(assisted.ids)), "accepted_length": len(assisted.ids) / len(assisted.steps)}
    return found | {f"accepted_{i}": sum(accepted >= i for accepted in drafts) / len(drafts) for i in range(1, drafted + 1) if drafts}
