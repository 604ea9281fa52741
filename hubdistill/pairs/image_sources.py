"""Where a row's images come from: bytes in the data, or files that its cells name. Nothing is fetched.

Errors say what is wrong with the image and the fix; the caller puts the row in front.
"""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Any

from hubdistill.errors import InputError
from hubdistill.pairs.images import MAX_BYTES, RawImage, of_pil, too_large
from hubdistill.pairs.prompt_files import local_rows
from hubdistill.specs import SourceSpec


def raw_image(cell: Any, folder: Path | None, *, trusted_paths: bool = False) -> RawImage:
    """The image of a dataset's cell: bytes, {bytes, path} as `datasets` writes, a PIL image, or a path as text.

    Text paths are relative to `folder`, that of the data file; None (a Hub dataset) refuses them. The path of a
    {bytes, path} is read only with `trusted_paths`, for files that `datasets` downloaded, and where there are no bytes.
    Nothing is fetched. Raises InputError for all that is no image source, and for a file that cannot be read.
    """
    if isinstance(cell, dict) and "bytes" in cell and cell["bytes"] is None and cell.get("path") is not None:
        return RawImage.of(_read(_trusted(cell["path"], trusted_paths)))
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if isinstance(data, bytes | bytearray):
        return RawImage.of(bytes(data))
    if isinstance(cell, str):
        return RawImage.of(_read(_local(cell, folder)), f"names {_show(cell)}, which")
    if decoded := of_pil(cell):
        return decoded
    kind = {type(None): "null", dict: "an object without bytes"}.get(type(cell), f"a value of type {type(cell).__name__}")
    raise InputError(f"holds {kind}, which is no image; give its bytes, {{bytes, path}}, or the path of its file as text")


def _trusted(path: Any, trusted: bool) -> Path:
    # `datasets` writes absolute paths; a relative one would be looked for wherever the command runs.
    if not trusted or not isinstance(path, str) or not Path(path).is_absolute():
        raise InputError(f"has no bytes, only the path {_show(path)}, which is not read; put the bytes into the data file")
    return Path(path)


def _local(text: str, folder: Path | None) -> Path:
    """The file that a text names. Raises InputError for URLs, and for every text of a Hub dataset."""
    scheme = re.match(r"\s*(data:|[a-z][a-z0-9+.-]+:/)", text, re.IGNORECASE)
    if scheme and scheme[1].lower() == "data:":
        raise InputError("is a data: URL, which is not read; decode it, and give the bytes or the path of a file")
    if scheme:  # whoever wrote the data could have this machine call addresses that only it can reach
        raise InputError(f"is the URL {_show(text)}, which is not fetched; download the images and name their files")
    if folder is None:
        raise InputError(f"is the text {_show(text)}; images of a Hub dataset must be in it as bytes: use a local data file for paths")
    if not text.strip():
        raise InputError("is an empty text; give the path of the image's file")
    return folder / text


def _read(path: Path) -> bytes:
    """A file's bytes, of MAX_BYTES + 1 at most."""
    shown = _show(str(path))
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # before it is opened: opening a FIFO waits forever
            raise InputError(f"names {shown}, which is {'a folder' if path.is_dir() else 'no regular file'}; name the image's file")
        if status.st_size > MAX_BYTES:
            raise too_large(f"names {shown}, which")
        with path.open("rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as problem:
        raise InputError(f"names {shown}, which is not there; correct the path (it is relative to the data file's folder)") from problem
    except OSError as problem:
        raise InputError(f"names {shown}, which cannot be read ({problem.strerror or problem}); give a path that can be read") from problem
    except InputError:
        raise
    except ValueError as problem:  # a NUL character, or half a character
        raise InputError(f"is the text {shown}, which is no path; give the path of the image's file") from problem


def state_of_files(path: Path, spec: SourceSpec) -> dict[str, list[int]]:
    """Size and time of each file that a local data file names as an image, by the name that it has there.

    Reads no image. A file that was replaced under its old name changes it, so that the prompts are read again.
    """
    if spec.image_column is None or not _may_name_files(path, spec.image_column):
        return {}
    found: dict[str, list[int]] = {}
    for _, cells in local_rows(path, spec):
        cell = cells.get(spec.image_column)
        for name in cell if isinstance(cell, list) else [cell]:
            if isinstance(name, str) and name not in found:
                found[name] = _state(path.parent / name)
    return found


def _may_name_files(path: Path, column: str) -> bool:
    """A Parquet file with the images' bytes is not read only to see that it names none."""
    if path.suffix.lower() != ".parquet":
        return True
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pq.read_schema(path)
    kind = schema.field(column).type if column in schema.names else None
    inner = kind.value_type if kind is not None and pa.types.is_list(kind) else kind
    return inner is not None and (pa.types.is_string(inner) or pa.types.is_large_string(inner))


def _state(path: Path) -> list[int]:
    try:
        found = path.stat()
    except (OSError, ValueError):  # what is not there, or no path, is refused where the row is read
        return []
    return [found.st_size, found.st_mtime_ns]


def _show(value: Any) -> str:
    text = str(value)
    return repr(text if len(text) <= 300 else text[:300] + "...")
