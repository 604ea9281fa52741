"""The prompts of a run: drawn from a source by a stable hash, with a held-out split that never changes.

    train, heldout, report = load_prompts(spec, recipe_folder, encode)

Which prompts are drawn depends on their text and the seed alone: not on the order of the rows, not on `count`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from hubdistill.errors import InputError
from hubdistill.files import write_atomically
from hubdistill.pairs.bad_rows import use_rows
from hubdistill.pairs.images import ImageStore
from hubdistill.pairs.prompt_draw import Candidate, Draw, Encode, Encoded, Selection
from hubdistill.pairs.prompt_report import PromptReport, counted
from hubdistill.pairs.prompt_rows import Prompt, prompt_id
from hubdistill.pairs.prompt_sources import read_rows
from hubdistill.specs import PreferenceSpec, PromptsSpec, SourceSpec

__all__ = ["Encode", "Encoded", "Prompt", "PromptReport", "load_prompts", "prompt_id", "read_prompts", "save_prompts"]


def heldout_count(spec: SourceSpec) -> int:
    """Prompts to hold out: of a set of questions none."""
    return spec.heldout if isinstance(spec, PromptsSpec | PreferenceSpec) else 0


def load_prompts(
    spec: SourceSpec, base_dir: Path | None, encode: Encode, seed: int = 0, images: ImageStore | None = None
) -> tuple[list[Prompt], list[Prompt], PromptReport]:
    """Draw the training and the held-out prompts, each in the order of its hash.

    Held out are the `heldout` prompts with the smallest hash under one salt; training prompts the `count` smallest
    under another, among the rest. `encode` gives the token ids of the rendered prompt, generation prompt included;
    it is called for candidates only, whose images lie in the store `images` by then. `base_dir` is the recipe's
    folder; None refuses local files.

    Raises InputError, MissingError or HubError naming the file and the row.
    """
    selection = Selection(
        seed, spec.max_tokens, encode, Draw("heldout_key", heldout_count(spec)), Draw("train_key", spec.count),
        images=images, skip_damaged=spec.damaged_images == "skip",
    )  # fmt: skip
    use_rows(read_rows(spec, base_dir), selection.offer)
    train, heldout = selection.train.ordered(), selection.heldout.ordered()
    report = _report(spec, selection, [*train, *heldout])
    if not train:
        raise InputError(f"{spec.dataset}: {counted(report.read, 'row gives', 'rows give')} {_too_few(spec, report)}")
    return [one.prompt for one in train], [one.prompt for one in heldout], report


def _too_few(spec: SourceSpec, report: PromptReport) -> str:
    damaged = f"{report.damaged} with a damaged image, " if report.damaged else ""
    left_out = f"({report.empty} empty, {counted(report.duplicates, 'duplicate')}, {damaged}{report.too_long} longer than {counted(spec.max_tokens, 'token')})"
    if isinstance(spec, PromptsSpec | PreferenceSpec):
        return f"{counted(report.kept_heldout, 'usable prompt')} {left_out}, and {counted(spec.heldout, 'is', 'are')} held out; lower `{spec.key}.heldout`, raise `{spec.key}.max_tokens` or add prompts"
    return f"no usable question {left_out}; raise `{spec.key}.max_tokens` or add questions"


def _report(spec: SourceSpec, selection: Selection, kept: list[Candidate]) -> PromptReport:
    lengths = [one.tokens for one in kept] or [0]
    dropped = selection.empty + selection.duplicates + selection.damaged + selection.too_long() + len(kept)
    names = {name for one in kept for name in one.prompt.images}
    return PromptReport(
        read=selection.read,
        empty=selection.empty,
        duplicates=selection.duplicates,
        disagreeing=len(selection.disagreeing),
        too_long=selection.too_long(),
        not_drawn=selection.read - dropped,
        kept_train=len(selection.train.kept),
        kept_heldout=len(selection.heldout.kept),
        without_response=sum(one.prompt.response is None for one in kept),
        lengths=(min(lengths), median(lengths), max(lengths)),
        asked=spec.count,
        max_tokens=spec.max_tokens,
        damaged=selection.damaged,
        images=len(names),
        image_bytes=sum((selection.images.folder / name).stat().st_size for name in names) if selection.images else 0,
    )


def save_prompts(path: Path, prompts: Sequence[Prompt], encode: Encode) -> None:
    """Write prompts to one Parquet file, atomically: prompt_id, messages (JSON), prompt_ids (int32), response, images
    (names), student_prompt_ids where the student reads prompts in its own way, and of questions answers and group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = [
        ("prompt_id", pa.string()),
        ("messages", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("response", pa.string()),
        ("student_prompt_ids", pa.list_(pa.int32())),
        ("images", pa.list_(pa.string())),
        ("answers", pa.list_(pa.string())),
        ("group", pa.string()),
    ]
    schema = pa.schema(fields)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for start in range(0, len(prompts), 1000):  # token ids as Python lists are large
            rows = [_saved(prompt, encode) for prompt in prompts[start : start + 1000]]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    write_atomically(path, sink.getvalue().to_pybytes())


def _saved(prompt: Prompt, encode: Encode) -> dict[str, object]:
    messages = json.dumps([dict(turn) for turn in prompt.messages], ensure_ascii=False)
    encoded = encode(prompt)
    return {
        "prompt_id": prompt.id,
        "messages": messages,
        "prompt_ids": encoded.teacher,
        "response": prompt.response,
        "student_prompt_ids": encoded.student,
        "images": list(prompt.images),
        "answers": list(prompt.answers),
        "group": prompt.group,
    }


def read_prompts(path: Path) -> list[Prompt]:
    """Read what save_prompts wrote, in its order. Raises InputError when the file is damaged or not ours."""
    return list(_read_saved(path))


def _read_saved(path: Path) -> Iterator[Prompt]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    again = f"{path}: is not a file of prompts that can be read; delete it and run the command again"
    try:
        table = pq.read_table(path, columns=["prompt_id", "messages", "response", "prompt_ids", "student_prompt_ids", "images", "answers", "group"])
        for row in table.to_pylist():
            student = row["student_prompt_ids"]
            yield Prompt(row["prompt_id"], tuple(json.loads(row["messages"])), row["response"], tuple(row["prompt_ids"]),
                         None if student is None else tuple(student), tuple(row["images"]), answers=tuple(row["answers"]), group=row["group"])  # fmt: skip
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as problem:
        raise InputError(f"{again} ({problem})") from problem
