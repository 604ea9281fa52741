"""`teacher.placement: cached`: the teacher's last hidden states of a response set on disk, 2 D bytes a token in bfloat16.

The loss made of them is the exact one, over the whole vocabulary. They lie in `<who>.states/` beside the response set, in
shards of safetensors, with a manifest that says what they are of; it is written last. They are written in the number
format of the teacher, so that reading them gives what the teacher said.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hubdistill.errors import InputError, RunDirectoryError
from hubdistill.files import digest_of, file_sha256, write_json, write_problem
from hubdistill.modalities.base import Row
from hubdistill.processes import ALONE, Processes

if TYPE_CHECKING:
    from hubdistill.modalities.base import Reading
    from hubdistill.pairs.store import Response, ResponseSet

MANIFEST = "manifest.json"
SHARD = 256  # responses in a file: at 300 tokens and D = 4096 in bfloat16, 0.6 GB


@dataclass(frozen=True)
class States:
    """The hidden states of a response set, by prompt id."""

    folder: Path
    places: dict[str, str]  # prompt id -> file

    def of(self, prompt_id: str) -> torch.Tensor:
        """States (n, D) of the n tokens of a response, on the CPU. Raises RunDirectoryError for a file that is damaged."""
        name = self.places[prompt_id]
        try:
            return self._open(name).get_tensor(prompt_id)
        except (OSError, SafetensorError) as problem:
            raise RunDirectoryError(f"{self.folder / name} is damaged ({problem}); delete {self.folder} and run the command again") from problem

    def _open(self, name: str) -> Any:
        if name not in self._files:
            self._files[name] = safe_open(self.folder / name, framework="pt")  # mapped, not read
        return self._files[name]

    @cached_property
    def _files(self) -> dict[str, Any]:
        return {}


def read_states(folder: Path, wanted: str) -> States | None:
    """States that were written for `wanted`; None where they are not there, of something else, or not whole."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if found["digest"] != wanted or any((folder / name).stat().st_size != size for name, size in found["bytes"].items()):
            return None
        return States(folder, dict(found["places"]))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def digest_of_states(responses: ResponseSet, teacher: Sequence[Any]) -> str:
    """What states depend on: the responses, and what decides the teacher's numbers."""
    return digest_of([responses.manifest["sha256"], list(teacher)])


def write_states(folder: Path, wanted: str, responses: Sequence[Response], row_of: Callable[[Response], Row], teacher: Any, reading: Reading, batch: int, *,
                 processes: Processes = ALONE, progress: Callable[[int], None] | None = None) -> States:  # fmt: skip
    """Have the teacher read all responses, `batch` at a time, and keep what it made of them; shards are dealt out to the processes.

    Raises RunDirectoryError where the disk is full.
    """
    if processes.first:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    processes.wait()
    # Rows of like length beside each other, so that little is padding.
    ordered = sorted(responses, key=lambda one: (len(one.prompt_ids) + len(one.response_ids), one.prompt_id), reverse=True)
    shards = {f"{start // SHARD:06}.safetensors": ordered[start : start + SHARD] for start in range(0, len(ordered), SHARD)}
    for name in list(shards)[processes.rank :: processes.size]:
        found = {key: value for rows in _batches(shards[name], batch) for key, value in _read(rows, row_of, teacher, reading)}
        _save(found, folder / name)
        if progress:
            progress(len(shards[name]))
    processes.wait()
    if processes.first:
        files = [folder / name for name in shards]
        write_json(folder / MANIFEST, {"digest": wanted, "bytes": {file.name: file.stat().st_size for file in files}, "sha256": {file.name: file_sha256(file) for file in files},
                                       "places": {one.prompt_id: name for name, rows in shards.items() for one in rows}})  # fmt: skip
    processes.wait()
    states = read_states(folder, wanted)
    if states is None:
        raise InputError(f"{folder} changed while it was written; run the command again")
    return states


def _batches(rows: Sequence[Response], size: int) -> Iterator[Sequence[Response]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


@torch.no_grad()
def _read(responses: Sequence[Response], row_of: Callable[[Response], Row], teacher: Any, reading: Reading) -> Iterator[tuple[str, torch.Tensor]]:
    batch = reading.collate([row_of(response) for response in responses])
    hidden = reading.hidden(teacher, batch.teacher, batch.teacher_rows_N, batch.teacher_columns_N).cpu()
    parts = hidden.split(batch.lengths_B.tolist())
    return ((response.prompt_id, part.contiguous()) for response, part in zip(responses, parts, strict=True))


def _save(tensors: dict[str, torch.Tensor], file: Path) -> None:
    temporary = file.with_suffix(".tmp")
    try:
        save_file(tensors, temporary)
        temporary.replace(file)
    except (OSError, SafetensorError) as problem:  # safetensors has its own words for a full disk
        temporary.unlink(missing_ok=True)
        raise write_problem(problem if isinstance(problem, OSError) else OSError(str(problem)), file) from problem
