"""What is said to an OpenAI-compatible server, and what its refusals mean. The only file that imports httpx2.

The key comes from an environment variable, goes into one header, and is taken out of whatever the server answers.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from hubdistill.errors import HubdistillError, InputError, SamplingError
from hubdistill.specs import EndpointSpec

if TYPE_CHECKING:
    from httpx2 import Response

TRIES, FIRST_WAIT, LONGEST_WAIT = 8, 0.5, 60.0  # about a minute in all where the server names no time itself
CONNECT = 10.0  # seconds
PASSING = (408, 409, 425, 429, 500, 502, 503, 504)  # what may be otherwise a moment later
GIVES = {"/completions": "completions of raw prompts", "/chat/completions": "answers in a chat"}
NOT_SO = (400, 415, 422, 501)  # the request is not understood, as it was put


def key_of(spec: EndpointSpec) -> str | None:
    """The server's key. Raises InputError where its variable is not set, or holds no key."""
    if spec.api_key_env is None:
        return None
    key = os.environ.get(spec.api_key_env, "").strip()
    if not key:
        raise InputError(f"{spec.key}.api_key_env: the environment variable {spec.api_key_env} is not set; export the key of {spec.host} in it")
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"{spec.key}.api_key_env: what {spec.api_key_env} holds is no key (it has letters that no header can carry, not shown); export the key of {spec.host} in it")
    return key


