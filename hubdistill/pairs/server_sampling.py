"""The teacher's responses from an OpenAI-compatible server elsewhere: a `Sampler` that has some requests in flight and keeps answers as they come.

Every prompt is asked with its own seed, as token ids where the server takes them. What a server does with seeds and with
settings that its protocol has no words for (its model's own top_k, say) is the server's matter; vLLM and transformers
serve are told to be neutral.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hubdistill.errors import HubdistillError, SamplingError
from hubdistill.pairs.sampling import Progress
from hubdistill.pairs.server_answers import AnswerReader
from hubdistill.pairs.server_client import ServerClient
from hubdistill.pairs.store import UNUSABLE, Question, Response
from hubdistill.pairs.vllm_settings import BIASES
from hubdistill.specs import SamplingSpec, ServerSpec

BATCH, SECONDS = 256, 5.0  # a batch is written when it has so many responses, or after so long
ENOUGH = 8  # answers after which it is strange that most cannot be used
# How a prompt is put, the best first: as token ids with the words of vLLM and SGLang; as ids; as text with those of transformers serve; as text.
DIALECTS = ("extended ids", "ids", "extended text", "text")


@dataclass
class ServerSampler:
    """`spec` is the recipe's, `model` the name to ask for, `never` the ids that may not be sampled."""

    spec: ServerSpec
    model: str
    reader: AnswerReader
    never: tuple[int, ...] = ()
    progress: Progress | None = None
    engine: str = "server"
    version: str = "/completions"

    def sample(self, questions: Sequence[Question], settings: SamplingSpec, seed_of: Callable[[str], int]) -> Iterator[list[Response]]:
        # The longest first, so that a server whose context is too short says so at once.
        ordered = sorted(questions, key=lambda question: (-len(question.prompt_ids), question.prompt_id))
        client = ServerClient(self.spec, self.model)
        with asyncio.Runner() as runner:
            line = _Line(self, client, settings, seed_of, ordered)
            try:
                runner.run(line.open())
                while batch := runner.run(line.batch()):
                    yield self._told(batch)
            finally:
                runner.run(line.close())

    def _told(self, batch: list[Response]) -> list[Response]:
        if self.progress:
            self.progress(len(batch), sum(len(response.response_ids) for response in batch))
        return batch

    def body(self, dialect: str, question: Question, settings: SamplingSpec, seed: int) -> dict[str, Any] | None:
        """A request for one response; None where the prompt cannot be put so."""
        prompt = list(question.prompt_ids) if "ids" in dialect else self.reader.prompt_text(question.prompt_ids)
        if prompt is None:
            return None
        top_p = settings.top_p if settings.temperature else 1.0
        drawn = {"max_tokens": settings.max_tokens, "temperature": settings.temperature, "top_p": top_p}
        asked = drawn | {"prompt": prompt, "seed": seed if dialect == DIALECTS[0] else seed % 2**31, "presence_penalty": 0.0, "frequency_penalty": 0.0}
        if dialect == "extended ids":
            bias = {str(i): -100.0 for i in self.never} if len(self.never) <= BIASES else {}
            return asked | {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "stop_token_ids": list(self.reader.stop_ids), "return_token_ids": True,
                            "skip_special_tokens": False, "spaces_between_special_tokens": False, **({"logit_bias": bias} if bias else {})}  # fmt: skip
        if dialect == "extended text":
            config = {"do_sample": settings.temperature > 0, "temperature": settings.temperature or 1.0, "top_p": top_p, "top_k": 0, "max_new_tokens": settings.max_tokens, "eos_token_id": list(self.reader.stop_ids)}
            return asked | {"generation_config": json.dumps(config)}
        return asked


@dataclass
class _Line:
    """Questions that wait for their answers. `batch` gives those that came; a problem comes after them."""

    sampler: ServerSampler
    client: ServerClient
    settings: SamplingSpec
    seed_of: Callable[[str], int]
    questions: list[Question]
    dialect: str = DIALECTS[0]
    answers: asyncio.Queue[Response | HubdistillError] = field(default_factory=asyncio.Queue)
    workers: list[asyncio.Task[None]] = field(default_factory=list)
    problem: HubdistillError | None = None
    came: int = 0
    unusable: int = 0

    async def open(self) -> None:
        """Ask the first question, in the first dialect that is understood, then the others, some at a time."""
        await self.client.check_model()
        self.answers.put_nowait(await self._first(self.questions[0]))
        rest = iter(self.questions[1:])
        self.workers = [asyncio.create_task(self._work(rest)) for _ in range(self.sampler.spec.concurrency)]

    async def close(self) -> None:
        for worker in self.workers:
            worker.cancel()
        await asyncio.gather(*self.workers, return_exceptions=True)
        await self.client.close()

    async def batch(self) -> list[Response]:
        """The next responses; none when all were given. Raises the first problem, after what was answered before it."""
        found: list[Response] = []
        while not found and self.came < len(self.questions):
            if self.problem and self.answers.empty():
                raise self.problem
            try:
                async with asyncio.timeout(SECONDS):
                    while len(found) < BATCH and self.came < len(self.questions) and not (self.problem and self.answers.empty()):
                        self._take(await self.answers.get(), found)
            except TimeoutError:
                pass
        self._check_usable()
        return found

    def _take(self, answer: Response | HubdistillError, found: list[Response]) -> None:
        if isinstance(answer, HubdistillError):
            self.problem = self.problem or answer
            return
        found.append(answer)
        self.came += 1
        self.unusable += answer.finish_reason == UNUSABLE

    def _check_usable(self) -> None:
        if self.unusable * 2 > self.came and self.came >= min(ENOUGH, len(self.questions)):
            raise SamplingError(f"{self.unusable} of the first {self.came} answers of {self.sampler.spec.host} cannot be used: their text is not what the teacher's tokenizer makes of their tokens, "
                                "or they hold tokens that the student lacks; correct sampling.server.model, or serve the teacher with vLLM, which gives token ids")  # fmt: skip

    async def _work(self, questions: Iterator[Question]) -> None:
        for question in questions:
            try:
                answer, why = await self.client.complete(self._body(self.dialect, question))
                if answer is None:
                    raise self._refused(question, why)
                self.answers.put_nowait(self._response(question, answer))
            except HubdistillError as problem:
                self.answers.put_nowait(problem)
                return

    async def _first(self, question: Question) -> Response:
        why = "it takes no token ids, and the prompt has no text that is read as the same ones"
        for dialect in DIALECTS:
            body = self.sampler.body(dialect, question, self.settings, self.seed_of(question.prompt_id))
            if body is None:
                continue
            answer, why = await self.client.complete(body)
            if answer is not None:
                self.dialect = dialect
                return self._response(question, answer)
        raise self._refused(question, why)

    def _body(self, dialect: str, question: Question) -> dict[str, Any]:
        body = self.sampler.body(dialect, question, self.settings, self.seed_of(question.prompt_id))
        if body is None:
            raise self._refused(question, "it takes no token ids, and the prompt has no text that is read as the same ones")
        return body

    def _refused(self, question: Question, why: str) -> SamplingError:
        return SamplingError(f"{self.sampler.spec.host} does not answer prompt {question.prompt_id} of {len(question.prompt_ids)} tokens: {why}; look at the server, "
                             "or lower prompts.max_tokens and sampling.max_tokens where its context is too short")  # fmt: skip

    def _response(self, question: Question, answer: Any) -> Response:
        return self.sampler.reader.response(question, self.seed_of(question.prompt_id), answer, self.settings.max_tokens)
