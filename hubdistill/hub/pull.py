"""Fetching a published adapter: one commit, checked before it is loaded, and how to use it.

PEFT turns every Hub failure into "Can't find 'adapter_config.json'" and would load pickles; so the files are resolved,
listed, checked and downloaded here, and PEFT is given a local folder.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hubdistill.errors import HubdistillError, InputError, MissingError
from hubdistill.hub.adapter_check import LARGEST_CONFIG, AdapterFacts, check_adapter, refuse_names
from hubdistill.hub.card_merge import split_card
from hubdistill.hub.failures import endpoint_warning, explained, hub_token, is_unreachable, log, retrying
from hubdistill.hub.names import CARD, CONFIG, FILES, RECIPE, TEMPLATE, WEIGHTS, is_hub_id, require_revision
from hubdistill.hub.snippets import Use, load_snippet, merge_snippet, vllm_snippet
from hubdistill.hub.staging import replacing

T = TypeVar("T")
LARGEST_RECIPE = 256 << 10  # bytes, before anything parses it
_NO_RECIPE = f"{{}}: {RECIPE} is larger than {LARGEST_RECIPE >> 10} KiB and is no recipe. Give a recipe file instead."
LARGEST_TEXT = 16 << 20  # bytes of any other text file


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """A checked adapter: its folder, where it came from (`repo`, `commit` are None for a local folder), its base."""

    folder: Path
    repo: str | None
    commit: str | None
    base: str
    base_revision: str | None
    rank: int
    recipe: Path | None
    chat_template: Path | None
    pipeline_tag: str = "text-generation"


def pull(ref: str, revision: str | None = None, output: Path | None = None, expect_base: str | None = None) -> Pulled:
    """Fetch and check the adapter `ref` (ORG/NAME, or a folder laid out like one), pinned to one commit.

    With `output` the files are copied there, all or nothing; else they stay in the Hub cache (or the folder).
    Raises InputError for an adapter that is broken, hostile, or not made for `expect_base`; MissingError and HubError.
    """
    if Path(ref).is_dir():
        folder, repo, commit = Path(ref), None, None
        _check_folder(folder)
    else:
        repo = _require_ref(ref)
        require_revision(revision)
        folder, commit = _download(repo, revision)
    facts = check_adapter(folder)
    if expect_base is not None and facts.base != expect_base:
        raise InputError(
            f"{ref} is an adapter for {facts.base}, not for {expect_base}. Use it with {facts.base}, or pull another adapter."
        )
    if output is not None:
        folder = _copy(folder, output)
    return _pulled(folder, repo, commit, facts)


def _pulled(folder: Path, repo: str | None, commit: str | None, facts: AdapterFacts) -> Pulled:
    def there(name: str) -> Path | None:
        return folder / name if (folder / name).is_file() else None

    return Pulled(
        folder=folder,
        repo=repo,
        commit=commit,
        base=facts.base,
        base_revision=facts.base_revision,
        rank=facts.rank,
        recipe=there(RECIPE),
        chat_template=there(TEMPLATE),
        pipeline_tag=_pipeline_tag(folder / CARD),
    )


def _pipeline_tag(card: Path) -> str:
    """What the card says the model does, as far as the snippets differ by it; a card that cannot be read is no obstacle."""
    try:
        tag = (
            split_card(card.read_text(encoding="utf-8", errors="replace"))[0].get("pipeline_tag")
            if card.is_file()
            else None
        )
    except InputError as error:
        log.warning("%s", error)
        tag = None
    return "image-text-to-text" if tag == "image-text-to-text" else "text-generation"


def _require_ref(ref: str) -> str:
    if not is_hub_id(ref) or "/" not in ref:
        raise InputError(
            f"{ref!r} is neither a folder nor a Hub repository. Give ORG/NAME, or the path of an existing folder."
        )
    return ref


def _check_folder(folder: Path) -> None:
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()]
    refuse_names(names, str(folder))
    _refuse_links(folder)


def _refuse_links(folder: Path) -> None:
    for path in (folder / name for name in (*FILES, "hubdistill")):
        if path.is_symlink():
            raise InputError(f"{path} is a symlink and could lead anywhere. Replace it by the file itself.")


def _resolve(repo: str, revision: str | None) -> str:
    """The commit of `revision`; a HubError says which of gated, private, offline, down, bad token it is."""
    from huggingface_hub import HfApi

    warning = endpoint_warning()
    if warning and hub_token():
        log.warning(warning)
    with explained(repo, f"fetch {repo}"):
        # Its text is what was asked for ("v0.1"); only `resolved` is the commit.
        return retrying(lambda: HfApi().resolve_revision(repo, revision=revision)).resolved


def _download(repo: str, revision: str | None) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download

    commit = _resolve(repo, revision)
    digests = _check_listing(repo, commit)
    with explained(repo, f"fetch {repo}"):
        folder = Path(retrying(lambda: snapshot_download(repo, revision=commit, allow_patterns=list(FILES))))
    if not (folder / CONFIG).is_file():
        raise MissingError(
            f"{repo} has no {CONFIG} at commit {commit[:12]}, so it is not an adapter. Check the name and the revision."
        )
    for name, digest in digests.items():
        _repair(repo, commit, folder / name, name, digest)
    return folder, commit


def _repair(repo: str, commit: str, path: Path, name: str, digest: str) -> None:
    """Fetch a file again where the cache holds something else than the Hub's listing says."""
    from huggingface_hub import hf_hub_download

    if _sha256(path) == digest:
        return
    log.warning("%s: the cached %s is damaged and is fetched again", repo, name)
    with explained(repo, f"fetch {repo}"):
        path = Path(retrying(lambda: hf_hub_download(repo, name, revision=commit, force_download=True)))
    if _sha256(path) != digest:
        raise InputError(
            f"{repo}: {name} does not have the checksum that the Hub lists. Do not use it; tell its author."
        )


