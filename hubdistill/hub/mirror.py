"""A run's finished stages in a private Hub repository, so that a run that was cut off goes on on another machine.

    hubdistill run R --mirror ORG/NAME

Only what the manifests name goes there, under the same names as in the run directory, one commit a stage; so the
manifests (hubdistill/rundir.py) decide on the new machine what is done, as they do on the old one. What is fetched is
compared with the Hub's listing and with the digests in its manifest, and is put in place only where both agree.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import hubdistill
from hubdistill.errors import HubdistillError, HubError, InputError, RunDirectoryError
from hubdistill.files import write_json
from hubdistill.hub.access import check_access, hub_api
from hubdistill.hub.changes import changed_files, head_of
from hubdistill.hub.failures import UNREAD, explained, hub_token, retrying, status_of
from hubdistill.hub.reproduce import files_of_this_machine
from hubdistill.hub.secrets import SHORTEST_TOKEN
from hubdistill.models.sources import cache_root
from hubdistill.pairs.prompt_report import counted
from hubdistill.plan import Plan
from hubdistill.rundir import MANIFESTS, MARKER, RunDirectory

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

SIGN = "hubdistill-mirror.json"  # by which a mirror is told from other repositories, which are never written to
NO_MATTER = {SIGN, ".gitattributes", "README.md"}
PROMPTS, IMAGES = "prompts", "prompts/images"
ALSO = {"evaluate": "evaluation/*.json"}  # what later commands read besides a stage's outputs
WORK = ".mirror"  # in the run directory: what is being fetched


@dataclass
class Mirror:
    """The mirror of one run directory. `at` is the commit that this process saw or made last."""

    repo: str
    directory: RunDirectory
    note: Callable[[str], None]
    at: str | None = None
    pending: dict[str, None] = field(default_factory=dict)  # stages that are not there yet, in their order

    def fetch(self) -> list[str]:
        """Put the mirror's finished stages where this directory has none; returns their names.

        A stage that is finished here stays. One that arrives damaged is left out, and the run does it again.
        Raises HubError where the Hub cannot be reached: the run would begin anew, and cost as much again.
        """
        work = self.directory.path / WORK
        shutil.rmtree(work, ignore_errors=True)
        with explained(self.repo, f"fetch the state of the run from {self.repo}"):
            head = head_of(hub_api(self.repo), self.repo, None)
            self.at = head.sha
            manifests = [file.rfilename for file in head.siblings or [] if _stage_of(file.rfilename)]
            self._download(head, manifests, work)
            wanted = {name: self._files_of(name, head, work) for name in sorted(map(_stage_of, manifests)) if not self.directory.intact(name)}
            self._download(head, [file for files in wanted.values() for file in files], work)
        fetched = [name for name, files in wanted.items() if self._accept(name, files, head, work)]
        shutil.rmtree(work, ignore_errors=True)
        return fetched

    def _download(self, head: ModelInfo, names: Iterable[str], work: Path) -> None:
        from huggingface_hub import hf_hub_download

        for name in names:
            retrying(lambda name=name: hf_hub_download(self.repo, name, revision=head.sha, local_dir=work))  # type: ignore[misc]

    def _files_of(self, stage: str, head: ModelInfo, work: Path) -> list[str]:
        """The files of a stage by the mirror's own listing; the client refuses names that lead out of a folder."""
        outputs = _outputs(work, stage)
        if any(not _is_inside(output) for output in outputs):
            return []
        listing = [file.rfilename for file in head.siblings or []]
        return [name for name in listing if any(name == output or name.startswith(f"{output}/") for output in outputs) or _is_also(stage, name)]

    def _accept(self, stage: str, files: list[str], head: ModelInfo, work: Path) -> bool:
        """Move a stage's files into place, its manifest last; False where they are not what they should be."""
        found = RunDirectory(work).intact(stage) if files else None
        if found is None or changed_files(head.siblings or [], {name: work / name for name in files}):
            self.note(f"{stage}: the mirror's files are damaged or not all there; it is done again")
            return False
        for name in (*found["outputs"], *(file for file in files if _is_also(stage, file))):
            _replace(work / name, self.directory.path / name)
        write_json(self.directory.path / MANIFESTS / f"{stage}.json", found)
        return True

    def keep(self, stage: str) -> None:
        """Send a finished stage, and those that could not be sent before. A Hub that fails stops no run: it is noted and tried again."""
        self.pending[stage] = None
        for name in [*self.pending]:
            try:
                self._send(name)
            except RunDirectoryError:
                raise
            except InputError as problem:  # of this stage alone
                self.note(f"warning: {name} is not sent to {self.repo}: {problem}")
            except HubdistillError as problem:
                self.note(f"warning: {name} is not in {self.repo} yet; the run goes on, and it is tried again: {problem}")
                return
            else:
                del self.pending[name]

    def close(self) -> None:
        """Raise HubError where finished stages are missing from the mirror after a last try."""
        if self.pending:
            self.keep(next(iter(self.pending)))
        if self.pending:
            raise HubError(f"{self.repo} lacks {', '.join(self.pending)}; they are kept in {self.directory.path}, run the same command again to send them")

    def _send(self, stage: str) -> None:
        contents = self._contents(stage)
        if not contents:
            return
        _refuse_private(contents, self.directory.path)
        with explained(self.repo, f"mirror {stage} to {self.repo}"):
            api = hub_api(self.repo)
            head = head_of(api, self.repo, None)
            if self.at not in (None, head.sha):
                raise self._taken()
            self._commit(api, head, stage, contents)

    def _commit(self, api: Any, head: ModelInfo, stage: str, contents: Mapping[str, Path]) -> None:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        changed = changed_files(head.siblings or [], contents)
        folders = [name for name in _outputs(self.directory.path, stage) if (self.directory.path / name).is_dir()]
        stale = [file.rfilename for file in head.siblings or [] if file.rfilename not in contents and file.rfilename.startswith(tuple(f"{name}/" for name in folders))]
        if not changed and not stale:
            return
        operations = [*(CommitOperationAdd(name, str(contents[name])) for name in changed), *(CommitOperationDelete(name) for name in stale)]
        self.at = None  # until the answer comes: it may be lost after the commit was made
        try:
            done = retrying(lambda: api.create_commit(self.repo, operations, commit_message=f"Stage {stage}", parent_commit=head.sha), statuses=UNREAD)
        except Exception as error:
            if status_of(error) == 412:
                raise self._taken() from error
            raise
        self.at = done.oid

    def _taken(self) -> RunDirectoryError:
        return RunDirectoryError(f"another run writes to {self.repo}; stop one of them, or give each a mirror of its own (--mirror). Finished stages are kept in {self.directory.path}")

    def _contents(self, stage: str) -> dict[str, Path]:
        """Name in the mirror -> file. Prompts with images are read again from their data set instead: they are thousands of files."""
        root = self.directory.path
        if stage == PROMPTS and any((root / IMAGES).glob("*")):
            return {}
        found = [root / MANIFESTS / f"{stage}.json", *(root.glob(ALSO[stage]) if stage in ALSO else ())]
        for output in _outputs(root, stage):
            path = root / output
            found += [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
        return {file.relative_to(root).as_posix(): file for file in found}


def check_mirror(repo: str, plan: Plan) -> str:
    """Say what a mirror would be, before anything is done; writes nothing.

    Raises InputError for a recipe that other machines cannot run, a public repository, and one that holds something
    else; HubError for a token that may not write there.
    """
    if local := files_of_this_machine(plan):
        raise InputError(f"{plan.loaded.path}: {', '.join(local)} {'is' if len(local) == 1 else 'are'} on this machine alone, so no other machine could go on with the run; "
                         "put models and data on the Hub (`hf upload`), and name them by ORG/NAME")  # fmt: skip
    access = check_access(repo)
    if access.visibility != "private":
        raise InputError(f"{repo} is public, and a mirror holds prompts and unfinished work; name another repository with --mirror, or make it private in its settings")
    if access.exists:
        with explained(repo, f"look at {repo}"):
            names = {file.rfilename for file in head_of(hub_api(repo), repo, None).siblings or []}
        if names - NO_MATTER and SIGN not in names:
            raise InputError(f"{repo} holds {sorted(names - NO_MATTER)[0]} and is no mirror of a run; name another repository with --mirror")
    return f"{repo} (private{'' if access.exists else ', created'}) as {access.user}"


def create_mirror(repo: str, extra: Mapping[str, bytes] | None = None) -> None:
    """Create the repository where it is not there, with its sign and the `extra` files; call `check_mirror` first."""
    from huggingface_hub import CommitOperationAdd

    sign = json.dumps({"hubdistill": hubdistill.__version__, "what": "the state of a run; `hubdistill run RECIPE --mirror` of this repository goes on with it"}, indent=2)
    with explained(repo, f"create the mirror {repo}"):
        api = hub_api(repo)
        retrying(lambda: api.create_repo(repo, private=True, exist_ok=True))
        head = head_of(api, repo, None)
        there = {file.rfilename for file in head.siblings or []}
        wanted = {**({} if SIGN in there else {SIGN: sign.encode()}), **(extra or {})}
        if names := changed_files(head.siblings or [], wanted):
            operations = [CommitOperationAdd(name, wanted[name]) for name in names]
            retrying(lambda: api.create_commit(repo, operations, commit_message="The mirror of a run", parent_commit=head.sha), statuses=UNREAD)


def attach(repo: str, directory: RunDirectory, plan: Plan, note: Callable[[str], None]) -> Mirror:
    """Fetch what the mirror has into a locked run directory, and send each stage there as it finishes."""
    create_mirror(repo)
    write_json(directory.path / MARKER, plan.as_dict())  # first: it marks the directory as ours
    mirror = Mirror(repo, directory, note)
    if names := mirror.fetch():
        note(f"{counted(len(names), 'finished stage')} fetched from {repo}")
    directory.kept = mirror.keep
    return mirror


def _outputs(root: Path, stage: str) -> list[str]:
    """The outputs that a stage's manifest below `root` names; none where it is damaged."""
    try:
        return [*json.loads((root / MANIFESTS / f"{stage}.json").read_text(encoding="utf-8"))["outputs"]]
    except (ValueError, LookupError, TypeError):
        return []


def _stage_of(file: str) -> str:
    """The stage whose manifest a file is; empty for others."""
    path = PurePosixPath(file)
    return path.stem if path.suffix == ".json" and path.parent == PurePosixPath(MANIFESTS) else ""


def _is_also(stage: str, file: str) -> bool:
    return stage in ALSO and PurePosixPath(file).match(ALSO[stage])


def _is_inside(name: object) -> bool:
    if not isinstance(name, str) or "\\" in name:
        return False
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and not path.parts[0].startswith(".")


def _replace(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():
        shutil.rmtree(target)
    os.replace(source, target)


def _refuse_private(contents: Mapping[str, Path], folder: Path) -> None:
    """Raise InputError for the Hub token in any text, and for a path of this machine in what hubdistill wrote itself.

    What models said (`evaluation/`) may hold any path; it is text of theirs.
    """
    token = hub_token() or ""
    places = {f"{place}/" for place in (str(folder.resolve()), str(cache_root()), os.path.expanduser("~")) if place not in ("", "/")}
    for name, file in contents.items():
        if file.suffix not in (".json", ".jsonl"):
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        if len(token) >= SHORTEST_TOKEN and token in text:
            raise InputError(f"{name} holds the Hub token; revoke it, and take it out of the data")
        if not name.startswith("evaluation/") and any(place in text for place in places):
            raise InputError(f"{name} names a path of this machine, which is not sent; report it")
