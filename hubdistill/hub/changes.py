"""What a push would change: the files at a branch's head against those to be sent, and the tags that pin them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hubdistill.errors import HubError, InputError
from hubdistill.hub.failures import retrying
from hubdistill.hub.names import CARD, CONFIG, FILES

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

# What `from_pretrained` prefers to the model itself: an adapter (its base is loaded then), and weights in one file to weights in several.
SHADOWS = (CONFIG, "model.safetensors")
_OTHER_TAG = "Choose another tag (`--tag`, or `publish.tag` in the recipe), or delete the tag on the Hub first."


def find_head(api: HfApi, repo: str, revision: str | None) -> ModelInfo | None:
    """The head of a branch with its files; None where there is no such branch."""
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        return head_of(api, repo, revision)
    except RevisionNotFoundError:
        return None


def head_of(api: HfApi, repo: str, revision: str | None) -> ModelInfo:
    """The head of a branch, main without one, with its files."""
    return retrying(lambda: api.model_info(repo, revision=revision, files_metadata=True))


def existing_card(api: HfApi, repo: str, commit: str) -> str:
    """README.md at `commit`; empty where there is none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        path = retrying(lambda: hf_hub_download(repo, CARD, revision=commit))
    except RemoteEntryNotFoundError:
        return ""
    return Path(path).read_text(encoding="utf-8", errors="replace")


def changed_files(at_head: Iterable[RepoSibling], contents: Mapping[str, Path | bytes]) -> list[str]:
    """The names in `contents` that are new or different; `at_head` is the Hub's listing with metadata."""
    there = {file.rfilename: file for file in at_head}
    return sorted(name for name, content in contents.items() if name not in there or not _same(there[name], content))


def _same(file: RepoSibling, content: Path | bytes) -> bool:
    if file.lfs is not None:
        return file.lfs["sha256"] == _digest(content, hashlib.sha256())
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    return file.blob_id == _digest(content, hashlib.sha1(b"blob %d\0" % size))  # git's id of a file


def _digest(content: Path | bytes, digest: hashlib._Hash) -> str:
    if isinstance(content, bytes):
        digest.update(content)
        return digest.hexdigest()
    with content.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def stale_files(at_head: Iterable[RepoSibling], contents: Mapping[str, Path | bytes]) -> list[str]:
    """Files of an adapter that an earlier push left and this one lacks, such as a chat template; never a card."""
    return sorted(name for name in {file.rfilename for file in at_head} & {*FILES} - {CARD} if name not in contents)


def refuse_shadowing(repo: str, at_head: Iterable[RepoSibling], contents: Mapping[str, Path | bytes]) -> None:
    """Before a model is sent: files of its repository that would be loaded in its place.

    Nothing that is there is deleted, for it may be somebody's only copy.
    """
    found = [name for name in SHADOWS if name in {file.rfilename for file in at_head} - contents.keys()]
    if found:
        raise InputError(f"{repo} holds {found[0]}, which would be loaded instead of the model that is pushed; delete it there, or name another repository")


def refuse_moving_tag(api: HfApi, repo: str, tag: str, head: str, changed: Iterable[str]) -> None:
    """Before anything is sent: a tag that is there stays where it is, so only its own files can be pushed under it again."""
    at = _tags(api, repo).get(tag)
    if at is None:
        return
    if at != head:
        raise InputError(f"{repo} has a tag {tag} already, at commit {at[:12]}. {_OTHER_TAG}")
    if names := sorted(changed):
        raise InputError(
            f"{repo} has a tag {tag} already, at commit {at[:12]}, and {', '.join(names)} would change. {_OTHER_TAG}"
        )


def set_tag(api: HfApi, repo: str, tag: str, commit: str) -> None:
    """Tag `commit`; HubError where somebody has set the tag elsewhere since it was looked at."""
    at = _tags(api, repo).get(tag)
    if at is None:
        retrying(lambda: api.create_tag(repo, tag=tag, revision=commit))
    elif at != commit:
        raise HubError(
            f"the files are on the Hub as commit {commit}, but the tag {tag} is at {at[:12]} already. "
            "Push again with another tag (`--tag`, or `publish.tag` in the recipe)."
        )


def _tags(api: HfApi, repo: str) -> dict[str, str]:
    return {ref.name: ref.target_commit for ref in retrying(lambda: api.list_repo_refs(repo)).tags}
