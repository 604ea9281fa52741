"""What went wrong on the Hub, in words that end with the fix; and bounded retries for what may pass.

The client's errors are matched by its types, the transport's (httpx2) by name, so that its private dependency stays private.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar
from urllib.parse import urlsplit

from hubdistill.errors import HubdistillError, HubError, InputError, MissingError
from hubdistill.hub.secrets import redact

T = TypeVar("T")
log = logging.getLogger("hubdistill.hub")
DELAYS: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)  # seconds before each further attempt
LONGEST_WAIT = 60.0  # seconds of a Retry-After that are waited for
CLIENT_RETRIES = ("/preupload/", "/info/lfs/", "/resolve/", "/tree/")  # paths that the client itself retries
PASSING = (429, 500, 502, 503, 504)
UNREAD = (429, 503)  # answers that mean the request was not carried out
LOGIN = "Run `hf auth login` or set HF_TOKEN to a token with write access, then retry."


def endpoint() -> str:
    """The Hub in use: HF_ENDPOINT as the client read it, or huggingface.co."""
    from huggingface_hub import constants

    return constants.ENDPOINT.rstrip("/")


def endpoint_warning() -> str | None:
    """A warning where the token would travel unencrypted to another machine; None otherwise."""
    url = urlsplit(endpoint())
    host = url.hostname or ""
    if url.scheme != "http" or host == "localhost" or _is_loopback(host):
        return None
    return f"HF_ENDPOINT is {endpoint()}, which is not encrypted: your token can be read on the way. Use https."


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, not an address
        return False


def hub_token() -> str | None:
    """The token the client would send, from HF_TOKEN or `hf auth login`; hubdistill reads no token file itself."""
    from huggingface_hub import get_token

    return get_token()


@contextmanager
def explained(repo: str, action: str, *, ending: str = "") -> Iterator[None]:
    """Turn what the Hub client raises into a HubdistillError about `repo`; `action` says what was tried, `ending` what to do next.

    Errors that are not about the Hub pass unchanged: they are bugs, or the operating system's.
    """
    try:
        yield
    except HubdistillError as error:
        if not ending:
            raise
        raise type(error)(f"{error}\n{ending}") from error
    except Exception as error:
        known = explain(error, repo, action)
        if known is None:
            raise
        message = redact(str(known), hub_token())
        raise type(known)(f"{message}\n{ending}" if ending else message) from error


def explain(error: BaseException, repo: str, action: str) -> HubdistillError | None:
    """The HubdistillError that says what `error` means; None where it is not about the Hub."""
    chain = list(causes(error))
    for one in chain:
        for find in (_not_there, _from_storage, _from_response, _from_transport, _from_card):
            found = find(one, repo, action)
            if found is not None:
                return found
    if any(
        type(one).__name__ in ("LocalEntryNotFoundError", "RevisionResolutionError", "IncompleteSnapshotError")
        for one in chain
    ):
        return HubError(
            f"cannot {action}: {endpoint()} could not be reached and {repo} is not complete in the local cache. Retry with a connection."
        )
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """`error`, what caused it, and so on, each once; the client hides the real error behind friendlier ones."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _not_there(error: BaseException, repo: str, action: str) -> HubdistillError | None:
    from huggingface_hub import errors as hf

    if isinstance(error, hf.OfflineModeIsEnabled):
        return HubError(
            f"cannot {action}: the Hub is switched off by HF_HUB_OFFLINE and what is needed is not in the cache. Unset HF_HUB_OFFLINE and retry."
        )
    if isinstance(error, hf.LocalTokenNotFoundError):
        return HubError(f"cannot {action}: not logged in. {LOGIN}")
    if isinstance(error, hf.GatedRepoError):  # before RepositoryNotFoundError, which it is a kind of
        return HubError(
            f"access to {repo} is gated: accept the terms at {endpoint()}/{repo} with the account of your token, then retry."
        )
    if isinstance(error, hf.RepositoryNotFoundError):
        return MissingError(
            f"{repo} does not exist on {endpoint()}, or it is private and your token cannot see it. Check the name, or log in (`hf auth login`) with an account that has access."
        )
    if isinstance(error, hf.RevisionNotFoundError):
        return MissingError(
            f"{repo} has no such revision. See {endpoint()}/{repo}/tree/main for its branches and tags, and correct the revision."
        )
    if isinstance(error, hf.RemoteEntryNotFoundError):
        return MissingError(f"{repo} lacks a file that is needed to {action}. Check the repository and the revision.")
    return None


def _from_response(error: BaseException, repo: str, action: str) -> HubdistillError | None:
    status = status_of(error)
    if status is None:
        return None
    said = getattr(error, "server_message", None) or f"HTTP {status}"
    if status == 401:
        return HubError(
            f"cannot {action}: your token is invalid or has expired. HF_TOKEN takes precedence over `hf auth login`; correct or unset it, then retry."
        )
    if status == 403:
        return HubError(
            f"cannot {action}: your token may not do this on {repo} ({said}). It is read-only, or your account is not a member there. {LOGIN}"
        )
    if status == 412:
        return HubError(f"cannot {action}: somebody else has changed {repo} meanwhile. Look at the change, then retry.")
    if status == 429:
        return HubError(
            f"cannot {action}: {endpoint()} limits how often you may ask (HTTP 429). Wait some minutes, then retry."
        )
    if status >= 500:
        return HubError(
            f"cannot {action}: {endpoint()} has a problem (HTTP {status}). Retry later; see https://status.huggingface.co."
        )
    return HubError(f"cannot {action}: {endpoint()} refused it: {said}. Correct this, then retry.")


