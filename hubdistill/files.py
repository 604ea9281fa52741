"""Files written whole or not at all, and the digests that tell whether they changed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

from hubdistill.errors import RunDirectoryError


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` in one step (temporary file, fsync, rename). Raises RunDirectoryError with the fix."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not tempfile: its files are for their owner alone, and a run directory may be read by a group.
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
        try:
            with temporary.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as problem:
        raise write_problem(problem, path) from problem


def write_problem(problem: OSError, path: Path, option: str = "--output") -> RunDirectoryError:
    """The error for a file that cannot be written, with the fix for its cause; `option` is what chooses the place."""
    other_place = f"choose another place with {option}"
    fixes = {
        errno.ENOSPC: "the disk is full; free some space and run the same command again, finished stages are kept",
        errno.EROFS: f"the file system is read-only; {other_place}",
        errno.EACCES: f"permission denied to user id {os.geteuid()}; let it write there (chown; for a container: --user), or {other_place}",
        errno.ENOENT: f"its folder is not there; make that folder, or {other_place}",
        errno.ENOTDIR: f"a part of the path is a file; {other_place}",
        errno.EEXIST: f"a part of the path is a file; {other_place}",
    }
    other = f"{problem.strerror or problem}; {other_place}"
    return RunDirectoryError(f"cannot write {path}: {fixes.get(problem.errno or 0, other)}")


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_atomically(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_sha256(folder: Path) -> str:
    """Digest of every file below a folder, by relative name and content."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return digest_of([(path.relative_to(folder).as_posix(), file_sha256(path)) for path in files])


def digest_of(value: Any) -> str:
    """Digest of a JSON-able value; equal values give equal digests whatever the order of their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode()).hexdigest()


def publish_folder(work: Path, folder: Path) -> None:
    """Move a finished folder into place in one step; another process may have been first, then its result stands."""
    try:
        os.replace(work, folder)
    except OSError:
        if not (folder / "config.json").is_file():
            raise
