"""Fetching a published adapter: one commit, checked before it is loaded, and how to use it.

PEFT turns every Hub failure into "Can't find 'adapter_config.json'" and would load pickles; so the files are resolved,
listed, checked and downloaded here, and PEFT is given a local folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hubdistill.errors import HubdistillError, InputError, MissingError
from hubdistill.hub.adapter_check import LARGEST_CONFIG, AdapterFacts, check_adapter, refuse_names
from hubdistill.hub.card_use import CardUse, card_use
from hubdistill.hub.failures import DELAYS, endpoint_warning, explained, hub_token, is_unreachable, log, retrying
from hubdistill.hub.names import CARD, CONFIG, FILES, RECIPE, TEMPLATE, WEIGHTS, is_hub_id, require_revision
from hubdistill.hub.snippets import Use, draft_snippet, load_snippet, merge_snippet, vllm_draft, vllm_snippet
from hubdistill.hub.staging import replacing

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

LARGEST_RECIPE = 256 << 10  # bytes, before anything parses it
_NOT_OURS = f"{{}} holds no {RECIPE}, so it was not published by hubdistill. Give a recipe file instead."
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
    use: CardUse = field(default_factory=CardUse)


def pull(ref: str, revision: str | None = None, output: Path | None = None, expect_base: str | None = None) -> Pulled:
    """Fetch and check the adapter `ref` (ORG/NAME, or a folder laid out like one), pinned to one commit.

    With `output` the files are copied there, all or nothing; else they stay in the Hub cache (or the folder).
    Raises InputError for an adapter that is broken, hostile, or not made for `expect_base`; MissingError and HubError.
    """
    if os.path.isdir(ref):  # not Path's, which raises for a name that is too long
        folder, repo, commit = Path(ref), None, None
        _check_folder(folder)
    else:
        repo = _require_ref(ref)
        require_revision(revision)
        folder, commit = _download(repo, revision)
    facts = check_adapter(folder, local=repo is None)
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
        use=card_use(folder / CARD),
    )


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
        return retrying(lambda: HfApi().resolve_revision(repo, revision=revision), delays=DELAYS[:2]).resolved


def _download(repo: str, revision: str | None) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download

    commit = _resolve(repo, revision)

    def get(local: bool) -> str:
        return snapshot_download(repo, revision=commit, allow_patterns=list(FILES), local_files_only=local)

    files, path = _listed_or_cached(repo, commit, _check_listing, get)
    folder = Path(path)
    if not (folder / CONFIG).is_file():
        raise MissingError(
            f"{repo} has no {CONFIG} at commit {commit[:12]}, so it is not an adapter. Check the name and the revision."
        )
    for file in files:
        if file.lfs is not None and file.rfilename in FILES:
            _repair(repo, commit, folder / file.rfilename, file.rfilename, file.lfs["sha256"])
    return folder, commit


def _listed_or_cached(
    repo: str, commit: str, check: Callable[[str, Sequence[RepoSibling]], None], get: Callable[[bool], str]
) -> tuple[list[RepoSibling], str]:
    """`check` the Hub's listing of `commit`, then `get(local)`; the listing, and what `get` returned.

    Where the Hub is unreachable there is no listing, and the cache can only hold what an earlier, checked pull fetched.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        with explained(repo, f"fetch {repo}"):
            # Not list_repo_tree, which waits 23 seconds for a Hub that is not there.
            info = retrying(lambda: HfApi().model_info(repo, revision=commit, files_metadata=True), delays=DELAYS[:1])
    except HubdistillError as error:
        if not is_unreachable(error):
            raise
        log.warning("the Hub cannot be reached; %s is taken from the cache", repo)
        try:
            return [], get(True)
        except LocalEntryNotFoundError:
            raise error from None  # the first failure says why
    files = list(info.siblings or [])
    check(repo, files)
    with explained(repo, f"fetch {repo}"):
        return files, retrying(lambda: get(False))


def _check_listing(repo: str, files: Sequence[RepoSibling]) -> None:
    """Names and sizes, before anything is downloaded."""
    refuse_names([file.rfilename for file in files], repo)
    for file in files:
        largest = {CONFIG: LARGEST_CONFIG, RECIPE: LARGEST_RECIPE}.get(file.rfilename, LARGEST_TEXT)
        if file.rfilename in FILES and file.rfilename != WEIGHTS and (file.size or 0) > largest:
            raise InputError(
                f"{repo}: {file.rfilename} has {file.size} bytes, more than the {largest} that are accepted. Do not use this repository."
            )


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
    if os.path.isdir(ref):  # not Path's, which raises for a name that is too long
        path = Path(ref) / RECIPE
        _refuse_links(Path(ref))
    else:
        repo = _require_ref(ref)
        require_revision(revision)
        path = _fetch_recipe(repo, _resolve(repo, revision))
    if not path.is_file():
        raise MissingError(_NOT_OURS.format(ref))
    if path.stat().st_size > LARGEST_RECIPE:
        raise InputError(_NO_RECIPE.format(ref))
    return path


def _fetch_recipe(repo: str, commit: str) -> Path:
    from huggingface_hub import hf_hub_download

    def get(local: bool) -> str:
        return hf_hub_download(repo, RECIPE, revision=commit, local_files_only=local)

    return Path(_listed_or_cached(repo, commit, _check_recipe, get)[1])


def _check_recipe(repo: str, files: Sequence[RepoSibling]) -> None:
    sizes = [file.size or 0 for file in files if file.rfilename == RECIPE]
    if not sizes:
        raise MissingError(_NOT_OURS.format(repo))
    if sizes[0] > LARGEST_RECIPE:
        raise InputError(_NO_RECIPE.format(repo))


def usage(pulled: Pulled) -> str:
    """How to use the adapter: Python and vLLM, every revision pinned."""
    use = Use(
        base=pulled.base,
        base_commit=pulled.base_revision,
        adapter=pulled.repo or str(pulled.folder),
        revision=pulled.commit,
        rank=pulled.rank,
        pipeline_tag=pulled.use.pipeline_tag,
        quantization=pulled.use.quantization,
        drafts=pulled.use.drafts,
        name=(pulled.repo or pulled.folder.resolve().name).rsplit("/", 1)[-1],
        chat_template_file=pulled.chat_template is not None,
        local=pulled.repo is None,
    )
    merged, served = merge_snippet(use), vllm_snippet(use)
    parts = [f"# transformers and PEFT\n{load_snippet(use)}"]
    parts += [f"# as the drafter of {use.drafts.verifier}\n{draft_snippet(use)}"] if use.drafts else []
    parts += [f"# merged into the base\n{merged}"] if merged else []
    served = vllm_draft(use.drafts, "./merged") if use.drafts else served
    return "\n\n".join([*parts, f"# vLLM (shell)\n{served}"] if served else parts)
