"""What takes seconds to find out about models or the machine, kept in the user's cache folder between commands."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hubdistill.files import digest_of, file_sha256
from hubdistill.models.sources import cache_root

FOUND_BY = ("estimate/meta.py", "estimate/weights.py", "estimate/machines.py", "models/layers.py", "models/pair_attention.py", "models/load.py", "models/vocab.py")  # code that a value depends on


def kept(key: Any, find: Callable[[], Any], *, anew: bool = False) -> Any:
    """What `find` returned for this key (both JSON-able) when it was last asked, by this code and these libraries; or it is asked `anew`.
    A cache that cannot be read or written is done without."""
    name = digest_of([key, _code()])
    if anew or (found := _read(name)) is None:
        found = find()
        _write(name, found)
    return found


@cache
def _code() -> list[str]:
    package = Path(__file__).parents[1]
    return [file_sha256(package / file) for file in FOUND_BY] + [version(name) for name in ("torch", "transformers", "tokenizers")]


def _open() -> sqlite3.Connection:
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(root / "forecasts.sqlite", timeout=2)
    database.execute("CREATE TABLE IF NOT EXISTS found (name TEXT PRIMARY KEY, value TEXT)")
    return database


def _read(name: str) -> Any:
    try:
        with closing(_open()) as database:
            row = database.execute("SELECT value FROM found WHERE name = ?", (name,)).fetchone()
        return json.loads(row[0]) if row else None
    except (OSError, sqlite3.Error, ValueError):
        return None


def _write(name: str, value: Any) -> None:
    try:
        with closing(_open()) as database, database:
            database.execute("INSERT OR REPLACE INTO found VALUES (?, ?)", (name, json.dumps(value)))
    except (OSError, sqlite3.Error):
        pass
