"""Rows that cannot be used: each names file, row, column and fix, several are told at once, and what is left out is said."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hubdistill.errors import InputError
from hubdistill.pairs import bad_rows
from hubdistill.pairs.images import ImageStore
from hubdistill.pairs.prompt_report import counted
from hubdistill.pairs.prompt_sources import check_source
from hubdistill.pairs.prompts import Encoded, Prompt, load_prompts
from hubdistill.specs import PromptsSpec, QuestionsSpec, SourceSpec

ASKED: dict[str, Any] = {"question": "what colour?", "answers": ["red"], "image": "red.png"}
QUESTIONS = QuestionsSpec(dataset="q.jsonl", column="question", image_column="image").under("evaluate[2].questions")
PROMPTS = PromptsSpec(dataset="q.jsonl", column="question", image_column="image", heldout=0)


def one_token(prompt: Prompt) -> Encoded:
    return Encoded([1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (9, 7), "red").save(tmp_path / "red.png")
    return tmp_path


def load(folder: Path, spec: SourceSpec, *rows: dict[str, Any]) -> tuple[list[Prompt], Any]:
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, _, report = load_prompts(spec, folder, one_token, 0, ImageStore(folder / "store", 10**6))
    return found, report


def refused(folder: Path, spec: SourceSpec, *rows: dict[str, Any]) -> str:
    with pytest.raises(InputError) as caught:
        load(folder, spec, *rows)
    return str(caught.value)


@pytest.mark.parametrize(("answers", "what"), [
    (None, "holds null"), ([], "holds an empty list"), ("", "holds an empty answer"), (" \n", "holds an empty answer"), (["red", ""], "holds an empty answer"),
    ([""] * 10, "holds an empty answer"), ([None, "red"], "holds null in its list"), ([{"answer": None}], "holds null in its list"), (3, "holds a number"),
])  # fmt: skip
def test_a_question_without_a_right_answer_is_refused_with_the_fix(folder: Path, answers: Any, what: str):
    said = refused(folder, QUESTIONS, ASKED, ASKED | {"question": "which?", "answers": answers})
    assert said == f"q.jsonl:row 2 (column 'answers'): {what}; an answer is a text, or a list of texts: write it, or remove the row"


def test_one_annotator_of_many_may_have_said_nothing(folder: Path):
    (found,), _ = load(folder, QUESTIONS, ASKED | {"answers": ["red", "red", "", "dark red"]})
    assert found.answers == ("red", "red", "", "dark red")


@pytest.mark.parametrize("text", ["", "  ", "<image>", [{"role": "user", "content": [{"type": "image"}]}]])
def test_an_image_without_a_question_is_refused_and_as_a_prompt_left_out_and_counted(folder: Path, text: Any):
    said = refused(folder, QUESTIONS, ASKED | {"question": text})
    assert said == "q.jsonl:row 1 (column 'question'): has an image and no question about it; write the question, or remove the row"
    (kept,), report = load(folder, PROMPTS, ASKED, ASKED | {"question": text})
    assert kept.images
    assert report.empty == 1
    assert "left out: 1 empty" in report.lines()


def test_an_image_alone_after_what_was_asked_of_it_is_a_prompt(folder: Path):
    chat = [{"role": "user", "content": "name what I show you"}, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "<image>"}]
    (kept,), _ = load(folder, PROMPTS, {"question": chat, "image": "red.png"})
    assert kept.messages[-1]["content"] == [{"type": "image"}]


@pytest.mark.parametrize(("spec", "key"), [(QUESTIONS, "evaluate[2].questions"), (PROMPTS, "prompts")], ids=["questions", "prompts"])
def test_null_in_a_list_of_images_is_refused_or_skipped(folder: Path, spec: SourceSpec, key: str):
    said = refused(folder, spec, ASKED | {"image": ["red.png", None]})
    assert said == (
        "q.jsonl:row 1 (column 'image', image 2 of 2): holds a list with null in it; take null out of the list, or write null for the whole cell of a row "
        f"without image; or skip such rows with `{key}.damaged_images: skip`"
    )
    _, report = load(folder, spec.model_copy(update={"damaged_images": "skip"}), ASKED, ASKED | {"image": [None]})
    assert report.damaged == 1


def bomb() -> bytes:
    """The header of a PNG of 30,000 x 30,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + struct.pack(">I", 9) + b"IDAT"


