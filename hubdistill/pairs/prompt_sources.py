"""Where prompt rows come from: a local .jsonl, .json, .parquet or .csv file, or a dataset on the Hub."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from hubdistill.errors import InputError, MissingError
from hubdistill.files import file_sha256
from hubdistill.pairs.bad_rows import use_rows
from hubdistill.pairs.image_sources import raw_image
from hubdistill.pairs.images import RawImage
from hubdistill.pairs.prompt_files import MAX_LINE, READERS, Cells, local_rows, must_have
from hubdistill.pairs.prompt_rows import Prompt, Row, read_row
from hubdistill.shipped import SHIPPED, find_data
from hubdistill.specs import PreferenceSpec, QuestionsSpec, SourceSpec

COMPRESSED = (".gz", ".zst", ".bz2", ".xz", ".zip", ".lz4")


@dataclass(frozen=True, kw_only=True)
class SourceFacts:
    """What `plan` knows of the prompts before they are drawn."""

    reference: str  # as the recipe names it
    kind: str  # "local" or "hub"
    commit: str  # Hub commit, NOT_RESOLVED, or the sha256 of a local file
    columns: tuple[str, ...]  # empty where the Hub does not say
    rows: int | None  # None where counting would need reading
    license: str | None = None
    responses: bool | None = None  # whether any of the first rows has a ground-truth response; None where they were not read


def local_file(spec: SourceSpec, base_dir: Path | None) -> Path | None:
    """The local file that `spec.dataset` names, or None for a Hub dataset.

    Raises MissingError or InputError for a local file that is not there or of a format that is not read, and for any
    local file where `base_dir` is None (a recipe from the Hub).
    """
    name = spec.dataset
    if name.startswith(SHIPPED):
        return find_data(name.removeprefix(SHIPPED))
    suffixes = (*READERS, *COMPRESSED, ".txt", ".tsv", ".xlsx", ".jsonlines", ".ndjson", ".arrow")
    if not (name.startswith(("./", "../", "/", "~")) or name.lower().endswith(suffixes)):
        return None
    if base_dir is None:
        raise InputError(
            f"{name}: a recipe from the Hub cannot read local files; download the recipe first, or name a Hub dataset"
        )
    path = base_dir / Path(name).expanduser()
    if name.lower().endswith(COMPRESSED):
        raise InputError(f"{name}: is compressed; unpack it and name the unpacked file")
    if not path.exists():
        raise MissingError(f"{name}: no such file in {path.parent}; {_similar_file(path)}")
    if not path.is_file() or path.suffix.lower() not in READERS:
        raise InputError(f"{name}: not a file that is read here; name a .jsonl, .json, .parquet or .csv file")
    return path


def _similar_file(path: Path) -> str:
    names = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    found = difflib.get_close_matches(path.name, names, n=1)
    return f"did you mean '{found[0]}'?" if found else "paths are relative to the recipe"


def read_rows(spec: SourceSpec, base_dir: Path | None) -> Iterator[Row]:
    """All rows of the source, in its order. Raises InputError, MissingError or HubError naming file and row."""
    path = local_file(spec, base_dir)
    if path is None:
        from hubdistill.pairs.hub_dataset import hub_rows

        rows: Iterable[tuple[int, Cells]] = enumerate(hub_rows(spec), 1)
        source = f"dataset {spec.dataset} ({spec.split})"
    else:
        rows, source = local_rows(path, spec), spec.dataset
    known: set[str] = set()  # columns that rows before had
    for number, cells in rows:
        yield _row(spec, path, f"{source}:row {number}", cells, known)


def _row(spec: SourceSpec, path: Path | None, where: str, cells: Cells, known: set[str]) -> Row:
    """A row of the data. What is wrong with it alone comes as its `problem`, so that the rows after it are read too."""
    found: dict[str, Any] = {}
    for field, column in spec.columns.items():
        if column in known and column not in cells:
            return Row(where, column, None, problem=InputError(f"{where}: has no '{column}', which rows before it have; {_fill(spec, field)}"))
        or_else = f"; or {_fill(spec, field)}" if field == "image_column" else ""
        must_have(column, list(cells), where, f"{spec.key}.{field}", or_else)
        found[field] = cells[column]
    known.update(spec.columns.values())
    row = Row(where, spec.column, found["column"], found.get("response_column"), spec.response_column, image_column=spec.image_column, key=spec.key)
    if isinstance(spec, QuestionsSpec):
        row = replace(row, question=spec, group=found.get("type_column"))
    if isinstance(spec, PreferenceSpec):
        row = _preference(row, spec, found)
    return _with_images(row, found["image_column"], spec, path) if spec.image_column else row


def _preference(row: Row, spec: PreferenceSpec, found: dict[str, Any]) -> Row:
    return replace(row, response_column=spec.response_column, rejected=found["rejected_column"], rejected_column=spec.rejected_column)


def _fill(spec: SourceSpec, field: str) -> str:
    """What to write into a row that lacks a column."""
    if field == "column" or (field in ("response_column", "rejected_column") and isinstance(spec, QuestionsSpec | PreferenceSpec)):
        return "add it, or remove the row"
    what = {"image_column": "a row without image", "response_column": "a row without response", "type_column": "a question without type"}
    return f"write null there for {what[field]}"


def _with_images(row: Row, cell: Any, spec: SourceSpec, path: Path | None) -> Row:
    """The row with the bytes of its images; a row whose cell is null or an empty list has none."""
    cells = cell if isinstance(cell, list) else [] if cell is None else [cell]
    images: list[RawImage] = []
    for source in cells:
        try:
            if source is None:  # whether an image is missing here nobody can tell
                raise InputError("holds a list with null in it; take null out of the list, or write null for the whole cell of a row without image")
            images.append(raw_image(source, path.parent if path else None, trusted_paths=path is None and _downloaded(source)))
        except InputError as problem:
            if spec.damaged_images == "skip":
                return replace(row, damaged=True)
            return replace(row, problem=row.image_error(str(problem), len(images), len(cells)))
    return replace(row, images=tuple(images))


def _downloaded(source: Any) -> bool:
    """Whether a {bytes, path} names a file that `datasets` fetched; its path may also be a text that the data's author wrote."""
    from huggingface_hub import constants

    name = source.get("path") if isinstance(source, dict) else None
    return isinstance(name, str) and Path(name).resolve().is_relative_to(Path(constants.HF_HOME).resolve())


