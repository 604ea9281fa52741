"""One wording for everything the Hub can answer, as typed errors that end with the fix."""

from __future__ import annotations

import os

from hubdistill.errors import HubdistillError, HubError, InputError, MissingError


def hub_problem(problem: BaseException, what: str, revision: str | None = None) -> HubdistillError:
    """Turn an error of huggingface_hub (or of a library on top of it) into ours; `what` names the thing asked for.

    Libraries wrap the Hub's errors (PEFT in ValueError, datasets in its own), so the chain of causes is searched.
    """
    from huggingface_hub import errors

    for link in _chain(problem):
        status = getattr(getattr(link, "response", None), "status_code", None)
        if isinstance(link, errors.GatedRepoError):  # a subclass of RepositoryNotFoundError: must come first
            return HubError(f"{what} is gated: accept its terms on the Hub with the account of your token, then run the command again")
        if isinstance(link, errors.RevisionNotFoundError):
            return MissingError(f"{what} has no revision {revision!r}; check the branch, tag or commit")
        if isinstance(link, errors.EntryNotFoundError) and not isinstance(link, errors.LocalEntryNotFoundError):
            return MissingError(f"{what}: a needed file is not in the repository ({_first_line(link)}); check the revision")
        if status == 401 and os.environ.get("HF_TOKEN"):
            return HubError(f"{what}: the Hub does not accept HF_TOKEN (it takes precedence over `hf auth login`), or the repository is private; fix or unset HF_TOKEN")
        if isinstance(link, errors.RepositoryNotFoundError):
            return MissingError(f"{what} does not exist, or is private and your token may not see it; check the name, or run `hf auth login`")
        if isinstance(link, errors.HFValidationError):
            return InputError(f"{what}: not a valid Hub name (ORG/NAME); check the spelling")
        if status == 403:
            return HubError(f"{what}: the token may not do this (read-only, or not a member of the namespace); use a token with write access")
        if status == 429 or (status is not None and status >= 500):
            return HubError(f"{what}: the Hub answered {status}; wait a minute and run the command again")
        if isinstance(link, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError):
            return HubError(f"{what}: not in the cache and the Hub cannot be reached (offline?); go online and run the command again")
        if _is_connection_error(link):
            return HubError(f"{what}: the Hub cannot be reached ({_first_line(link)}); check the network and HF_ENDPOINT, then run the command again")
    return HubError(f"{what}: {_first_line(problem)}; check the name and the network, then run the command again")


def _chain(problem: BaseException) -> list[BaseException]:
    links: list[BaseException] = []
    link: BaseException | None = problem
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__ or link.__context__
    return links


def _is_connection_error(problem: BaseException) -> bool:
    # huggingface_hub 2.x raises its HTTP client's own classes, which are not OSErrors; named here to not import it.
    return isinstance(problem, ConnectionError) or type(problem).__name__ in {"ConnectError", "ConnectTimeout", "ReadTimeout", "ReadError"}


def _first_line(problem: BaseException) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0][:300]
