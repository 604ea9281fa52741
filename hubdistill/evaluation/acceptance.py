"""What speculative decoding can gain: the speed-up that an acceptance would give on times that were measured here.

Leviathan et al. 2023, arXiv 2211.17192: a drafter proposes k tokens, one pass of the verifier keeps the first of them and
adds a token of its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

LONGEST = 8  # tokens drafted before a verification, at most
REPEATS = 5  # of each pass that is timed; the median counts
NEARLY_ONE = 0.9999


@dataclass(frozen=True)
class Costs:
    """Seconds of one forward pass after a prompt, batch of one: the drafter's for a token, the verifier's for 1, 2, ... LONGEST + 1 tokens."""

    draft: float
    verify: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """The drafter's step as a share of the verifier's."""
        return self.draft / self.verify[0]

    def speed_up(self, acceptance: float, drafted: int) -> float:
        """Over plain decoding, where every drafted token is accepted with that probability: their theorem 3.8, with what
        it costs to verify k + 1 tokens as it was measured (they take it to be what one token costs)."""
        return tokens_a_step(acceptance, drafted) * self.verify[0] / (drafted * self.draft + self.verify[drafted])

    def best(self, acceptance: float) -> int:
        """How many tokens to draft at that acceptance."""
        return max(range(1, LONGEST + 1), key=lambda drafted: self.speed_up(acceptance, drafted))

    def break_even(self) -> tuple[float, int] | None:
        """The least acceptance that pays, and how many tokens are drafted there; None where even all accepted would not."""
        found = [(lowest, drafted) for drafted in range(1, LONGEST + 1) if (lowest := self._lowest(drafted)) is not None]
        return min(found, default=None)

    def _lowest(self, drafted: int) -> float | None:
        low, high = 0.0, NEARLY_ONE
        if self.speed_up(high, drafted) <= 1:
            return None
        for _ in range(40):  # the speed-up rises with the acceptance
            middle = (low + high) / 2
            low, high = (middle, high) if self.speed_up(middle, drafted) <= 1 else (low, middle)
        return high


def tokens_a_step(acceptance: float, drafted: int) -> float:
    """Expected tokens of one verification, its own included: 1 + a + ... + a^k (their eq. 1)."""
    return sum(acceptance**i for i in range(drafted + 1))


def measure_costs(verifier: PreTrainedModel, drafter: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> Costs:
    """Medians over prompts and repeats; the passes of both models take turns, so that a busy machine slows both."""
    times: dict[tuple[str, int], list[float]] = {}
    passes = [("draft", drafter, 1), *(("verify", verifier, new) for new in range(1, LONGEST + 2))]
    for prompt in prompts:
        steps = [(name, new, _Step(model, prompt, new)) for name, model, new in passes]
        for _ in range(REPEATS):
            for name, new, step in steps:
                times.setdefault((name, new), []).append(step.seconds())
    middle = {key: median(values) for key, values in times.items()}
    return Costs(middle["draft", 1], tuple(middle["verify", new] for new in range(1, LONGEST + 2)))


class _Step:
    """A forward pass over the last `new` tokens of a prompt, with all before them in the KV cache."""

    def __init__(self, model: PreTrainedModel, prompt: Sequence[int], new: int):
        import torch

        self.model, self.new = model, new
        ids = torch.tensor([list(prompt) + [prompt[-1]] * new], device=model.device)
        self.tokens = ids[:, len(prompt) :]
        with torch.inference_mode():
            self.cache: Any = model(ids[:, : len(prompt)], use_cache=True, logits_to_keep=1).past_key_values
        self.cache.activate_past_recording()  # else a layer with a sliding window forgets what `crop` has to bring back
        self.seconds()  # the first pass sets things up

    def seconds(self) -> float:
        import torch

        with torch.inference_mode():
            start = time.perf_counter()
            self.model(input_ids=self.tokens, past_key_values=self.cache, use_cache=True)
            finished(self.model.device)
            seconds = time.perf_counter() - start
        self.cache.crop(-self.new)
        return seconds


def finished(device: torch.device) -> None:
    """Wait for an accelerator, so that a clock says what the work took."""
    import torch

    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def outlook(costs: Costs, acceptance: float, prompts: int) -> str:
    """What can be known before training, in a sentence."""
    known = (
        f"a step of the drafter takes {costs.ratio:.2f} of the verifier's, verifying {LONGEST} drafted tokens {costs.verify[LONGEST] / costs.verify[0]:.2f} of one token; "
        f"expected acceptance is {acceptance:.3f} before training ({prompts} prompts)"
    )
    pays = costs.break_even()
    if pays is None:
        return f"{known}; drafting cannot pay: it would be slower than plain decoding even if every draft was accepted"
    lowest, drafted = pays
    at_best = costs.best(acceptance)
    return f"{known}; drafting pays from an acceptance of {lowest:.3f} on ({drafted} drafted); now it would be {costs.speed_up(acceptance, at_best):.2f} times plain decoding at best ({at_best} drafted)"
