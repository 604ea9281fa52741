"""Whether the current token may publish to a repository: asked before training, and again by the push itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import hubdistill
from hubdistill.errors import HubError
from hubdistill.hub.failures import LOGIN, endpoint, endpoint_warning, explained, hub_token, retrying
from hubdistill.hub.names import require_repo

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who would publish, and what is there: `visibility` is that of the repository, or the one it will be created with."""

    user: str
    repo: str
    exists: bool
    visibility: str  # "private" or "public"
    endpoint: str
    warnings: tuple[str, ...] = ()


def check_access(repo: str, *, private: bool = True, write: bool = True) -> Access:
    """Whether the current token may write to `repo` (ORG/NAME), asked before hours of training; writes nothing.

    Without `write` it need only see an existing repository: anybody may open a pull request there.

    Raises InputError for a bad name, HubError for everything else, each with the remedy.
    """
    require_repo(repo)
    action = f"publish to {repo}"
    with explained(repo, action):
        api = hub_api(repo)
        who = retrying(lambda: api.whoami(cache=True))
        role = ((who.get("auth") or {}).get("accessToken") or {}).get("role")
        if role == "read":
            raise HubError(f"cannot {action}: your token is read-only. {LOGIN}")
        there = visibility_of(api, repo)
        if there is None:
            _require_namespace(who, repo)
        else:
            retrying(lambda: api.auth_check(repo, write=write))
    warning = endpoint_warning()
    return Access(
        user=who["name"],
        repo=repo,
        exists=there is not None,
        visibility=there or word(private),
        endpoint=endpoint(),
        warnings=(warning,) if warning else (),
    )


def hub_api(repo: str, action: str = "") -> HfApi:
    """The client for publishing, or for another `action` that needs a token; HubError where it is offline or has none."""
    from huggingface_hub import HfApi, constants

    action = action or f"publish to {repo}"
    if constants.HF_HUB_OFFLINE:
        raise HubError(f"cannot {action}: HF_HUB_OFFLINE is set. Unset it, and run the command again.")
    if hub_token() is None:
        raise HubError(f"cannot {action}: not logged in. {LOGIN}")
    return HfApi(library_name="hubdistill", library_version=hubdistill.__version__)


def visibility_of(api: HfApi, repo: str) -> str | None:
    """The visibility of `repo`; None where it is not there for this token."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return word(bool(retrying(lambda: api.repo_info(repo)).private))
    except RepositoryNotFoundError:
        return None


def _require_namespace(who: Mapping[str, Any], repo: str) -> None:
    namespace = repo.split("/")[0]
    roles = {org["name"]: org.get("roleInOrg") for org in who.get("orgs") or []}
    if namespace != who["name"] and (namespace not in roles or roles[namespace] == "read"):
        raise HubError(
            f"cannot publish to {repo}: {who['name']} may not create repositories under {namespace}. "
            f"Use {who['name']}/{repo.split('/')[1]}, or ask an administrator of {namespace} for write access."
        )


def word(private: bool) -> str:
    """The visibility in a word."""
    return "private" if private else "public"
