"""Responses on disk, token-exact: what was sampled is what is trained on.

A response set is one file of rows (prompt id, prompt ids, response ids, finish reason, seed) and a manifest that says
what produced it. While sampling runs, finished batches lie in `<who>.partial/`, so that a rerun goes on where it
stopped; at the end they become `<who>.parquet`, sorted, so that the same responses always give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hubdistill.errors import InputError
from hubdistill.files import digest_of, file_sha256, write_atomically
from hubdistill.processes import ALONE, Processes

UNUSABLE = "unusable"  # finish reason of an answer that was not given as tokens: it is left out, and not asked for again
SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("response_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
        ("seed", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Question:
    """A prompt as one model sees it: rendered by its template into token ids, with the names of its images."""

    prompt_id: str
    prompt_ids: tuple[int, ...]
    images: tuple[str, ...] = ()


@dataclass(frozen=True)
class Response:
    """A sampled response. `response_ids` ends with the stop token exactly when `finish_reason` is `stop`; it is empty where that is `unusable`."""

    prompt_id: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    finish_reason: str  # "stop", "length" or "unusable"
    seed: int


@dataclass(frozen=True, kw_only=True)
class ResponseHeader:
    """What produced a response set; a set with another header is another set."""

    who: str  # "teacher", "student"
    purpose: str  # "round 1", "held-out"
    model: str
    commit: str
    dtype: str  # of the weights, as the recipe says
    vocab: int  # ids that could be sampled
    adapter: str | None  # digest of the adapter's weights
    template: str  # digest of the chat template
    sampling: dict[str, Any]
    stop_ids: tuple[int, ...]
    engine: str
    engine_version: str
    seed: int
    server: str | None = None  # host that answered, where the engine is one; the same model on another host gives the same set

    @property
    def digest(self) -> str:
        return digest_of({name: value for name, value in asdict(self).items() if name != "server"})


@dataclass(frozen=True)
class ResponseSet:
    """A finished response set, read back as an Arrow table in the order of the prompt ids."""

    table: pa.Table
    manifest: dict[str, Any]

    def __len__(self) -> int:
        return self.table.num_rows

    def rows(self) -> Iterator[Response]:
        for row in self.table.to_pylist():
            yield Response(row["prompt_id"], tuple(row["prompt_ids"]), tuple(row["response_ids"]), row["finish_reason"], row["seed"])


def seed_for(seed: int, purpose: str, who: str, prompt_id: str) -> int:
    """A seed of one prompt's own, so that its noise is the same in a rerun, a resume and another batch."""
    return int.from_bytes(hashlib.sha256(f"{seed}|{purpose}|{who}|{prompt_id}".encode()).digest()[:7], "big")


def collect(folder: Path, header: ResponseHeader, questions: Sequence[Question], sample: Callable[[list[Question]], Iterable[list[Response]]],
            processes: Processes = ALONE) -> ResponseSet:  # fmt: skip
    """Sample what is still missing and finish the set; a finished set with the same header is read back.

    `sample` gets all questions whose answer is not on disk and yields finished batches of responses. Where several
    `processes` collect one set, each yields its share of them, and the first makes the set of all.
    """
    asked = [[question.prompt_id, question.prompt_ids, *([question.images] if question.images else [])] for question in questions]
    wanted = digest_of([header.digest, asked])
    partial = folder / f"{header.who}.partial"
    done = processes.share(_already(folder, header.who, partial, wanted) if processes.first else None)
    if done is not None:
        missing = [question for question in questions if question.prompt_id not in done]
        for batch in sample(missing):
            _write_rows(partial / f"{batch[0].prompt_id}.parquet", batch)
        processes.wait()
        if processes.first:
            answers = _read_partial(partial, wanted)
            _finish(folder, header, wanted, [answers[question.prompt_id] for question in questions])
            shutil.rmtree(partial)
        processes.wait()
    return _must_read(folder, header.who, wanted)


def _already(folder: Path, who: str, partial: Path, wanted: str) -> set[str] | None:
    """The prompts that are answered in a set that is not finished; None where it is."""
    return None if read_responses(folder, who, expect=wanted) is not None else set(_read_partial(partial, wanted))


def _must_read(folder: Path, who: str, wanted: str) -> ResponseSet:
    found = read_responses(folder, who, expect=wanted)
    if found is None:
        raise InputError(f"{folder / who}.parquet changed while it was written; run the command again")
    return found


def _read_partial(partial: Path, wanted: str) -> dict[str, Response]:
    """Responses of an interrupted sampling with the same header and prompts; anything else there is dropped."""
    stamp = partial / "digest"
    if not stamp.is_file() or stamp.read_text() != wanted:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_atomically(stamp, wanted.encode())
    tables = [pq.read_table(path, schema=SCHEMA) for path in sorted(partial.glob("*.parquet"))]
    return {response.prompt_id: response for table in tables for response in ResponseSet(table, {}).rows()}


def _write_rows(path: Path, responses: Sequence[Response]) -> None:
    columns = {name: [getattr(response, name) for response in responses] for name in SCHEMA.names}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=SCHEMA), sink, compression="zstd")
    write_atomically(path, sink.getvalue().to_pybytes())


def _finish(folder: Path, header: ResponseHeader, wanted: str, responses: list[Response]) -> None:
    data = folder / f"{header.who}.parquet"
    _write_rows(data, sorted(responses, key=lambda response: response.prompt_id))
    manifest = asdict(header) | {
        "digest": wanted,
        "file": data.name,
        "sha256": file_sha256(data),
        "rows": len(responses),
        "tokens": sum(len(response.response_ids) for response in responses),
        "truncated": sum(response.finish_reason == "length" for response in responses),
        "unusable": sum(response.finish_reason == UNUSABLE for response in responses),
    }
    write_atomically(folder / f"{header.who}.json", (json.dumps(manifest, indent=2) + "\n").encode())


def read_responses(folder: Path, who: str, *, expect: str | None = None) -> ResponseSet | None:
    """Read a finished set; None when it is not there, damaged, or (with `expect`) of another digest."""
    manifest_path, data = folder / f"{who}.json", folder / f"{who}.parquet"
    if not (manifest_path.is_file() and data.is_file()):
        return None
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    if not isinstance(manifest, dict) or manifest.get("sha256") != file_sha256(data):
        return None
    if expect is not None and manifest.get("digest") != expect:
        return None
    return ResponseSet(pq.read_table(data, schema=SCHEMA), manifest)