def moving() -> bytes:
    frames, out = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")], io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    return out.getvalue()


@pytest.mark.parametrize(("data", "what"), [(b"hello", "is not an image"), (bomb(), "has too many pixels"), (moving(), "has several frames"), (b"", "is empty"),
                                            (None, "cut short")], ids=["text", "bomb", "moving", "empty", "cut"])  # fmt: skip
def test_an_image_that_cannot_be_used_names_its_file_column_and_block(folder: Path, data: bytes | None, what: str):
    (folder / "bad.png").write_bytes((folder / "red.png").read_bytes()[:-30] if data is None else data)
    for spec in (QUESTIONS, PROMPTS):
        said = refused(folder, spec, ASKED, ASKED | {"image": ["red.png", "bad.png"]})
        assert said.startswith("q.jsonl:row 2 (column 'image', image 2 of 2): names 'bad.png', which ")
        assert what in said
        assert said.endswith(f"; or skip such rows with `{spec.key}.damaged_images: skip`")


def test_an_image_that_is_in_the_data_has_no_name(folder: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([ASKED | {"image": {"bytes": moving(), "path": None}}]), folder / "q.parquet")
    with pytest.raises(InputError, match=r"q.parquet:row 1 \(column 'image'\): holds an image that has several frames"):
        load_prompts(PROMPTS.model_copy(update={"dataset": "q.parquet"}), folder, one_token, 0, ImageStore(folder / "store", 10**6))


@pytest.mark.parametrize(("spec", "lacking", "fix"), [
    (QUESTIONS, "image", "write null there for a row without image"), (QUESTIONS, "answers", "add it, or remove the row"), (QUESTIONS, "question", "add it, or remove the row"),
    (QUESTIONS.model_copy(update={"type_column": "type"}), "type", "write null there for a question without type"),
    (PROMPTS.model_copy(update={"response_column": "answers"}), "answers", "write null there for a row without response"),
])  # fmt: skip
def test_a_row_that_lacks_a_column_is_told_what_to_write_there(folder: Path, spec: SourceSpec, lacking: str, fix: str):
    row = {**ASKED, "answers": "red", "type": "colour"}
    said = refused(folder, spec, row, {key: value for key, value in row.items() if key != lacking})
    assert said == f"q.jsonl:row 2: has no '{lacking}', which rows before it have; {fix}"


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("spec", [QUESTIONS, PROMPTS], ids=["questions", "prompts"])
def test_a_wrong_column_names_its_key(folder: Path, suffix: str, spec: SourceSpec):
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist([{"question": "what?", "answers": "red", "images": "red.png"}])
    (folder / "q.jsonl").write_text(json.dumps(table.to_pylist()[0]))
    pyarrow.csv.write_csv(table, folder / "q.csv")
    pq.write_table(table, folder / "q.parquet")
    named = spec.model_copy(update={"dataset": f"q.{suffix}"})
    with pytest.raises(InputError) as caught:
        check_source(named, folder)
    assert str(caught.value).startswith(f"{spec.key}.image_column: q.{suffix}:")
    assert "no column 'image'; did you mean 'images'?" in str(caught.value)
    with pytest.raises(InputError) as caught:
        check_source(named.model_copy(update={"column": "zzz"}), folder)
    assert str(caught.value).startswith(f"{spec.key}.column: q.{suffix}:")


