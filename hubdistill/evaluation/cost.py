"""What a model costs to use: the memory of its weights, and the time of a decoded token."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from hubdistill.evaluation.heldout import HeldOut
from hubdistill.evaluation.statistics import Measurement, paired_difference, summarise
from hubdistill.pairs.sampling import neutral_generation

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LATENCY, MEMORY = "latency", "memory"
PROMPTS, TOKENS = 8, 16  # held-out prompts that are timed, and tokens that are decoded for each


class Clock(BaseStreamer):
    """Notes when `generate` hands over the prompt and then each token; it copies them to the CPU, and so waits for the device."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def decode_seconds(model: PreTrainedModel, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[float]:
    """Seconds of a greedily decoded token, one value a prompt: one prompt at a time, with the KV cache, without the time
    that reading the prompt takes. An end token ends nothing, so that all decode the same number. A call before is not counted."""
    _seconds(model, prompts[0], new_tokens)
    return [_seconds(model, prompt, new_tokens) for prompt in prompts]


def decode_seconds_in_turn(models: Sequence[PreTrainedModel], prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[float]]:
    """`decode_seconds` of several models, each prompt by one after the other, so that what else the machine does meets all."""
    for model in models:
        _seconds(model, prompts[0], new_tokens)
    by_prompt = [[_seconds(model, prompt, new_tokens) for model in models] for prompt in prompts]
    return [list(one) for one in zip(*by_prompt, strict=True)]


@torch.inference_mode()
def _seconds(model: PreTrainedModel, prompt: Sequence[int], new_tokens: int) -> float:
    ids = torch.tensor([list(prompt)], device=model.device)
    # The first token comes with the prompt's own pass, so one more than are timed. No end token: nothing stops earlier.
    config = GenerationConfig(max_new_tokens=new_tokens + 1, do_sample=False, use_cache=True, eos_token_id=None, pad_token_id=0)
    clock = Clock()
    with neutral_generation(model, config) as inner:
        inner.generate(input_ids=ids, attention_mask=torch.ones_like(ids), streamer=clock)
    _, first, *rest = clock.times
    return (rest[-1] - first) / len(rest)


def weight_bytes(model: torch.nn.Module) -> int:
    """Bytes of all parameters and buffers, the scales of 4-bit weights among them; what is tied counts once."""
    tensors = {tensor.data_ptr(): tensor.nbytes for owner in (*model.parameters(), *model.buffers()) for tensor in _stored(owner)}
    return sum(tensors.values())


def _stored(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """A tensor, and what bitsandbytes keeps beside it, which is neither parameter nor buffer."""
    yield tensor
    state = getattr(tensor, "quant_state", None)
    while state is not None:
        yield from (value for value in vars(state).values() if isinstance(value, torch.Tensor))
        state = getattr(state, "state2", None)  # double quantisation: the scales of the scales


@dataclass
class Costs:
    """Called with each model that is measured, while it is loaded. A student is timed in turn with the teacher, which stays loaded."""

    heldout: HeldOut
    held: dict[str, tuple[str, int]] = field(default_factory=dict)  # subject -> device, bytes of weights
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)  # subject -> prompt id -> seconds
    beside: dict[str, dict[str, float]] = field(default_factory=dict)  # the teacher's, in turn with that subject

    def __call__(self, subject: str, model: PreTrainedModel) -> None:
        self.held[subject] = (model.device.type, weight_bytes(model))
        rows = list(self.heldout.teacher_responses.rows())[:PROMPTS]
        if subject == "teacher" or not rows:
            return
        found = decode_seconds_in_turn((model, self.heldout.scorer.teacher), [row.prompt_ids for row in rows], TOKENS)
        self.seconds[subject], self.beside[subject] = (dict(zip([row.prompt_id for row in rows], one, strict=True)) for one in found)

    def measurements(self) -> list[Measurement]:
        """A row for each model of its time, then of its memory."""
        timed = [self._time("teacher", self._teacher())] if self.beside else []
        timed += [self._time(subject, values, self.beside[subject]) for subject, values in self.seconds.items()]
        return [*timed, *(self._memory(subject, *found) for subject, found in self.held.items())]

    def _teacher(self) -> dict[str, float]:
        """Its mean over its turns."""
        turns = list(self.beside.values())
        return {key: sum(turn[key] for turn in turns) / len(turns) for key in turns[0]}

    def _time(self, subject: str, values: Mapping[str, float], teacher: Mapping[str, float] | None = None) -> Measurement:
        slower = () if teacher is None else (paired_difference(_ms(values), _ms(teacher), "teacher", self.heldout.seed),)
        return summarise(_ms(values), metric=LATENCY, subject=subject, on=f"{self.held[subject][0]}, one prompt at a time", unit="ms/token", better="lower",
                         split="held-out", decoding="greedy", seed=self.heldout.seed, differences=slower)  # fmt: skip

    def _memory(self, subject: str, device: str, size: int) -> Measurement:
        """Counted and not estimated: of no prompts, and without an interval."""
        mebibytes = size / 2**20
        return Measurement(metric=MEMORY, subject=subject, on=device, value=mebibytes, low=mebibytes, high=mebibytes, n=0, unit="MiB", better="lower", split="")


def _ms(values: Mapping[str, float]) -> dict[str, float]:
    return {key: 1000 * value for key, value in values.items()}
