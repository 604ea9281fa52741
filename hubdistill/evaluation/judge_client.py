"""Cases -> verdicts, from a judge behind an OpenAI-compatible server: some at once, each kept as it comes, a rerun asks for what is missing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hubdistill.errors import HubdistillError, InputError, SamplingError
from hubdistill.evaluation.verdicts import TRIES, Case, Verdict, Verdicts, letter_of
from hubdistill.pairs.server_client import ServerClient
from hubdistill.specs import JudgeSpec

CHAT = "/chat/completions"
TIMEOUTS = 3  # answers that may not come in time before the server is given up
ENOUGH = 16  # verdicts after which it is strange that none can be read
# Ways to put the limit and the seed: what most servers take; what newer models of OpenAI take; for servers that refuse a seed.
DIALECTS = (("max_tokens", True), ("max_completion_tokens", True), ("max_tokens", False))
Progress = Callable[[int, int], None]  # (verdicts, tokens)


@dataclass
class Spent:
    """What an evaluation took, and holds back for requests that are on their way, against what it may take. Raises InputError before
    more is sent than `spec` allows."""

    spec: JudgeSpec
    requests: int = 0
    dollars: float = 0.0

    def price(self, tokens_in: int, tokens_out: int) -> float:
        """US dollars; 0 where no price is known."""
        return (tokens_in * (self.spec.input_price or 0.0) + tokens_out * (self.spec.output_price or 0.0)) / 1e6

    def add(self, verdict: Verdict) -> None:
        """A verdict that was there before."""
        self.requests += verdict.requests
        self.dollars += self.price(verdict.tokens_in, verdict.tokens_out)

    def hold(self, case: Case) -> float:
        """Take a request, and hold back what it costs at most."""
        spec, most = self.spec, self.price(case.size, case.max_tokens)
        kept = "what was judged is kept: raise it and run the same command again, or lower `count` of the questions"
        if spec.max_requests is not None and self.requests >= spec.max_requests:
            raise InputError(f"{spec.key}.max_requests: {spec.max_requests} requests are used up, and verdicts are still missing; {kept}")
        if spec.max_cost is not None and self.dollars + most > spec.max_cost:
            raise InputError(f"{spec.key}.max_cost: ${self.dollars:.4f} of ${spec.max_cost:g} are spent or on their way, and the next request may cost ${most:.4f}; {kept}")
        self.requests += 1
        self.dollars += most
        return most


@dataclass
class Judge:
    """`spec` is the recipe's; `progress` hears of each verdict."""

    spec: JudgeSpec
    progress: Progress | None = None
    verdicts: Verdicts = field(default_factory=Verdicts)

    def missing(self, cases: Sequence[Case]) -> list[Case]:
        """The cases that have no verdict yet, each once."""
        known = self.verdicts.known(cases)
        return list({case.key: case for case in cases if case.key not in known}.values())

    def judge(self, cases: Sequence[Case]) -> dict[str, Verdict]:
        """Key of each case -> its verdict. Raises SamplingError where the server or what it says cannot be used, InputError where the
        recipe allows no more requests; what was judged until then is kept."""
        known, spent = self.verdicts.known(cases), Spent(self.spec)
        for verdict in known.values():
            spent.add(verdict)
        # The shortest first: what the first one meets is about all, and not about its length.
        missing = sorted(self.missing(cases), key=lambda case: (case.size, case.key))
        self._check_enough(spent.requests, len(missing))
        asking = _Asking(self, spent, dict(known))
        asking.check_readable(len(known) + len(missing))
        if missing:
            asyncio.run(asking.ask(missing))
        return asking.found

    def _check_enough(self, used: int, missing: int) -> None:
        most = self.spec.max_requests
        if missing and most is not None and used + missing > most:
            raise InputError(f"{self.spec.key}.max_requests: {most}, and judging takes at least {used + missing} requests ({used} of them done before); raise it, or lower `count` of the questions")


