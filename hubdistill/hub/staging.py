"""The staging folder: exactly what an adapter's repository will hold, checked before anything leaves the machine.

A run's own folder is never uploaded: it holds optimizer states, logs and pickles. Files are copied by name from an allow-list.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hubdistill.errors import HubdistillError, InputError, MissingError, RunDirectoryError
from hubdistill.files import write_problem
from hubdistill.hub.adapter_check import check_adapter, read_config
from hubdistill.hub.card_check import validate_card
from hubdistill.hub.names import CARD, CONFIG, FILES, WEIGHTS, check_base
from hubdistill.hub.secrets import readable, refuse_secrets


def stage(
    run_files: Mapping[str, Path],
    card: str,
    folder: Path,
    *,
    base: str,
    base_commit: str | None,
    token: str | None = None,
    local: bool = False,
) -> Path:
    """Build `folder` from `run_files` (name in the repository -> file of the run) and `card`; replaces an earlier staging.

    adapter_config.json is rewritten: Hub id and commit of the base, target_modules sorted, keys in a stable order.
    Raises InputError for a file that may not be published, a symlink, a secret (also the value of `token`), or a base
    that is not on the Hub, unless the folder is `local` and will not be pushed.
    """
    if not local:
        if base_commit is None and Path(base).is_dir():  # a folder such as models/tiny looks like ORG/NAME
            check_base(f"./{base}", None)
        check_base(base, base_commit)
    _check_sources(run_files)
    with replacing(folder) as new:
        (new / CARD).write_text(card, encoding="utf-8")
        for name, source in run_files.items():
            target = new / name
            target.parent.mkdir(exist_ok=True)
            if name == CONFIG:
                target.write_text(_own_config(read_config(source), base, base_commit), encoding="utf-8")
            else:
                shutil.copyfile(source, target)
        check_staged(new, token=token, local=local)
    return folder


def _check_sources(run_files: Mapping[str, Path]) -> None:
    for name, source in run_files.items():
        if name not in FILES or name == CARD:
            raise InputError(f"{name!r} may not be published. Only these files are: {', '.join(FILES)}.")
        if source.is_symlink():
            raise InputError(
                f"{source} is a symlink, and following it could publish another file. Replace it by the file itself."
            )
        if not source.is_file():
            raise MissingError(
                f"{source} is not there, so {name} cannot be published. Run the stage that writes it again."
            )
    for name in (CONFIG, WEIGHTS):
        if name not in run_files:
            raise MissingError(f"nothing was given for {name}, and an adapter needs it. Train the adapter first.")


def _own_config(config: Mapping[str, Any], base: str, commit: str | None) -> str:
    modules = config.get("target_modules")
    own = dict(config, base_model_name_or_path=base, revision=commit)
    if isinstance(modules, (list, set, tuple)):
        own["target_modules"] = sorted(modules)  # PEFT keeps a set, whose order changes from run to run
    return json.dumps(own, indent=2, sort_keys=True) + "\n"


def check_staged(folder: Path, *, token: str | None = None, local: bool = False) -> tuple[Path, ...]:
    """The files of a staging folder, sorted; raises InputError unless all of them may be published (or, `local`, kept here)."""
    files = tuple(sorted(path for path in _walk(folder) if not path.is_dir()))
    names = {path.relative_to(folder).as_posix() for path in files}
    if extra := sorted(names - set(FILES)):
        raise InputError(
            f"{folder} holds {extra[0]}, which may not be published. Remove it; only these files are: {', '.join(FILES)}."
        )
    if CARD not in names:
        raise MissingError(f"{folder} has no {CARD}. Stage the run again: hubdistill card writes it.")
    check_adapter(folder, local=local)
    texts = {path.relative_to(folder).as_posix(): readable(path) for path in files}
    refuse_secrets(texts, token=token)
    validate_card(texts[CARD])
    return files


def _walk(folder: Path) -> Iterator[Path]:
    if folder.is_symlink() or not folder.is_dir():
        raise MissingError(f"{folder} is not a staging folder. Stage the run again.")
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise InputError(
                f"{path} is a symlink, and following it could publish another file. Replace it by the file itself."
            )
        yield path


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` when the block ends well; on an error `folder` stays as it was.

    Raises RunDirectoryError where `folder` holds anything that hubdistill would not have put there.
    """
    with _told(folder):
        _refuse_foreign(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        new = work / "new"
        new.mkdir()
        yield new
        with _told(folder):
            _put_in_place(folder, work)
    finally:
        shutil.rmtree(work)


def _put_in_place(folder: Path, work: Path) -> None:
    for path in (work / "new").rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    if folder.is_dir():
        folder.rename(work / "old")
    (work / "new").rename(folder)


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """What the operating system says of `folder`, as an error with the fix."""
    try:
        yield
    except HubdistillError:  # some of ours are OSErrors too
        raise
    except OSError as problem:
        raise write_problem(problem, folder) from problem


def _refuse_foreign(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise RunDirectoryError(f"{folder} exists and is not a folder. Choose another place.")
    if Path.cwd().is_relative_to(folder.resolve()):
        raise RunDirectoryError(f"{folder} is the folder you are in, or holds it, and cannot be replaced. Choose a new folder.")
    held = [p for p in folder.rglob("*") if not p.is_dir()]
    foreign = [p for p in held if p.relative_to(folder).as_posix() not in FILES]
    if held and not (folder / CONFIG).is_file():
        foreign = held  # a README.md alone is somebody's own
    if foreign:
        raise RunDirectoryError(
            f"{folder} holds {foreign[0].name}, which is not part of an adapter, so it is not replaced. Choose a new or an empty folder."
        )
