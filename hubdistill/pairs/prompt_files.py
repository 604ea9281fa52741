"""Reads the rows of a local .jsonl, .json, .parquet or .csv file, one by one, and words what is wrong with a file.

Memory is that of a line, a cell or a row group; a .json file is read whole, and its size is capped.
"""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hubdistill.errors import InputError
from hubdistill.specs import SourceSpec

MAX_LINE = 16 * 2**20  # bytes of one row of a .jsonl or .csv file, all columns together
MAX_JSON = 512 * 2**20  # bytes of a .json file

Cells = Mapping[str, Any]


def local_rows(path: Path, spec: SourceSpec) -> Iterator[tuple[int, Cells]]:
    try:
        with path.open("rb") as stream:
            start = stream.read(4)
    except OSError as problem:
        raise InputError(f"{spec.dataset}: cannot be read ({problem.strerror}); check its permissions") from problem
    if not start:
        raise InputError(f"{spec.dataset}: is empty; put one prompt in each row")
    if start.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PK\x03\x04")):
        raise InputError(f"{spec.dataset}: is compressed; unpack it and name the unpacked file")
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{spec.dataset}: is UTF-16; save it as UTF-8")
    yield from READERS[path.suffix.lower()](path, spec)


def _jsonl(path: Path, spec: SourceSpec) -> Iterator[tuple[int, Cells]]:
    with path.open("rb") as stream:
        number = 0
        while line := stream.readline(MAX_LINE + 1):
            number += 1
            where = f"{spec.dataset}:row {number}"
            if len(line) > MAX_LINE:
                raise InputError(f"{where}: longer than {MAX_LINE // 2**20} MiB; write one JSON object in each line")
            if line.strip(b"\xef\xbb\xbf \t\r\n"):
                yield number, _object(_json(line, where), where)


def _json_list(path: Path, spec: SourceSpec) -> Iterator[tuple[int, Cells]]:
    if path.stat().st_size > MAX_JSON:
        raise InputError(
            f"{spec.dataset}: larger than {MAX_JSON // 2**20} MiB; save it as .jsonl, one object in each line"
        )
    found = _json(path.read_bytes(), spec.dataset)
    rows = found.get("data") if isinstance(found, dict) else found
    if not isinstance(rows, list):
        raise InputError(f'{spec.dataset}: is not a list of rows; write [{{...}}, ...] or {{"data": [...]}}')
    for number, row in enumerate(rows, 1):
        yield number, _object(row, f"{spec.dataset}:row {number}")


def _json(data: bytes, where: str) -> Any:
    if b"\0" in data:
        raise InputError(f"{where}: holds NUL bytes, so it is not JSON text; save it as UTF-8")
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as problem:
        raise InputError(
            f"{where}: is not UTF-8 ({problem.reason} at byte {problem.start}); save it as UTF-8"
        ) from problem
    except (ValueError, RecursionError) as problem:
        what = (
            "one object over several lines? Save a list as .json"
            if where.rpartition(":")[2].startswith("row")
            else "save JSON lines as .jsonl"
        )
        raise InputError(f"{where}: is not JSON ({problem}); correct it ({what})") from problem


def _object(row: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise InputError(
            f'{where}: is not an object; write {{"prompt": "..."}} in each row (a list of rows belongs in a .json file)'
        )
    return row


def _csv(path: Path, spec: SourceSpec) -> Iterator[tuple[int, Cells]]:
    csv.field_size_limit(MAX_LINE)
    number = 0
    with path.open(encoding="utf-8-sig", newline="") as stream:
        try:
            # strict: an unclosed quote is an error, not one giant last cell
            reader = csv.DictReader(stream, strict=True)
            if spec.column not in (reader.fieldnames or ()):
                fields = list(reader.fieldnames or ())
                raise InputError(
                    f"{spec.key}.column: {spec.dataset}: its first line has no column '{spec.column}'; {_nearest(spec.column, fields, spec.key + '.column')}, and start the file with a header"
                )
            for number, row in enumerate(reader, 1):
                if None in row:
                    raise InputError(
                        f"{spec.dataset}:row {number}: more cells than the header; put cells with commas in double quotes"
                    )
                yield number, row
        except csv.Error as problem:
            raise InputError(
                f"{spec.dataset}:row {number + 1}: is not CSV ({problem}); quote its cells with double quotes"
            ) from problem
        except UnicodeDecodeError as problem:
            raise InputError(f"{spec.dataset}: is not UTF-8 (after row {number}); save it as UTF-8") from problem


def _parquet(path: Path, spec: SourceSpec) -> Iterator[tuple[int, Cells]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = list(dict.fromkeys(spec.columns.values()))
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            for field, column in spec.columns.items():
                must_have(column, names, spec.dataset, f"{spec.key}.{field}")
            for batch in file.iter_batches(batch_size=256, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError) as problem:
        raise InputError(
            f"{spec.dataset}: is not a readable Parquet file (after row {number}: {str(problem).splitlines()[0][:160]}); write or download it again"
        ) from problem


def must_have(column: str, names: list[str], where: str, key: str, or_else: str = "") -> None:
    """Raise InputError, under the recipe's `key` that names the column, where the data do not have it."""
    if column not in names:
        raise InputError(f"{key}: {where}: no column '{column}'; {_nearest(column, names, key)}{or_else}")


def _nearest(column: str, names: list[str], key: str) -> str:
    found = difflib.get_close_matches(column.lower(), [name.lower() for name in names], n=1)
    guess = next((name for name in names if found and name.lower() == found[0]), None)
    listed = ", ".join(repr(name)[:60] for name in names[:12]) or "none"
    return f"did you mean '{guess}'?" if guess else f"set `{key}` to one of: {listed}"


READERS = {".jsonl": _jsonl, ".json": _json_list, ".csv": _csv, ".parquet": _parquet}
