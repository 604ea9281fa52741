"""Prompts on the Hub: resolves a dataset to a commit and reads its rows; words every failure of the Hub."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hubdistill.errors import HubdistillError, HubError, InputError, MissingError, RunDirectoryError
from hubdistill.specs import COMMIT, PromptsSpec

NOT_RESOLVED = "not resolved (offline)"
LOGIN = "log in with `hf auth login`"


@dataclass(frozen=True, kw_only=True)
class HubDataset:
    """What the Hub says of a dataset before any row is read; the last three are what its card declares, if it does."""

    commit: str
    license: str | None = None
    columns: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    rows: int | None = None


def hub_problem(problem: Exception, what: str, revision: str | None = None) -> HubdistillError:
    """The error to raise for `problem`, met while asking the Hub for `what` ("model ORG/NAME"), with the fix.

    MissingError for what is not there, InputError for a name that cannot be one, HubError for all else.
    """
    from huggingface_hub import errors as hub

    if isinstance(problem, hub.OfflineModeIsEnabled):
        return HubError(f"{what}: HF_HUB_OFFLINE is set and it is not in the cache; unset it to download")
    if isinstance(problem, hub.LocalEntryNotFoundError):
        return HubError(f"{what}: not in the cache, and the Hub cannot be reached; check the network and HF_ENDPOINT")
    if isinstance(problem, hub.GatedRepoError):
        return HubError(
            f"{what}: gated, and this account has no access; accept its terms on its Hub page, then {LOGIN}"
        )
    if isinstance(problem, hub.RevisionNotFoundError):
        return MissingError(f"{what}: no revision '{revision}'; name a branch, tag or commit that its Hub page lists")
    if isinstance(problem, hub.RepositoryNotFoundError):
        return MissingError(
            f"{what}: not on the Hub, or private; check the spelling, or {LOGIN} to an account that may read it"
        )
    if isinstance(problem, hub.EntryNotFoundError):
        return MissingError(f"{what}: a file is missing ({_line(problem)}); name a repository or revision that has it")
    if isinstance(problem, hub.HFValidationError):
        return InputError(f"{what}: not a Hub id ({_line(problem)}); write ORG/NAME")
    if isinstance(problem, hub.HfHubHTTPError) and problem.response is not None:
        return _refused(problem.response.status_code, what, problem)
    return HubError(
        f"{what}: the Hub cannot be reached ({_line(problem)}); check the network and HF_ENDPOINT, then run the command again"
    )


def _refused(status: int, what: str, problem: Exception) -> HubError:
    fixes = {
        401: f"{LOGIN} again, the token is not valid",
        403: "use a token that may read it",
        429: "wait a few minutes, or log in for a higher limit",
    }
    fix = fixes.get(
        status,
        "run the command again later; https://status.huggingface.co shows outages"
        if status >= 500
        else "check the name and the revision",
    )
    return HubError(f"{what}: the Hub answered {status} ({_line(problem)}); {fix}")


def _line(problem: BaseException) -> str:
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return (lines[0] if lines else type(problem).__name__)[:200]


def find_dataset(spec: PromptsSpec, *, offline: bool = False) -> HubDataset:
    """Resolve the dataset's revision to a commit and read its card; downloads no rows.

    Offline, a revision that is no commit stays NOT_RESOLVED. Raises what `hub_problem` words.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HTTPError

    if offline or constants.HF_HUB_OFFLINE:
        pinned = spec.revision is not None and re.match(COMMIT, spec.revision)
        return HubDataset(commit=str(spec.revision) if pinned else NOT_RESOLVED)
    try:
        info = HfApi().dataset_info(spec.dataset, revision=spec.revision)
        if info.gated:  # its metadata are public, its rows are not
            HfApi().auth_check(spec.dataset, repo_type="dataset")
    except (HTTPError, OSError, ValueError) as problem:
        raise hub_problem(problem, f"dataset {spec.dataset}", spec.revision) from problem
    card = info.card_data.to_dict() if info.card_data else {}
    declared = _declared(card.get("dataset_info"), spec.config)
    splits = {str(split["name"]): split.get("num_examples") for split in declared.get("splits") or []}
    license = card.get("license")
    return HubDataset(commit=str(info.sha), license=", ".join(license) if isinstance(license, list) else license,
                      columns=tuple(str(column["name"]) for column in declared.get("features") or []),
                      splits=tuple(splits), rows=splits.get(spec.split))  # fmt: skip


def _declared(dataset_info: Any, config: str | None) -> Mapping[str, Any]:
    found = dataset_info if isinstance(dataset_info, list) else [dataset_info]
    blocks = [block for block in found if isinstance(block, dict)]
    if config is None and len(blocks) == 1:
        return blocks[0]
    return next((block for block in blocks if block.get("config_name", "default") == (config or "default")), {})


def hub_rows(spec: PromptsSpec) -> Iterator[Mapping[str, Any]]:
    """The rows of the split, one by one, at one commit; memory is that of one row group.

    Raises what `hub_problem` words, and InputError for a split, configuration or file that cannot be used.
    """
    import datasets

    commit = find_dataset(spec).commit
    revision = spec.revision if commit == NOT_RESOLVED else commit
    try:
        yield from datasets.load_dataset(
            spec.dataset, spec.config, split=spec.split, revision=revision, streaming=spec.streaming
        )
    except Exception as problem:  # `datasets` raises every kind, bare ones too; each is worded and chained
        raise _dataset_problem(problem, spec) from problem


def _dataset_problem(problem: Exception, spec: PromptsSpec) -> HubdistillError:
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    what = f"dataset {spec.dataset}"
    chain: list[BaseException] = [problem]
    while cause := (chain[-1].__cause__ or chain[-1].__context__):
        chain.append(cause)
    for link in chain:
        if isinstance(link, HTTPError | LocalEntryNotFoundError | OfflineModeIsEnabled):
            return hub_problem(link, what, spec.revision)
        if isinstance(link, OSError) and link.errno == errno.ENOSPC:
            return RunDirectoryError(
                f"{what}: the disk of the datasets cache is full; free space, set HF_HOME to another disk, or set `prompts.streaming: true`"
            )
    if isinstance(problem, ConnectionError):
        return hub_problem(problem, what)
    if isinstance(problem, DatasetNotFoundError):
        return MissingError(f"{what}: not found ({_line(problem)}); check its name and revision")
    if "Unknown split" in str(problem) or "Config" in str(problem) or "config name" in str(problem).lower():
        return InputError(
            f"{what}: {_line(problem)} Set `prompts.split` and `prompts.config` to what its Hub page lists"
        )
    return InputError(
        f"{what}: its files cannot be read ({_line(chain[-1])}); choose another revision, or download it and name a local file"
    )