def check_source(spec: SourceSpec, base_dir: Path | None, *, offline: bool = False) -> SourceFacts:
    """Whether the prompts can be read, for `plan`: the first rows of a local file, the commit of a Hub dataset.

    Downloads no rows. Raises InputError, MissingError or HubError, each with the fix. With `offline`, a Hub dataset
    whose revision is no commit stays NOT_RESOLVED.
    """
    path = local_file(spec, base_dir)
    return _check_hub(spec, offline) if path is None else _check_local(spec, base_dir, path)


def _check_hub(spec: SourceSpec, offline: bool) -> SourceFacts:
    from hubdistill.pairs.hub_dataset import find_dataset

    found = find_dataset(spec, offline=offline)
    what = f"dataset {spec.dataset}"
    for field, column in spec.columns.items() if found.columns else ():
        must_have(column, list(found.columns), what, f"{spec.key}.{field}")
    if found.splits and spec.split not in found.splits:
        raise InputError(f"{what}: no split '{spec.split}'; set `{spec.key}.split` to one of: {', '.join(found.splits)}")
    facts: dict[str, Any] = {
        "commit": found.commit,
        "columns": found.columns,
        "rows": found.rows,
        "license": found.license,
    }
    return SourceFacts(reference=spec.dataset, kind="hub", **facts)


def _check_local(spec: SourceSpec, base_dir: Path | None, path: Path) -> SourceFacts:
    found: list[Prompt | None] = []
    use_rows(islice(read_rows(spec, base_dir), 20), lambda row: found.append(None if row.damaged else read_row(row)))
    if not found:
        raise InputError(f"{spec.dataset}: has no rows; put one prompt in each row")
    responses = any(prompt and prompt.response for prompt in found)
    facts: dict[str, Any] = {"commit": file_sha256(path), "responses": responses, "columns": _columns(path, spec), "rows": _count(path)}
    if spec.dataset.startswith(SHIPPED):
        facts["license"] = "apache-2.0"  # recipes/data/README.md
    return SourceFacts(reference=spec.dataset, kind="local", **facts)


def _columns(path: Path, spec: SourceSpec) -> tuple[str, ...]:
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet as pq

        return tuple(pq.read_schema(path).names)
    return tuple(next(local_rows(path, spec))[1])


def _count(path: Path) -> int | None:
    if path.suffix.lower() == ".jsonl":
        with path.open("rb") as stream:
            return sum(1 for line in iter(lambda: stream.readline(MAX_LINE), b"") if line.strip())
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet as pq

        return int(pq.read_metadata(path).num_rows)
    return None
