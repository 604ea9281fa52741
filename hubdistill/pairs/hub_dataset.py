"""Prompts on the Hub: resolves a dataset to a commit and reads its rows; words every failure of the Hub."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hubdistill.errors import HubdistillError, InputError, MissingError, RunDirectoryError
from hubdistill.hub_errors import hub_problem
from hubdistill.specs import COMMIT, SourceSpec

NOT_RESOLVED = "not resolved (offline)"


@dataclass(frozen=True, kw_only=True)
class HubDataset:
    """What the Hub says of a dataset before any row is read; the last three are what its card declares, if it does."""

    commit: str
    license: str | None = None
    columns: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    rows: int | None = None


def find_dataset(spec: SourceSpec, *, offline: bool = False) -> HubDataset:
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


def hub_rows(spec: SourceSpec) -> Iterator[Mapping[str, Any]]:
    """The rows of the split, one by one, at one commit; memory is that of one row group.

    Raises what `hub_problem` words, and InputError for a split, configuration or file that cannot be used.
    """
    yield from _read(spec, _undecoded)


def whole_rows(spec: SourceSpec) -> Iterator[Mapping[str, Any]]:
    """`hub_rows` with every column that a row has."""
    yield from _read(spec, lambda rows, spec: rows)


def _read(spec: SourceSpec, chosen: Callable[[Any, SourceSpec], Any]) -> Iterator[Mapping[str, Any]]:
    import datasets

    commit = find_dataset(spec).commit
    revision = spec.revision if commit == NOT_RESOLVED else commit
    try:
        rows = datasets.load_dataset(
            spec.dataset, spec.config, split=spec.split, revision=revision, streaming=spec.streaming
        )
        yield from chosen(rows, spec)
    except Exception as problem:  # `datasets` raises every kind, bare ones too; each is worded and chained
        raise _dataset_problem(problem, spec) from problem


def _undecoded(rows: Any, spec: SourceSpec) -> Any:
    """The columns that are read, with images as the bytes that they are: decoding is the image store's, which knows what to refuse."""
    import datasets

    column, features = spec.image_column, rows.features or {}
    wanted = list(dict.fromkeys(spec.columns.values()))
    if features and all(name in features for name in wanted):  # else the row says what is missing
        rows = rows.select_columns(wanted)
    feature = features.get(column) if column else None
    if isinstance(feature, datasets.Image):
        return rows.cast_column(column, datasets.Image(decode=False))
    if isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.Image):
        return rows.cast_column(column, datasets.List(datasets.Image(decode=False)))
    return rows


def _dataset_problem(problem: Exception, spec: SourceSpec) -> HubdistillError:
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import constants
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    what = f"dataset {spec.dataset}"
    chain = _chain(problem)
    if any(isinstance(link, OSError) and link.errno == errno.ENOSPC for link in chain):
        return RunDirectoryError(
            f"{what}: the disk of the datasets cache is full; free some space, set HF_HOME to another disk, or set `{spec.key}.streaming: true`"
        )
    said = [link for link in chain if isinstance(link, HTTPError | LocalEntryNotFoundError | OfflineModeIsEnabled)]
    if said:
        return hub_problem(said[0], what, spec.revision)
    if isinstance(problem, ConnectionError):  # `datasets` has its own class for offline mode
        offline = constants.HF_HUB_OFFLINE
        return hub_problem(OfflineModeIsEnabled(str(problem)) if offline else problem, what, spec.revision)
    if isinstance(problem, DatasetNotFoundError):
        return MissingError(f"{what}: not found ({_words(problem)}); check its name and revision")
    if re.search(r"(?i)unknown split|bad split|config", str(problem)):
        return InputError(
            f"{what}: {_words(problem)}; set `{spec.key}.split` and `{spec.key}.config` to what its Hub page lists"
        )
    return InputError(
        f"{what}: its files cannot be read ({_words(chain[-1])}); choose another revision, or download it and name a local file"
    )


def _chain(problem: BaseException) -> list[BaseException]:
    links = [problem]
    while cause := (links[-1].__cause__ or links[-1].__context__):
        links.append(cause)
    return links


def _words(problem: BaseException) -> str:
    return (" ".join(str(problem).split()).rstrip(".") or type(problem).__name__)[:200]
