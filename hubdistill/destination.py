"""Where a finished run can go on the Hub: its adapter, its base where that is not there, and the model with both merged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hubdistill.errors import InputError
from hubdistill.finished import load_run, location
from hubdistill.hub.names import require_repo
from hubdistill.hub.run_card import Place

FLAGS = {"repo": "--repo", "base_repo": "--base-repo", "merged_repo": "--merged-repo"}


def check_repositories(repo: str, base_repo: str | None, merged_repo: str | None = None) -> None:
    """Raise InputError for names that cannot be repositories, and for one repository that would hold two of them."""
    for name in filter(None, (repo, base_repo, merged_repo)):
        require_repo(name)
    if merged_repo and merged_repo.casefold() in (repo.casefold(), (base_repo or "").casefold()):
        raise InputError(f"{merged_repo} cannot hold the merged model beside the adapter or its base; {_another('merged_repo')}")
    if base_repo and repo.casefold() == base_repo.casefold():  # to the Hub both are one name
        raise InputError(f"{repo} cannot hold both the adapter and its base; {_another('base_repo')}")


def _another(key: str) -> str:
    return f"name another repository with {FLAGS[key]} (`publish.{key}` in the recipe)"


def destination(path: Path, repo: str, base_repo: str | None, revision: str | None, merged_repo: str | None = None, *, on_main: bool = True) -> tuple[Place, Path | None]:
    """Where the adapter goes, and the folder of its base if that is pushed too; InputError where that is impossible.

    `revision` is what the card pins; `on_main` whether the push goes to the main branch.
    """
    check_repositories(repo, base_repo, merged_repo)
    record = load_run(path)[0]
    found = location(path)
    _check_sources(record, {"repo": repo, "base_repo": base_repo, "merged_repo": merged_repo})
    if any("/" in name.removeprefix("./") or "~" in name for name in record["files_of_this_machine"]):
        raise InputError(f"{path} is of an earlier version and names paths of this machine; write it again: hubdistill run RECIPE --output {path}, finished stages are kept")
    if not found.on_hub and base_repo is None:
        raise InputError(f"the adapter's base is {record['student']['reference']}, which is not on the Hub; add --base-repo ORG/NAME to push it too")
    if merged_repo:
        _check_merged(record, on_main)
    if found.on_hub:
        return Place(repo=repo, base=found.base, base_commit=record["student"]["commit"], revision=revision, merged=merged_repo), None
    return Place(repo=repo, base=str(base_repo), base_commit=None, revision=revision, merged=merged_repo), Path(found.base)


def _check_sources(record: Mapping[str, Any], names: Mapping[str, str | None]) -> None:
    """A push must not write over the models that the run was made from."""
    for role in ("student", "teacher"):
        model = str(record["recipe"][role]["model"])
        for key, name in names.items():
            if name and name.casefold() == model.casefold():
                raise InputError(f"{name} is the {role}'s own repository, and a push would write over it; {_another(key)}")


def _check_merged(record: Mapping[str, Any], on_main: bool) -> None:
    if record["quantization"]:
        raise InputError("--merged-repo (`publish.merged_repo`): a model in 4 bit cannot hold the adapter merged in; publish the adapter alone")
    if record["recipe"]["student"]["trust_remote_code"]:
        raise InputError("--merged-repo (`publish.merged_repo`): the student's code is in its own repository, and a merged copy would lack it; publish the adapter alone")
    if not on_main:
        raise InputError("--merged-repo goes with a push to main alone; leave out --pr and --revision, or push the merged model later")
