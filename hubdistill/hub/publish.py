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
from hubdistill.errors import InputError
from hubdistill.hub.access import check_access, hub_api, visibility_of, word
from hubdistill.hub.card_check import validate_card
from hubdistill.hub.card_merge import merge_card
from hubdistill.hub.changes import (
    changed_files,
    existing_card,
    find_head,
    head_of,
    refuse_moving_tag,
    refuse_shadowing,
    set_tag,
    stale_files,
)
from hubdistill.hub.failures import PASSING, UNREAD, endpoint, endpoint_warning, explained, hub_token, retrying
from hubdistill.hub.names import CARD, require_repo, require_revision
from hubdistill.hub.secrets import refuse_secrets
from hubdistill.hub.staging import check_staged

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi
    from huggingface_hub.hf_api import ModelInfo


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
    beside: tuple[str, ...] = ()  # where its base and its merged model are, if they were pushed with it


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
    check_arguments(repo, revision, create_pr, tag)
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
    Files of an earlier adapter that this one lacks are deleted. A tag that is there already is refused unless nothing changes.
    Raises InputError for what cannot be published, HubError or MissingError for the Hub; `folder` stays, and the
    message ends with `resume_command`.
    """
    check_arguments(repo, revision, create_pr, tag)
    contents = _staged(folder)
    where = _Where(
        repo=repo,
        private=private,
        revision=revision,
        create_pr=create_pr,
        tag=tag,
        overwrite_card=overwrite_card,
        adapter=True,
    )
    with explained(repo, f"publish to {repo}", ending=_ending(folder, resume_command)):
        return _push(contents, contents[CARD].read_text(encoding="utf-8"), where)


def check_push(
    folder: Path,
    repo: str,
    *,
    private: bool = True,
    revision: str | None = None,
    create_pr: bool = False,
    tag: str | None = None,
    overwrite_card: bool = False,
    resume_command: str = "",
) -> None:
    """Raise what `push` with the same arguments would raise before its commit; writes nothing.

    For an adapter whose base is pushed first: what is refused, is refused before the base is on the Hub.
    """
    check_arguments(repo, revision, create_pr, tag)
    contents = _staged(folder)
    where = _Where(repo=repo, private=private, tag=tag, overwrite_card=overwrite_card, adapter=True)
    with explained(repo, f"publish to {repo}", ending=_ending(folder, resume_command)):
        by_request = create_pr or (revision or "").startswith("refs/pr/")
        if not check_access(repo, private=private, write=not by_request).exists:
            return
        api = hub_api(repo)
        head = find_head(api, repo, revision) or find_head(api, repo, None)
        if head is not None:
            _prepare(api, where, contents, contents[CARD].read_text(encoding="utf-8"), head)


def _staged(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in check_staged(folder, token=hub_token())}


def _ending(folder: Path, resume_command: str) -> str:
    ending = f"The files to publish are kept in {folder}."
    return f"{ending} To resume: {resume_command}" if resume_command else ending


def check_arguments(repo: str, revision: str | None, create_pr: bool, tag: str | None) -> None:
    """Raise InputError for a name that cannot be one, and for a combination that the Hub has no place for."""
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
    adapter: bool = False  # else a base, of which nothing is ever deleted


def commit_files(contents: Mapping[str, Path | bytes], card: str, repo: str, *, private: bool) -> Published:
    """Publish checked `contents` and `card` to the main branch; for callers that have their own allow-list."""
    return _push(contents, card, _Where(repo=repo, private=private))


def unchanged_commit(contents: Mapping[str, Path | bytes], card: str, repo: str) -> str | None:
    """The commit that `commit_files` would leave as it is; None where it would make a new one. Writes nothing."""
    api = hub_api(repo)
    if visibility_of(api, repo) is None:
        return None
    head = find_head(api, repo, None)
    if head is None:
        return None
    ready = _prepare(api, _Where(repo=repo, private=True), contents, card, head)
    return None if changed_files(head.siblings or [], ready.contents) else head.sha


@dataclass(frozen=True, kw_only=True)
class _Ready:
    """What is sent: the files with the merged card, and what is deleted."""

    contents: Mapping[str, Path | bytes]
    stale: list[str]
    warnings: tuple[str, ...]


def _prepare(api: HfApi, where: _Where, contents: Mapping[str, Path | bytes], card: str, head: ModelInfo) -> _Ready:
    """Merge the card, and refuse what cannot be sent to the branch at `head`."""
    listing = head.siblings or []
    if not where.overwrite_card:
        name = where.repo.rsplit("/", 1)[-1] if where.adapter else ""
        card = merge_card(existing_card(api, where.repo, str(head.sha)), card, name=name)
    warnings = [*validate_card(card), *filter(None, [endpoint_warning()])]
    refuse_secrets({CARD: card}, token=hub_token())
    contents = {**contents, CARD: card.encode()}
    stale = stale_files(listing, contents) if where.adapter else []
    if not where.adapter:
        refuse_shadowing(where.repo, listing, contents)
    if where.tag:
        refuse_moving_tag(api, where.repo, where.tag, str(head.sha), [*changed_files(listing, contents), *stale])
    return _Ready(contents=contents, stale=stale, warnings=tuple(warnings))


def _push(contents: Mapping[str, Path | bytes], card: str, where: _Where) -> Published:
    api = hub_api(where.repo)
    created, visibility = _ensure_repo(api, where.repo, where.private)
    head = _ensure_branch(api, where.repo, where.revision)
    ready = _prepare(api, where, contents, card, head)
    done = _commit(api, where, ready, str(head.sha))
    if where.tag:
        set_tag(api, where.repo, where.tag, done.oid)
    return Published(
        repo=where.repo,
        commit=done.oid,
        url=done.pr_url or f"{endpoint()}/{where.repo}",
        visibility=visibility,
        created=created,
        pr=done.pr_num,
        tag=where.tag,
        warnings=ready.warnings,
    )


def _ensure_repo(api: HfApi, repo: str, private: bool) -> tuple[bool, str]:
    """Create `repo` where it is missing; whether it is new, and its visibility."""
    visibility = visibility_of(api, repo)
    if visibility is not None:
        return False, visibility
    retrying(lambda: api.create_repo(repo, private=private, exist_ok=True))
    return True, word(private)


def _ensure_branch(api: HfApi, repo: str, revision: str | None) -> ModelInfo:
    """The head of the branch to push to, which is created from main where it is missing."""
    if revision is None or revision.startswith("refs/"):
        return head_of(api, repo, revision)
    if (found := find_head(api, repo, revision)) is not None:
        return found
    retrying(lambda: api.create_branch(repo, branch=revision, exist_ok=True))
    return head_of(api, repo, revision)


def _commit(api: HfApi, where: _Where, ready: _Ready, head: str) -> CommitInfo:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    def once() -> CommitInfo:
        # The client marks operations as done, so each attempt needs its own. A repeated attempt after a commit that
        # did go through finds every file unchanged and makes no second one.
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(name, content) for name, content in sorted(ready.contents.items())
        ]
        operations += [CommitOperationDelete(name) for name in ready.stale]
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
