"""Publishing an adapter: checks before training, then one commit of the staged files to the Hub.

One commit through `create_commit`, not `upload_folder`: with Xet on, the latter may split it into several, opens pull
requests by another route, and follows symlinks. Files that are on the Hub already are not sent twice, so a push that
broke off is resumed by running it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import hubdistill
from hubdistill.errors import HubError, InputError
from hubdistill.hub.access import hub_api, visibility_of, word
from hubdistill.hub.card_check import validate_card
from hubdistill.hub.card_merge import merge_card
from hubdistill.hub.failures import PASSING, UNREAD, endpoint, endpoint_warning, explained, hub_token, retrying
from hubdistill.hub.names import CARD, require_repo, require_revision
from hubdistill.hub.secrets import refuse_secrets
from hubdistill.hub.staging import check_staged

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What a push would do: the files with their sizes in bytes."""

    repo: str
    endpoint: str
    revision: str
    visibility: str  # of the repository, if the push creates it
    create_pr: bool
    tag: str | None
    files: tuple[tuple[str, int], ...]


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a push did; `commit` is a full commit, `url` leads to the repository or the pull request."""

    repo: str
    commit: str
    url: str
    visibility: str
    created: bool  # whether the repository is new
    pr: int | None = None
    tag: str | None = None
    warnings: tuple[str, ...] = ()


def preview(
    folder: Path,
    repo: str,
    *,
    private: bool = True,
    revision: str | None = None,
    create_pr: bool = False,
    tag: str | None = None,
) -> Preview:
    """What `push` with the same arguments would send; needs no network and no token. Raises as `push` does for its inputs."""
    _check_arguments(repo, revision, create_pr, tag)
    files = check_staged(folder, token=hub_token())
    sizes = tuple((path.relative_to(folder).as_posix(), path.stat().st_size) for path in files)
    return Preview(
        repo=repo,
        endpoint=endpoint(),
        revision=revision or "main",
        visibility=word(private),
        create_pr=create_pr,
        tag=tag,
        files=sizes,
    )


def push(
    folder: Path,
    repo: str,
    *,
    private: bool = True,
    revision: str | None = None,
    create_pr: bool = False,
    tag: str | None = None,
    overwrite_card: bool = False,
    resume_command: str = "",
) -> Published:
    """Publish the staged `folder` to `repo` (ORG/NAME) as one commit, then tag it.

    A missing repository is created, private unless told otherwise; an existing one keeps its visibility, and the
    hand-written part of its card unless `overwrite_card`. `revision` is a branch (created when missing) or refs/pr/N.
    Raises InputError for what cannot be published, HubError or MissingError for the Hub; `folder` stays, and the
    message ends with `resume_command`.
    """
    _check_arguments(repo, revision, create_pr, tag)
    files = check_staged(folder, token=hub_token())
    where = _Where(
        repo=repo, private=private, revision=revision, create_pr=create_pr, tag=tag, overwrite_card=overwrite_card
    )
    ending = f"The files to publish are kept in {folder}."
    if resume_command:
        ending += f" To resume: {resume_command}"
    with explained(repo, f"publish to {repo}", ending=ending):
        contents = {path.relative_to(folder).as_posix(): path for path in files}
        return _push(contents, contents[CARD].read_text(encoding="utf-8"), where)


def _check_arguments(repo: str, revision: str | None, create_pr: bool, tag: str | None) -> None:
    require_repo(repo)
    require_revision(revision)
    require_revision(tag)
    if create_pr and revision not in (None, "main"):
        raise InputError(
            f"a new pull request always goes to main, not {revision}. Leave out either the pull request or the revision."
        )
    if tag and (create_pr or (revision or "").startswith("refs/pr/")):
        raise InputError(
            f"the tag {tag} cannot be set on a pull request. Leave it out, and tag the commit after the merge."
        )


@dataclass(frozen=True, kw_only=True)
class _Where:
    """Where a push goes, as `push` was told."""

    repo: str
    private: bool
    revision: str | None = None
    create_pr: bool = False
    tag: str | None = None
    overwrite_card: bool = False


def commit_files(contents: Mapping[str, Path | bytes], card: str, repo: str, *, private: bool) -> Published:
    """Publish checked `contents` and `card` to the main branch; for callers that have their own allow-list."""
    return _push(contents, card, _Where(repo=repo, private=private))


def _push(contents: Mapping[str, Path | bytes], card: str, where: _Where) -> Published:
    api = hub_api(where.repo)
    created, visibility = _ensure_repo(api, where.repo, where.private)
    head = _ensure_branch(api, where.repo, where.revision)
    if where.tag:
        _refuse_moving_tag(api, where.repo, where.tag, head)
    if not where.overwrite_card:
        card = merge_card(_existing_card(api, where.repo, head), card)
    warnings = [*validate_card(card), *filter(None, [endpoint_warning()])]
    refuse_secrets({CARD: card}, token=hub_token())
    done = _commit(api, where, {**contents, CARD: card.encode()}, head)
    if where.tag:
        _set_tag(api, where.repo, where.tag, done.oid)
    return Published(
        repo=where.repo,
        commit=done.oid,
        url=done.pr_url or f"{endpoint()}/{where.repo}",
        visibility=visibility,
        created=created,
        pr=done.pr_num,
        tag=where.tag,
        warnings=tuple(warnings),
    )


def _ensure_repo(api: HfApi, repo: str, private: bool) -> tuple[bool, str]:
    """Create `repo` where it is missing; whether it is new, and its visibility."""
    visibility = visibility_of(api, repo)
    if visibility is not None:
        return False, visibility
    retrying(lambda: api.create_repo(repo, private=private, exist_ok=True))
    return True, word(private)


def _ensure_branch(api: HfApi, repo: str, revision: str | None) -> str:
    """The head commit of the branch to push to, which is created from main where it is missing."""
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        return _head(api, repo, revision)
    except RevisionNotFoundError:
        if revision is None or revision.startswith("refs/"):
            raise
    retrying(lambda: api.create_branch(repo, branch=revision, exist_ok=True))
    return _head(api, repo, revision)


def _head(api: HfApi, repo: str, revision: str | None) -> str:
    sha = retrying(lambda: api.repo_info(repo, revision=revision)).sha
    assert sha is not None  # the Hub names the commit of every revision it finds
    return sha


def _existing_card(api: HfApi, repo: str, commit: str) -> str:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        path = retrying(lambda: hf_hub_download(repo, CARD, revision=commit))
    except RemoteEntryNotFoundError:
        return ""
    return Path(path).read_text(encoding="utf-8", errors="replace")


def _commit(api: HfApi, where: _Where, contents: Mapping[str, Path | bytes], head: str) -> CommitInfo:
    from huggingface_hub import CommitOperationAdd

    def once() -> CommitInfo:
        # The client marks operations as done, so each attempt needs its own. A repeated attempt after a commit that
        # did go through finds every file unchanged and makes no second one.
        operations = [CommitOperationAdd(name, content) for name, content in sorted(contents.items())]
        return api.create_commit(
            where.repo,
            operations,
            commit_message=f"Publish with hubdistill {hubdistill.__version__}",
            revision=where.revision,
            create_pr=where.create_pr,
            parent_commit=head,
        )

    # Repeating an unclear answer could open a second pull request.
    return retrying(once, statuses=UNREAD if where.create_pr else PASSING)


def _tags(api: HfApi, repo: str) -> dict[str, str]:
    return {ref.name: ref.target_commit for ref in retrying(lambda: api.list_repo_refs(repo)).tags}


def _refuse_moving_tag(api: HfApi, repo: str, tag: str, head: str) -> None:
    """Before the upload: a tag that names an older commit would have to move, and people have pinned it."""
    at = _tags(api, repo).get(tag, head)
    if at != head:
        raise InputError(
            f"{repo} has a tag {tag} already, at commit {at[:12]}. Choose another `publish.tag`, or delete the tag on the Hub first."
        )


def _set_tag(api: HfApi, repo: str, tag: str, commit: str) -> None:
    at = _tags(api, repo).get(tag)
    if at is None:
        retrying(lambda: api.create_tag(repo, tag=tag, revision=commit))
    elif at != commit:
        raise HubError(
            f"the files are on the Hub as commit {commit}, but the tag {tag} is at {at[:12]} already. Choose another `publish.tag` and push again."
        )