class ServerClient:
    """`spec` is the recipe's; `model` the name to ask for, of whom `role` says in errors; `timeouts` the answers that may not come before
    that is one. To be used in one event loop."""

    def __init__(self, spec: EndpointSpec, model: str, role: str = "the teacher", timeouts: int = 1):
        import httpx2

        self.spec, self.model, self.role, self.timeouts, self._key = spec, model, role, timeouts, key_of(spec)
        limits = httpx2.Limits(max_connections=spec.concurrency, max_keepalive_connections=spec.concurrency)
        self._http = httpx2.AsyncClient(headers={"Authorization": f"Bearer {self._key}"} if self._key else {}, timeout=httpx2.Timeout(spec.timeout, connect=CONNECT), limits=limits)
        self._reached = False  # a server that never answered is not waited for

    async def close(self) -> None:
        await self._http.aclose()

    async def models(self) -> list[str]:
        """The names that the server has. Raises InputError for an address that is none, SamplingError where nothing answers."""
        found = await self._send("GET", "/models")
        listed = self._json(found)
        if found.status_code != 404:
            self._check(found)
        if found.status_code == 404 or not isinstance(listed, dict) or not isinstance(listed.get("data"), list):
            raise InputError(f"{self.spec.key}.url: {self.spec.url}/models is no list of models ({found.status_code}); addresses of OpenAI-compatible servers mostly end in /v1")
        return [str(one["id"]) for one in listed["data"] if isinstance(one, dict) and "id" in one]

    async def complete(self, body: Mapping[str, Any], path: str = "/completions") -> tuple[Any, str]:
        """The answer to a request for a completion, or None and why it was not understood as it was put. Raises as `models` does."""
        found = await self._send("POST", path, {"model": self.model, **body})
        if found.status_code in NOT_SO:
            return None, f"{found.status_code} {self._said(found)}"
        if found.status_code == 404:
            raise await self._not_there(found, path)
        self._check(found)
        answer = self._json(found)
        if answer is None:
            raise SamplingError(f"{self.spec.host} answered with something else than JSON: {self._said(found)}; correct {self.spec.key}.url")
        return answer, ""

    async def check_model(self) -> None:
        """Raise InputError where the server lists models, and not the one that is asked for."""
        names = await self.models()
        if names and self.model not in names:
            raise self._unknown(names)

    async def _not_there(self, found: Response, path: str) -> HubdistillError:
        names = await self.models()
        if self.model not in names:
            return self._unknown(names)
        return InputError(f"{self.spec.key}.url: {self.spec.url}{path} is not there ({self._said(found)}); the server must give {GIVES[path]}, as vLLM does")

    def _unknown(self, names: list[str]) -> InputError:
        shown = ", ".join(names[:10]) + (" and others" if len(names) > 10 else "")
        return InputError(f"{self.spec.key}.model: {self.spec.host} has no model '{self.model}'; write the name that it gives {self.role} (it has {shown or 'none'})")

    async def _send(self, method: str, path: str, body: Any = None) -> Response:
        """The answer, whatever it is, once it is none of those that pass."""
        import httpx2

        late = 0
        for attempt in range(TRIES):
            wait = min(FIRST_WAIT * 2**attempt, LONGEST_WAIT / 2) * random.uniform(0.8, 1.2)  # not all of them at once
            try:
                found = await self._http.request(method, self.spec.url + path, json=body)
            except httpx2.ReadTimeout as problem:
                late += 1
                what = f"no answer in {self.spec.timeout:g} seconds"
                if late >= self.timeouts:
                    again = f", {late} times" if late > 1 else ""
                    raise SamplingError(f"{self.spec.host} gave {what}{again}; lower {self.spec.key}.concurrency, or raise {self.spec.key}.timeout") from problem
            except httpx2.TransportError as problem:
                what = self.clean(f"{type(problem).__name__}: {problem}")
                if not self._reached:
                    raise SamplingError(f"{self.spec.key}.url: nothing answers at {self.spec.url} ({what}); start the server, or correct the address") from problem
            else:
                self._reached = True
                if found.status_code not in PASSING:
                    return found
                what, wait = f"{found.status_code} {self._said(found)}", _asked_wait(found, wait)
            if attempt + 1 < TRIES:
                await asyncio.sleep(wait)
        raise SamplingError(f"{self.spec.host} failed {TRIES} times in a row ({what}); what it answered is kept: look at the server, then run the same command again")

    def _check(self, found: Response) -> None:
        """Raise for every other answer than a good one."""
        if found.status_code in (401, 403):
            fix = f"export the right key in {self.spec.api_key_env}" if self._key else f"name the environment variable that holds its key in {self.spec.key}.api_key_env"
            raise InputError(f"{self.spec.host} refuses the request ({found.status_code} {self._said(found)}); {fix}")
        if not found.is_success:
            raise SamplingError(f"{self.spec.host} answered {found.status_code} {self._said(found)}; correct {self.spec.key}.url, or look at the server")

    def _said(self, found: Response) -> str:
        """What an answer says went wrong, cut and without the key."""
        said = self._json(found)
        for key in ("error", "message", "detail"):
            if isinstance(said, dict) and said.get(key):
                said = said[key]
        return self.clean(str(said if said is not None else found.text))

    def clean(self, text: str) -> str:
        """A text of the server, cut, and without the key."""
        return " ".join(self.without_key(text).split())[:300].rstrip(".")

    def without_key(self, text: str) -> str:
        """A text of the server, which may repeat the key that it was sent."""
        return text.replace(self._key, "***") if self._key else text

    @staticmethod
    def _json(found: Response) -> Any:
        try:
            return found.json()
        except ValueError:  # also where it is no text at all
            return None


def _asked_wait(found: Response, otherwise: float) -> float:
    """Seconds that the server asks to wait, as a number or until a date, within reason."""
    asked = found.headers.get("retry-after", "")
    try:
        seconds = float(asked) if not asked[:1].isalpha() else parsedate_to_datetime(asked).timestamp() - time.time()
    except ValueError:
        return otherwise
    return min(max(seconds, 0.0), LONGEST_WAIT)


def ask_for_model(spec: EndpointSpec, model: str, role: str = "the teacher") -> None:
    """Raise where the server does not answer, refuses the key, or lacks the model."""

    async def ask() -> None:
        client = ServerClient(spec, model, role)
        try:
            await client.check_model()
        finally:
            await client.close()

    asyncio.run(ask())