def test_questions_that_disagree_are_counted_and_said(folder: Path):
    rows = [ASKED, ASKED, ASKED | {"answers": ["blue"]}, ASKED | {"question": "which?"}, ASKED | {"question": "which?"}]
    for order in (1, -1):
        _, report = load(folder, QUESTIONS, *rows[::order])
        assert (report.duplicates, report.disagreeing) == (3, 1)
        assert "1 question is there with different answers; the first in alphabetical order is kept" in report.lines("question")
    _, report = load(folder, PROMPTS.model_copy(update={"response_column": "r"}), ASKED | {"r": "a"}, ASKED | {"r": "b"})
    assert report.disagreeing == 0  # several responses to a prompt are what preference data sets have


def test_a_type_may_not_be_called_as_the_control_is(folder: Path):
    spec = QUESTIONS.model_copy(update={"type_column": "type"})
    said = refused(folder, spec, ASKED | {"type": "No image"})
    assert said.startswith("q.jsonl:row 1 (column 'type'): the type 'No image' is what results call")
    assert said.endswith("or leave out `evaluate[2].questions.type_column`")
    (found,), _ = load(folder, spec, ASKED | {"type": " "})
    assert found.group is None


def test_the_instruction_comes_after_the_last_turn_of_a_chat_too(folder: Path):
    spec = QUESTIONS.model_copy(update={"instruction": "One word. "})
    chat = [{"role": "user", "content": "look"}, {"role": "assistant", "content": "yes"}, {"role": "user", "content": [{"type": "text", "text": "what is"}, {"type": "image"}]}]
    (found,), _ = load(folder, spec, ASKED | {"question": chat})
    assert found.messages[-1]["content"] == [{"type": "text", "text": "what is"}, {"type": "image"}, {"type": "text", "text": "One word."}]
    (as_text,), _ = load(folder, spec, ASKED | {"question": json.dumps(chat)})
    assert as_text == found
    (plain,), _ = load(folder, spec, ASKED | {"question": "what?", "image": None})
    assert plain.messages[-1]["content"] == "what?\nOne word."
    assert plain.id != load(folder, QUESTIONS, ASKED | {"question": "what?", "image": None})[0][0].id


def test_several_bad_rows_are_told_at_once(folder: Path):
    bad = [ASKED | {"answers": None}, ASKED | {"image": "gone.png"}, {"question": "what?"}, ASKED | {"question": 7}]
    lines = refused(folder, QUESTIONS, ASKED, *bad).splitlines()
    assert [line.partition(" (")[0].partition(": ")[0] for line in lines] == ["q.jsonl:row 2", "q.jsonl:row 3", "q.jsonl:row 4", "q.jsonl:row 5"]
    lines = refused(folder, QUESTIONS, *[ASKED | {"answers": ""}] * 12).splitlines()
    assert len(lines) == bad_rows.TOLD + 1
    assert lines[-1] == "... and 7 more at least; correct these first"
    with pytest.raises(InputError) as caught:
        check_source(QUESTIONS, folder)
    assert len(str(caught.value).splitlines()) == bad_rows.TOLD + 1


def test_rows_are_not_read_to_the_end_for_it(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bad_rows, "AFTER", 2)
    bad = ASKED | {"answers": None}
    assert refused(folder, QUESTIONS, bad, ASKED, ASKED, bad).count("q.jsonl:row") == 1


def test_numbers_agree_with_what_they_count(folder: Path):
    assert (counted(1, "duplicate"), counted(2000, "duplicate"), counted(0, "row gives", "rows give")) == ("1 duplicate", "2,000 duplicates", "0 rows give")
    _, report = load(folder, QUESTIONS, ASKED, ASKED)
    assert report.lines("question")[:2] == ["1 question, from 2 rows", "left out: 1 duplicate"]
    _, report = load(folder, PROMPTS, ASKED)
    assert report.lines()[0] == "1 training prompt, 0 held out, from 1 row"
    assert report.lines()[-2:] == ["1 image, 0.0 MiB on disk, 0.1 KiB a prompt", "1 of them has no ground-truth response"]