def _check_listing(repo: str, commit: str) -> dict[str, str]:
    """Check names and sizes before anything is downloaded; the sha256 of the files that have one.

    Without a connection there is no listing, and the cache can only hold what an earlier, checked pull fetched.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    tree = _online(repo, lambda: list(HfApi().list_repo_tree(repo, revision=commit, recursive=True)))
    if tree is None:
        return {}
    files = [entry for entry in tree if isinstance(entry, RepoFile)]
    refuse_names([file.path for file in files], repo)
    for file in files:
        largest = {CONFIG: LARGEST_CONFIG, RECIPE: LARGEST_RECIPE}.get(file.path, LARGEST_TEXT)
        if file.path in FILES and file.path != WEIGHTS and file.size > largest:
            raise InputError(
                f"{repo}: {file.path} has {file.size} bytes, more than the {largest} that are accepted. Do not use this repository."
            )
    return {file.path: file.lfs.sha256 for file in files if file.path in FILES and file.lfs is not None}


def _online(repo: str, call: Callable[[], T]) -> T | None:
    """What `call` returns; None where the Hub is unreachable, so that the cache is the only source."""
    try:
        with explained(repo, f"fetch {repo}"):
            return retrying(call, delays=(1.0,))
    except HubdistillError as error:
        if not is_unreachable(error):
            raise
        log.warning("the Hub cannot be reached; %s is taken from the cache", repo)
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copy(folder: Path, output: Path) -> Path:
    with replacing(output) as new:
        for name in FILES:
            if (folder / name).is_file():
                (new / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(folder / name, new / name)
    return output


def fetch_recipe(ref: str, revision: str | None = None) -> Path:
    """The recipe of a published adapter (`hubdistill/recipe.yaml` of ORG/NAME or of a folder), not larger than 256 KiB."""
    if Path(ref).is_dir():
        path = Path(ref) / RECIPE
        _refuse_links(Path(ref))
    else:
        repo = _require_ref(ref)
        require_revision(revision)
        path = _fetch_recipe(repo, _resolve(repo, revision))
    if not path.is_file():
        raise MissingError(
            f"{ref} holds no {RECIPE}, so it was not published by hubdistill. Give a recipe file instead."
        )
    if path.stat().st_size > LARGEST_RECIPE:
        raise InputError(_NO_RECIPE.format(ref))
    return path


def _fetch_recipe(repo: str, commit: str) -> Path:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError
    from huggingface_hub.hf_api import RepoFile

    infos = _online(repo, lambda: HfApi().get_paths_info(repo, RECIPE, revision=commit))
    if any(isinstance(info, RepoFile) and info.size > LARGEST_RECIPE for info in infos or []):
        raise InputError(_NO_RECIPE.format(repo))
    try:
        with explained(repo, f"fetch the recipe of {repo}"):
            return Path(retrying(lambda: hf_hub_download(repo, RECIPE, revision=commit)))
    except MissingError as error:
        if isinstance(error.__cause__, RemoteEntryNotFoundError):
            raise MissingError(
                f"{repo} holds no {RECIPE}, so it was not published by hubdistill. Give a recipe file instead."
            ) from error
        raise


def usage(pulled: Pulled) -> str:
    """How to use the adapter: Python and vLLM, every revision pinned."""
    use = Use(
        base=pulled.base,
        base_commit=pulled.base_revision,
        adapter=pulled.repo or str(pulled.folder),
        revision=pulled.commit,
        rank=pulled.rank,
        pipeline_tag=pulled.pipeline_tag,
        name=(pulled.repo or pulled.folder.resolve().name).rsplit("/", 1)[-1],
        chat_template_file=pulled.chat_template is not None,
        local=pulled.repo is None,
    )
    parts = [f"# transformers and PEFT\n{load_snippet(use)}", f"# merged into the base\n{merge_snippet(use)}"]
    served = vllm_snippet(use)
    return "\n\n".join([*parts, f"# vLLM (shell)\n{served}"] if served else parts)
