"""Sampling responses: the protocol every engine follows, and the transformers engine.

The vLLM engine is another `Sampler` with the same promise: the same seed gives the same noise for a prompt, whatever
else is in its batch and however often the run was interrupted. In float32 that is the same text; in 16 bits, where the
rounding of the scores depends on the batch, it is the same text for the same batches, and a rerun forms the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
import transformers
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper

from hubdistill.pairs.choice import Choice, Greedy, SeededChoice
from hubdistill.pairs.padding import padded
from hubdistill.pairs.store import Question, Response
from hubdistill.processes import Processes
from hubdistill.specs import SamplingSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Progress = Callable[[int, int], None]  # responses finished, tokens generated, since the last call


class Sampler(Protocol):
    """An engine: it answers questions and yields finished batches as it goes."""

    engine: str
    version: str

    def sample(self, questions: Sequence[Question], settings: SamplingSpec, seed_of: Callable[[str], int]) -> Iterator[list[Response]]:
        """Yield responses in batches; `seed_of` maps a prompt id to the seed of its noise."""
        ...


def in_batches(questions: Sequence[Question], size: int) -> list[list[Question]]:
    """The batches that questions are answered in: the longest prompts first."""
    # The id breaks ties, so that a batch is the same whatever the order of the rows.
    ordered = sorted(questions, key=lambda question: (-len(question.prompt_ids), question.prompt_id))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def share_of(questions: Sequence[Question], size: int, processes: Processes) -> list[Question]:
    """What one of several processes answers: whole batches, so that each is what it is where one process answers all."""
    batches = in_batches(questions, size)[processes.rank :: processes.size]
    return [question for batch in batches for question in batch]


@dataclass
class TransformersSampler:
    """Batched `generate`: prompts sorted by length, left-padded, per-prompt seeds.

    `stop_ids` end a response; ids at or above `vocab` (which the other model does not have) are never sampled, nor are
    the `forbidden` ones (an image token in a response would ask for an image); `prepare` turns questions into the
    arguments of `generate`, left-padded, on the model's device; `progress` is told what each batch brought. The longest
    prompts come first, so that a lack of memory shows at once.
    """

    model: PreTrainedModel
    stop_ids: tuple[int, ...]
    pad_id: int
    vocab: int
    progress: Progress | None = None
    forbidden: tuple[int, ...] = ()
    prepare: Callable[[Any, Sequence[Question]], dict[str, Any]] | None = None
    engine: str = "transformers"
    version: str = transformers.__version__

    def sample(self, questions: Sequence[Question], settings: SamplingSpec, seed_of: Callable[[str], int]) -> Iterator[list[Response]]:
        for batch in in_batches(questions, settings.batch_size):
            seeds = [seed_of(question.prompt_id) for question in batch]
            yield self._answer(batch, settings, seeds)

    @torch.inference_mode()
    def _answer(self, batch: list[Question], settings: SamplingSpec, seeds: list[int]) -> list[Response]:
        arguments = (self.prepare or self._plain)(self.model, batch)
        width = arguments["input_ids"].shape[1]
        with neutral_generation(self.model, self._config(settings)) as model:
            output = model.generate(**arguments, logits_processor=self._processors(batch, settings, seeds))
        answers = output[:, width:].cpu().tolist()
        responses = [self._response(question, tokens, seed) for question, tokens, seed in zip(batch, answers, seeds, strict=True)]
        if self.progress:
            self.progress(len(responses), sum(len(response.response_ids) for response in responses))
        return responses

    def _plain(self, model: Any, batch: Sequence[Question]) -> dict[str, Any]:
        ids, mask = padded([question.prompt_ids for question in batch], self.pad_id, "left")
        return {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}

    def _processors(self, batch: Sequence[Question], settings: SamplingSpec, seeds: Sequence[int]) -> LogitsProcessorList:
        return LogitsProcessorList([*self._allowed(settings), self._choice(settings, seeds, self.model.device)])

    def _allowed(self, settings: SamplingSpec) -> list[LogitsProcessor]:
        """What makes of a model's logits those that a token is chosen by."""
        warm = settings.temperature not in (0, 1)
        return [SharedVocabulary(self.vocab, self.forbidden), *([TemperatureLogitsWarper(settings.temperature)] if warm else [])]

    def _choice(self, settings: SamplingSpec, seeds: Sequence[int], device: torch.device) -> Choice:
        return SeededChoice(seeds, settings.top_p, settings.max_tokens, device) if settings.temperature > 0 else Greedy()

    def _config(self, settings: SamplingSpec) -> Any:
        return transformers.GenerationConfig(
            max_new_tokens=settings.max_tokens,
            do_sample=False,  # a Choice has chosen
            eos_token_id=list(self.stop_ids),
            pad_token_id=self.pad_id,
            bos_token_id=self.model.generation_config.bos_token_id,
        )

    def _response(self, question: Question, tokens: list[int], seed: int) -> Response:
        end = next((i for i, token in enumerate(tokens) if token in self.stop_ids), None)
        kept = tokens if end is None else tokens[: end + 1]
        return Response(question.prompt_id, question.prompt_ids, tuple(kept), "length" if end is None else "stop", seed)


@contextmanager
def neutral_generation(model: PreTrainedModel, config: transformers.GenerationConfig) -> Iterator[Any]:
    """The model with `config` as its only generation config, for a while.

    `generate` fills every value that is left out from the model's own config (Qwen's repetition_penalty 1.1, say), and
    would then sample another distribution than the one the loss is about.
    """
    inner: Any = model
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    own, inner.generation_config = inner.generation_config, config
    try:
        yield inner
    finally:
        inner.generation_config = own


class SharedVocabulary(LogitsProcessor):
    """Forbids ids at or above `vocab`, where the loss slices both heads, and the `forbidden` ones below it."""

    def __init__(self, vocab: int, forbidden: Sequence[int] = ()):
        self.vocab, self.forbidden = vocab, forbidden

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        out = [*(i for i in self.forbidden if i < self.vocab), *range(self.vocab, scores.shape[-1])]
        return scores.index_fill(-1, torch.tensor(out, device=scores.device), -torch.inf) if out else scores