@dataclass
class _Asking:
    """`found` grows until every case has its verdict, or something stands in the way."""

    owner: Judge
    spent: Spent
    found: dict[str, Verdict]
    problem: HubdistillError | None = None
    dialect: tuple[str, bool] = DIALECTS[0]

    async def ask(self, cases: list[Case]) -> None:
        """The first alone, in the first dialect that is understood; then the others, some at a time."""
        spec = self.owner.spec
        self.client = ServerClient(spec, spec.model, "the judge", TIMEOUTS)
        try:
            await self.client.check_model()
            whole = len(self.found) + len(cases)
            await self._first(cases[0], whole)
            rest = iter(cases[1:])
            await asyncio.gather(*(self._work(rest, whole) for _ in range(min(spec.concurrency, len(cases)))))
        finally:
            await self.client.close()
        if self.problem:
            raise self.problem

    async def _first(self, case: Case, whole: int) -> None:
        why = ""
        for self.dialect in DIALECTS:
            verdict, why = await self._verdict(case)
            if not why:
                self._keep(case, verdict, why)
                self.check_readable(whole)
                return
        spec = self.owner.spec
        raise SamplingError(f"{spec.host} does not answer as a judge: {why}; look at the server, or at {spec.key} (temperature: null sends none)")

    async def _work(self, cases: Iterator[Case], whole: int) -> None:
        # Where one of them meets a problem the others end what they have asked, and ask no more.
        while self.problem is None and (case := next(cases, None)):
            try:
                self._keep(case, *await self._verdict(case))
                self.check_readable(whole)
            except HubdistillError as problem:
                self.problem = self.problem or problem

    def _keep(self, case: Case, verdict: Verdict, refused: str) -> None:
        if not refused:  # a server that refuses a request, as too long for it say, may be another one next time
            self.owner.verdicts.keep(case, verdict)
        self.found[case.key] = verdict
        if self.owner.progress:
            self.owner.progress(1, verdict.tokens_out)

    def check_readable(self, whole: int) -> None:
        """Raise where none of the first verdicts could be read."""
        if not self.found or len(self.found) < min(ENOUGH, whole) or any(verdict.letter for verdict in self.found.values()):
            return
        last, spec = " ".join(list(self.found.values())[-1].text.split())[-80:], self.owner.spec
        raise SamplingError(f"none of the {len(self.found)} answers of {spec.model} so far ends in a verdict ([[A]], [[B]] or [[C]]); the last one ends '{last}'. "
                            f"Name a larger model in {spec.key}.model, or raise {spec.key}.max_tokens if it is cut off")  # fmt: skip

    async def _verdict(self, case: Case) -> tuple[Verdict, str]:
        """What the judge says, asked once more where it cannot be read; and why the server refused to ask it, where it did."""
        letter, text, tokens_in, tokens_out = "", "", 0, 0
        for attempt in range(TRIES):
            held = self.spent.hold(case)
            answer, why = await self.client.complete(self._body(case, attempt), CHAT)
            said, cut, read, written = (why, False, 0, 0) if answer is None else self._read(case, answer)
            self.spent.dollars += self.spent.price(read, written) - held
            text, tokens_in, tokens_out = self.client.without_key(said), tokens_in + read, tokens_out + written
            if answer is None or (letter := letter_of(text, cut)):
                break
        return Verdict(letter, text, attempt + 1, tokens_in, tokens_out), why if attempt == 0 else ""

    def _body(self, case: Case, attempt: int) -> dict[str, Any]:
        limit, seeded = self.dialect
        heat = {} if case.temperature is None else {"temperature": case.temperature}
        return {"messages": case.messages(attempt), limit: case.max_tokens} | heat | ({"seed": case.seed_of(attempt)} if seeded else {})

    def _read(self, case: Case, answer: Any) -> tuple[str, bool, int, int]:
        """Text, whether it was cut at its limit, tokens read and written; as many as bytes where the server does not say."""
        choices = answer.get("choices") if isinstance(answer, dict) else None
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        message = choice.get("message")
        if not isinstance(message, dict) or not isinstance(message.get("content"), str | None):
            spec = self.owner.spec
            raise SamplingError(f"the answer of {spec.host} holds no message: {self.client.clean(str(answer))}; correct {spec.key}.url, it must be that of an OpenAI-compatible server")
        text, usage = message.get("content") or "", answer.get("usage")
        told = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
        read, written = (number if isinstance(number, int) else most for number, most in zip(told, (case.size, len(text.encode())), strict=True))
        return text, choice.get("finish_reason") == "length", read, written