def _from_transport(error: BaseException, repo: str, action: str) -> HubdistillError | None:
    if is_transport(error):
        return HubError(
            f"cannot {action}: {endpoint()} could not be reached ({type(error).__name__}). Check the connection and HF_ENDPOINT, then retry."
        )
    return None


def _from_storage(error: BaseException, repo: str, action: str) -> HubdistillError | None:
    """Failures of the storage for large files: Xet reports them in words only, LFS as an answer from another host."""
    said = str(error)
    status = re.search(r"\((\d{3})\b", said)
    if isinstance(error, (ConnectionError, RuntimeError)) and ("xet" in said.lower() or "CAS Client" in said):
        if status and status[1] == "404" and "-token/" in said and not endpoint().endswith("huggingface.co"):
            return HubError(
                f"cannot {action}: {endpoint()} has no Xet storage for large files. Rerun with HF_HUB_DISABLE_XET=1 in the environment."
            )
        what = f"HTTP {status[1]}" if status else "no connection"
        return HubError(
            f"cannot {action}: the Xet storage for large files failed ({what}). Retry; if it fails again, rerun with HF_HUB_DISABLE_XET=1 in the environment."
        )
    code = status_of(error)
    if code is not None and code < 500 and _is_elsewhere(error):
        return HubError(
            f"cannot {action}: the storage for large files refused it (HTTP {code}). Retry; the upload link may have expired."
        )
    return None


def _from_card(error: BaseException, repo: str, action: str) -> HubdistillError | None:
    if isinstance(error, ValueError) and "Invalid metadata in README.md" in str(error):
        return InputError(f"the Hub refuses the card of {repo}: {error}\nCorrect the recipe or README.md, then retry.")
    return None


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind a client error, if there is one."""
    from huggingface_hub.errors import HfHubHTTPError

    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def is_transport(error: BaseException) -> bool:
    """Whether the connection failed before an answer came."""
    kinds = {kind.__name__ for kind in type(error).__mro__ if kind.__module__.split(".")[0] in ("httpx", "httpx2")}
    return "TransportError" in kinds


def is_unreachable(error: BaseException) -> bool:
    """Whether `error` leaves the cache as the only source: offline, no connection, or a Hub that is down."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    first = _first_answer(error)
    return isinstance(first, OfflineModeIsEnabled) or is_transport(first) or (status_of(first) or 0) >= 500


def _url_of(error: BaseException) -> str:
    """The address that was asked; empty where the error does not know it."""
    try:  # the client's own errors know only the response, the transport's only the request
        request = getattr(error, "response", error).request  # type: ignore[union-attr]
    except (AttributeError, RuntimeError):  # no HTTP error, or one that was raised before there was a request
        return ""
    return str(request.url)


def _is_elsewhere(error: BaseException) -> bool:
    url = _url_of(error)
    return bool(url) and urlsplit(url).netloc != urlsplit(endpoint()).netloc


def _client_retried(error: BaseException) -> bool:
    """Whether the client has repeated the request itself, five times over 23 seconds; ours would multiply that."""
    return _is_elsewhere(error) or any(part in urlsplit(_url_of(error)).path for part in CLIENT_RETRIES)


def _first_answer(error: BaseException) -> BaseException:
    """The first error of the chain that says what happened on the wire; `error` itself where none does."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    for one in causes(error):
        if status_of(one) is not None or is_transport(one) or isinstance(one, OfflineModeIsEnabled):
            return one
    return error


def retrying(call: Callable[[], T], *, delays: Sequence[float] | None = None, statuses: Sequence[int] = PASSING) -> T:
    """Run `call`, again after each of `delays` seconds while the Hub is busy or unreachable; a Retry-After is obeyed up to a minute.

    `call` must be safe to repeat. Returns what it returns; raises its last error.
    """
    for delay in DELAYS if delays is None else delays:
        try:
            return call()
        except Exception as error:
            wait = _wait(error, delay, statuses)
            if wait is None:
                raise
            log.warning("the Hub is busy or unreachable (%s); trying again in %.0f s", _short(error), wait)
            time.sleep(wait)
    return call()


def _wait(error: BaseException, delay: float, statuses: Sequence[int]) -> float | None:
    answer = _first_answer(error)
    if _client_retried(answer):
        return None
    if status_of(answer) in statuses:
        after = answer.response.headers.get("retry-after", "")  # type: ignore[attr-defined]
        return min(max(float(after), delay), LONGEST_WAIT) if after.isdigit() else delay
    # An overloaded proxy answers with HTML, and the client trips over it while it looks for JSON.
    unclear = is_transport(answer) or isinstance(error, json.JSONDecodeError)
    if statuses is UNREAD:  # what is not safe to repeat: only where the request certainly did not arrive
        unclear = type(answer).__name__ in ("ConnectError", "ConnectTimeout")
    return delay if unclear else None


def _short(error: BaseException) -> str:
    answer = _first_answer(error)
    status = status_of(answer)
    return f"HTTP {status}" if status else type(answer).__name__
