"""Prompts with images: where the images stand, what makes two prompts one, what is kept, and what each bad row comes to."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hubdistill.errors import InputError
from hubdistill.pairs.image_parts import marked, parts_of, place
from hubdistill.pairs.image_sources import state_of_files
from hubdistill.pairs.images import ImageStore
from hubdistill.pairs.prompt_sources import check_source
from hubdistill.pairs.prompts import Encoded, Prompt, load_prompts, read_prompts, save_prompts
from hubdistill.specs import PromptsSpec, QuestionsSpec

IMAGE = {"type": "image"}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def png(seed: int = 0, size: tuple[int, int] = (9, 7)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (seed % 256, 40, 90)).save(out, "PNG")
    return out.getvalue()


def words(prompt: Prompt) -> Encoded:
    """A stand-in for two processors: an image is 4 tokens for the teacher and 9 for the student."""
    plain = sum(len(str(turn["content"]).split()) for turn in prompt.messages)
    return Encoded([1] * (plain + 4 * len(prompt.images)), [1] * (plain + 9 * len(prompt.images)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    return tmp_path


def load(folder: Path, rows: list[Any], **changes: Any) -> tuple[list[Prompt], list[Prompt], Any]:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = PromptsSpec(**({"dataset": "rows.jsonl", "column": "question", "image_column": "image", "heldout": 0, "max_tokens": 100} | changes))
    return load_prompts(spec, folder, words, 0, ImageStore(folder / "store", spec.image_pixels))


@pytest.mark.parametrize(("turns", "images", "placed"), [
    ([("user", "what?")], 1, [[IMAGE, text("what?")]]),
    ([("user", "what?")], 2, [[IMAGE, IMAGE, text("what?")]]),
    ([("user", "what?")], 0, ["what?"]),
    ([("user", "<image>\nwhat?")], 1, [[IMAGE, text("what?")]]),
    ([("user", "this <image> or this <image>?")], 2, [[text("this"), IMAGE, text("or this"), IMAGE, text("?")]]),
    ([("user", "first"), ("assistant", "yes"), ("user", "second")], 1, [[IMAGE, text("first")], "yes", "second"]),
    ([("user", "first"), ("assistant", "yes"), ("user", "<image> second")], 1, ["first", "yes", [IMAGE, text("second")]]),
    ([("system", "be kind"), ("user", [text("look"), IMAGE])], 1, ["be kind", [text("look"), IMAGE]]),
    ([("user", [text("no image here")])], 0, ["no image here"]),
    ([("user", [text("no image here")])], 1, [[IMAGE, text("no image here")]]),
])  # fmt: skip
def test_every_image_has_its_place(turns, images, placed):
    found = place([{"role": role, "content": content} for role, content in turns], images)
    assert [turn["content"] for turn in found] == placed


@pytest.mark.parametrize(("content", "images"), [("<image> what?", 0), ("<image> and <image>", 1), ("<image>", 2), ([IMAGE, IMAGE], 1)])
def test_marks_and_images_that_do_not_match_are_an_error(content, images):
    with pytest.raises(ValueError, match=rf"image placeholders? and {images} image"):
        place([{"role": "user", "content": content}], images)


def test_parts_are_text_and_images_only():
    assert parts_of([{"type": "image", "index": 0, "text": None}, text("a"), {"type": "image_url", "image_url": {}}]) == [IMAGE, text("a"), IMAGE]
    assert marked("<image>") == [IMAGE]
    for wrong in ([{"type": "video"}], [{"type": "text"}], ["plain"], [{"type": "text", "text": 3}], [{"type": "image", "url": "http://10.0.0.1/a.png"}],
                  [{"type": "image", "image": "a.png"}], [{"type": "image_url", "image_url": {"url": "https://a.example/b.png"}}]):  # fmt: skip
        with pytest.raises(ValueError, match=r"has an? (image )?part"):
            parts_of(wrong)


def test_images_and_texts_make_prompts_that_read_back_equal(folder: Path):
    rows = [{"question": "what is it?", "image": "0.png"}, {"question": "what is it?", "image": "1.png"}, {"question": "and these?", "image": ["2.png", "3.png"]},
            {"question": "what is it?", "image": None}, {"question": "what is it?", "image": []}, {"question": "what is it?", "image": "0.png"}]  # fmt: skip
    train, _, report = load(folder, rows)
    assert (report.read, report.duplicates, report.kept_train, report.images) == (6, 2, 4, 4)
    assert sorted(len(prompt.images) for prompt in train) == [0, 1, 1, 2]
    assert len({prompt.id for prompt in train}) == 4
    assert report.image_bytes == sum((folder / "store" / name).stat().st_size for prompt in train for name in prompt.images)
    save_prompts(folder / "train.parquet", train, words)
    for before, after in zip(train, read_prompts(folder / "train.parquet"), strict=True):
        assert (after.id, after.messages, after.images) == (before.id, before.messages, before.images)
        assert len(after.student_prompt_ids or ()) - len(after.prompt_ids) == 5 * len(before.images)
    stored = ImageStore(folder / "store", 10**6)
    assert {stored.open(name).getpixel((0, 0))[0] for prompt in train for name in prompt.images} == {0, 1, 2, 3}


def test_the_store_holds_files_and_no_pixels(folder: Path):
    (folder / "big.png").write_bytes(png(5, (300, 200)))
    train, _, _ = load(folder, [{"question": "a", "image": "0.png"}, {"question": "b", "image": "big.png"}], image_pixels=1024)
    kept = {len(prompt.images) and Image.open(folder / "store" / prompt.images[0]).size for prompt in train}
    assert (9, 7) in kept
    assert max(width * height for width, height in kept) <= 1024
    assert (folder / "0.png").read_bytes() in [path.read_bytes() for path in (folder / "store").iterdir()]  # as it was


def test_prompts_that_are_too_long_for_either_model_are_left_out_and_nothing_is_cut(folder: Path):
    rows = [{"question": "short", "image": "0.png"}, {"question": "short", "image": ["0.png", "1.png"]}, {"question": "short", "image": None}]
    train, _, report = load(folder, rows, max_tokens=25)
    assert (report.kept_train, report.too_long) == (2, 1)  # two images are 18 tokens for the student, and 8 for the teacher
    assert max(len(prompt.images) for prompt in train) == 1


def test_bytes_in_parquet_and_chats_with_parts_are_read(folder: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    chat = [{"role": "user", "content": [IMAGE, text("what is it?")]}, {"role": "assistant", "content": [text("a square")]}]
    rows = [{"messages": json.dumps(chat), "images": [{"bytes": png(7), "path": "x.png"}]}]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    spec = PromptsSpec(dataset="rows.parquet", column="messages", image_column="images", heldout=0)
    (prompt,), _, _ = load_prompts(spec, folder, words, 0, ImageStore(folder / "store", 10**6))
    assert prompt.messages == ({"role": "user", "content": [IMAGE, text("what is it?")]},)
    assert prompt.response == "a square"
    assert check_source(spec, folder).columns == ("messages", "images")


BAD = {
    "missing image": ("gone.png", "which is not there"),
    "text file named .png": ("fake.png", "is not an image"),
    "http URL": ("http://169.254.169.254/latest/meta-data", "not fetched"),
    "animated GIF": ("moving.gif", "only still images"),
    "20000 x 10": ("thin.png", "200 times as long as wide"),
    "number": (3, "no image"),
}


@pytest.fixture
def bad(folder: Path) -> Path:
    (folder / "fake.png").write_text("hello, I am text")
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    Image.new("RGB", (20000, 10)).save(folder / "thin.png")
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(folder / "cmyk.jpg")
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    return folder


@pytest.mark.parametrize("name", BAD)
def test_an_image_that_cannot_be_used_names_its_row_or_is_skipped_and_counted(bad: Path, name: str):
    cell, what = BAD[name]
    rows = [{"question": "fine", "image": "0.png"}, {"question": "not fine", "image": cell}]
    with pytest.raises(InputError, match=rf"rows.jsonl:row 2.*{what}.*damaged_images: skip"):
        load(bad, rows)
    train, _, report = load(bad, rows, damaged_images="skip")
    assert (report.damaged, report.kept_train, report.read) == (1, 1, 2)
    assert "1 with a damaged image" in " ".join(report.lines())
    assert train[0].images


def test_odd_images_that_can_be_used_are_used(bad: Path):
    train, _, report = load(bad, [{"question": "a", "image": "cmyk.jpg"}, {"question": "b", "image": "dot.png"}])
    assert (report.kept_train, report.damaged) == (2, 0)
    store = ImageStore(bad / "store", 10**6)
    assert {store.open(prompt.images[0]).mode for prompt in train} == {"RGB"}


def test_placeholders_without_images_and_images_without_placeholders(folder: Path):
    with pytest.raises(InputError, match=r"row 1 \(column 'question'\): has 1 image placeholder and 0 images; write one <image>"):
        load(folder, [{"question": "<image> what?", "image": None}])
    with pytest.raises(InputError, match="has 1 image placeholder and 2 images"):
        load(folder, [{"question": "<image> what?", "image": ["0.png", "1.png"]}])


def test_without_an_image_column_parts_are_refused_and_a_mark_is_text(folder: Path):
    (train, _, _) = load(folder, [{"question": "the word <image> is text here"}], image_column=None)
    assert train[0].messages[0]["content"] == "the word <image> is text here"
    with pytest.raises(InputError, match=r"made of parts, such as images; .*prompts.image_column"):
        load(folder, [{"question": [{"role": "user", "content": [text("a")]}]}], image_column=None)


def test_questions_carry_all_answers_and_their_type(folder: Path):
    rows = [{"question": "what colour?", "answers": ["red", "red", "crimson"], "image": "0.png", "kind": "colour"},
            {"question": "how many?", "answers": [{"answer": "2", "answer_id": 1}], "image": "1.png", "kind": "count"},
            {"question": "where?", "answers": "here", "image": "2.png", "kind": None}]  # fmt: skip
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = QuestionsSpec(dataset="q.jsonl", column="question", image_column="image", type_column="kind", instruction="One word.")
    found, _, _ = load_prompts(spec, folder, words, 0, ImageStore(folder / "store", 10**6))
    save_prompts(folder / "q.parquet", found, words)
    by_group = {prompt.group: prompt for prompt in read_prompts(folder / "q.parquet")}
    assert by_group["colour"].answers == ("red", "red", "crimson")
    assert by_group["count"].answers == ("2",)
    assert by_group[None].answers == ("here",)
    assert by_group["colour"].messages[0]["content"] == [IMAGE, text("what colour?\nOne word.")]
    (folder / "q.jsonl").write_text(json.dumps({"question": "what?", "answers": 3, "image": None}) + "\n")
    with pytest.raises(InputError, match=r"row 1 \(column 'answers'\): holds a number; an answer is a text"):
        load_prompts(spec.model_copy(update={"type_column": None}), folder, words, 0, ImageStore(folder / "store", 10**6))


@pytest.mark.parametrize("order", [1, -1])
def test_a_question_that_is_there_twice_is_one_question_in_any_order(folder: Path, order: int):
    rows = [{"question": "what colour?", "answers": ["red"] * 4, "image": "0.png"}, {"question": "what colour?", "answers": ["blue"] * 4, "image": "0.png"}]
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[::order]))
    spec = QuestionsSpec(dataset="q.jsonl", column="question", image_column="image")
    found, _, report = load_prompts(spec, folder, words, 0, ImageStore(folder / "store", 10**6))
    assert [prompt.answers for prompt in found] == [("blue",) * 4]
    assert report.duplicates == 1


def test_errors_of_questions_name_their_own_block(folder: Path):
    (folder / "q.jsonl").write_text(json.dumps({"question": "what colour is it?", "answers": "red", "image": "9.png"}) + "\n")
    spec = QuestionsSpec(dataset="q.jsonl", column="question", image_column="image", max_tokens=1)
    for changes, said in (({}, r"or skip such rows with `questions.damaged_images: skip`"), ({"type_column": "kind"}, r"set `questions.type_column` to one of"),
                          ({"image_column": None}, r"no usable question \(0 empty, 0 duplicates, 1 longer than 1 token\); raise `questions.max_tokens`")):  # fmt: skip
        with pytest.raises(InputError, match=said):
            load_prompts(spec.model_copy(update=changes), folder, words, 0, ImageStore(folder / "store", 10**6))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_an_image_replaced_under_its_name_changes_the_state_of_the_files(folder: Path, kind: str):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"question": "what?", "image": ["0.png", None]}, {"question": "and?", "image": ["gone.png"]}]
    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    spec = PromptsSpec(dataset=path.name, column="question", image_column="image")
    before = state_of_files(path, spec)
    assert state_of_files(path, spec) == before
    (folder / "1.png").write_bytes(png(9, (10, 10)))  # no row names it
    assert state_of_files(path, spec) == before
    (folder / "0.png").write_bytes(png(9, (10, 10)))
    after = state_of_files(path, spec)
    assert after != before
    (folder / "gone.png").write_bytes(png(3))
    assert state_of_files(path, spec) not in (before, after)


def test_data_that_hold_their_images_name_no_files(folder: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([{"question": "what?", "image": {"bytes": png(), "path": None}}]), folder / "rows.parquet")
    assert state_of_files(folder / "rows.parquet", PromptsSpec(dataset="rows.parquet", column="question", image_column="image")) == {}
    assert state_of_files(folder / "rows.parquet", PromptsSpec(dataset="rows.parquet", column="question")) == {}
