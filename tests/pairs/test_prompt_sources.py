"""Files of prompts: every format gives the same rows, and everything that can be wrong names the file, row and fix."""

from __future__ import annotations

import csv
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hubdistill.errors import InputError, MissingError
from hubdistill.pairs.prompt_rows import Row, read_row
from hubdistill.pairs.prompt_sources import check_source, read_rows
from hubdistill.pairs.prompts import Encoded, load_prompts
from hubdistill.specs import PromptsSpec

SHARED = Path(os.environ.get("HUBDISTILL_TEST_DATA", "no data sets"))  # a folder with train/ and eval/
ROWS: list[dict[str, Any]] = [
    {"prompt": 'Say "hi",\nthen stop.', "answer": "hi"},
    {"prompt": "Où?", "answer": None},
    {"prompt": "Why?", "answer": ""},
]


def spec(name: str, **changes: Any) -> PromptsSpec:
    return PromptsSpec(dataset=name, heldout=0, **changes)


def read(path: Path, **changes: Any) -> list[Any]:
    return [read_row(row) for row in read_rows(spec(path.name, **changes), path.parent)]


def write_format(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".jsonl":
        path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(row).encode() for row in rows) + b"\n\n")
    elif path.suffix == ".json":
        path.write_text(json.dumps({"data": rows} if path.stem == "wrapped" else rows, indent=1))
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8-sig") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "wrapped.json", "a.csv", "a.parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    write_format(tmp_path / name, ROWS)
    got = read(tmp_path / name, response_column="answer")
    assert [(prompt.messages[0]["content"], prompt.response) for prompt in got] == [
        ('Say "hi",\nthen stop.', "hi"),
        ("Où?", None),
        ("Why?", None),
    ]
    assert all(len(prompt.messages) == 1 and prompt.messages[0]["role"] == "user" for prompt in got)
    facts = check_source(spec(name, response_column="answer"), tmp_path)
    assert (facts.kind, facts.columns) == ("local", ("prompt", "answer"))
    assert facts.rows == (3 if name in ("a.jsonl", "a.parquet") else None)
    assert len(facts.commit) == 64


def test_chats_of_both_dialects_in_every_format(tmp_path: Path) -> None:
    roles = [
        ("system", "system", "Be brief."),
        ("human", "user", " 1+1? "),
        ("gpt", "assistant", "2"),
        ("human", "user", "2+2?"),
        ("gpt", "assistant", "4"),
    ]
    want = ([{"role": role, "content": text.strip()} for _, role, text in roles[:4]], "4")
    openai = [{"role": role, "content": text} for _, role, text in roles]
    sharegpt = [{"from": name, "value": text} for name, _, text in roles]
    for chat in (openai, sharegpt):
        for name in ("a.jsonl", "a.json", "a.parquet"):
            write_format(tmp_path / name, [{"messages": chat}])
            assert [
                (list(prompt.messages), prompt.response) for prompt in read(tmp_path / name, column="messages")
            ] == [want]
        write_format(tmp_path / "a.csv", [{"messages": json.dumps(chat)}])
        assert [(list(prompt.messages), prompt.response) for prompt in read(tmp_path / "a.csv", column="messages")] == [
            want
        ]


def chat(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


@pytest.mark.parametrize(
    ("value", "prompt", "response"),
    [
        (chat(("user", "a"), ("assistant", "b")), ["a"], "b"),
        (chat(("user", "a"), ("assistant", "b"), ("user", "c")), ["a", "b", "c"], None),
        (chat(("user", "a"), ("system", "b")), ["a"], None),
        (chat(("user", "a"), ("assistant", None)), ["a"], None),
        (chat(("user", "a"), ("assistant", " ")), ["a"], None),
        (chat(("system", ""), ("user", "a")), ["", "a"], None),
        ("[1, 2, 3]", ["[1, 2, 3]"], None),
        ('[citation needed] for "role" x', ['[citation needed] for "role" x'], None),
        ("\u00a0tea\u3000", ["tea"], None),
    ],
)
def test_what_is_prompt_and_what_is_response(value: Any, prompt: list[str], response: str | None) -> None:
    found = read_row(Row("f:row 1", "x", value))
    assert found is not None
    assert [turn["content"] for turn in found.messages] == prompt
    assert found.response == response


@pytest.mark.parametrize(
    "value", ["", " \n", chat(("user", " ")), chat(("system", "s"), ("user", ""), ("assistant", "a"))]
)
def test_a_prompt_without_text_is_left_out(value: Any) -> None:
    assert read_row(Row("f:row 1", "x", value)) is None


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "the prompt is null"),
        (7, "holds a number"),
        (True, "holds true or false"),
        (b"x", "holds bytes"),
        ({"role": "user", "content": "a"}, "holds an object"),
        ([], "no user turn"),
        (chat(("assistant", "a")), "no user turn"),
        (chat(("tool", "a"), ("user", "b")), "turn 1 has role 'tool'"),
        (chat(("User", "a")), "turn 1 has role 'User'"),
        ([{"content": "a"}], "turn 1 has role None"),
        (["a"], "turn 1 is a text"),
        (chat(("user", "a"), ("assistant", ""), ("user", "b")), "turn 2 is empty"),
        (chat(("user", None)), "turn 1 has no content"),
        (chat(("user", 3)), "the content of turn 1 is a number"),
        (
            chat(("user", [{"type": "image"}, {"type": "text", "text": "what?"}])),
            "turn 1 is made of parts, such as images",
        ),
        ("a\0b", "NUL"),
        ("x" * (2**20 + 1), "1,048,577 characters"),
        ("\ud83d", "half a character"),
        ("[{'role': 'user', 'content': 'a'}]", "is not JSON; write the messages with json.dumps"),
    ],
)
def test_a_row_that_cannot_be_used_names_itself_and_the_fix(value: Any, says: str) -> None:
    with pytest.raises(InputError) as caught:
        read_row(Row("f.jsonl:row 12", "x", value))
    message = str(caught.value)
    assert message.startswith("f.jsonl:row 12 (column 'x'): ")
    assert says in message
    assert "; " in message.split(says.split("; ")[0])[1]
    assert len(message) < 400


def test_a_response_column_must_hold_text() -> None:
    with pytest.raises(InputError, match=r"f:row 1 \(column 'y'\): holds a number; name a column of text"):
        read_row(Row("f:row 1", "x", "a", 7, "y"))


DEEP = b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"
FILES: dict[str, tuple[str, bytes, str]] = {
    "empty": ("a.jsonl", b"", "a.jsonl: is empty; put"),
    "blank": ("a.jsonl", b"\n\n", "a.jsonl: has no rows; put"),
    "latin-1": (
        "a.jsonl",
        b'{"prompt": "a"}\n{"prompt": "caf\xe9"}\n',
        "a.jsonl:row 2: is not UTF-8 .*; save it as UTF-8",
    ),
    "UTF-16": ("a.jsonl", '{"prompt": "a"}'.encode("utf-16"), "a.jsonl: is UTF-16; save it as UTF-8"),
    "not JSON": ("a.jsonl", b'{"prompt": "a"}\n\n{"prompt": \n', "a.jsonl:row 3: is not JSON .*; correct it"),
    "deep": ("a.jsonl", DEEP, "a.jsonl:row 1: is not JSON .*; correct it"),
    "huge number": ("a.jsonl", b'{"prompt": ' + b"9" * 5000 + b"}", "a.jsonl:row 1: is not JSON .*; correct it"),
    "not objects": ("a.jsonl", b'"a"\n', "a.jsonl:row 1: is not an object; write"),
    "a list in .jsonl": ("a.jsonl", b'[{"prompt": "a"}]\n', "is not an object; .*.json file"),
    "NUL": ("a.jsonl", b'{"prompt": "a"}\n\0\0\0\n', "a.jsonl:row 2: holds NUL bytes.*; save it"),
    "escaped NUL": ("a.jsonl", b'{"prompt": "a\\u0000"}\n', r"a.jsonl:row 1 \(column 'prompt'\): holds a NUL"),
    "null": ("a.jsonl", b'{"prompt": null}\n', "the prompt is null; fill it"),
    "near column": ("a.jsonl", b'{"Prompts": "a"}\n', "a.jsonl:row 1: no column 'prompt'; did you mean 'Prompts'\\?"),
    "column": (
        "a.jsonl",
        b'{"text": "a", "id": 1}\n',
        "no column 'prompt'; set `prompts.column` to one of: 'text', 'id'",
    ),
    "later column": ("a.jsonl", b'{"prompt": "a"}\n{"text": "a"}\n', "a.jsonl:row 2: has no 'prompt', which rows before it have; add it, or remove the row"),
    "gzip inside": ("a.jsonl", gzip.compress(b'{"prompt": "a"}'), "a.jsonl: is compressed; unpack"),
    "gzip": ("a.jsonl.gz", gzip.compress(b'{"prompt": "a"}'), "a.jsonl.gz: is compressed; unpack"),
    "long line": ("a.jsonl", b'{"x": "' + b"x" * (17 * 2**20) + b'"}', "a.jsonl:row 1: longer than 16 MiB; write one"),
    "huge text": (
        "a.jsonl",
        b'{"prompt": "' + b"x" * (2**20 + 1) + b'"}',
        r"a.jsonl:row 1 \(column 'prompt'\): holds a text of 1,048,577",
    ),
    "other format": ("a.txt", b"a", "a.txt: not a file that is read here; name a .jsonl"),
    "lines in .json": (
        "a.json",
        b'{"prompt": "a"}\n{"prompt": "b"}\n',
        "a.json: is not JSON .*save JSON lines as .jsonl",
    ),
    "object in .json": ("a.json", b'{"prompt": "a"}', "a.json: is not a list of rows; write"),
    "number in .json": ("a.json", b'[{"prompt": "a"}, 3]', "a.json:row 2: is not an object; write"),
    "no CSV header": ("a.csv", b"Why?,Because\nHow?,So\n", "a.csv: its first line has no column 'prompt'.*header"),
    "CSV commas": ("a.csv", b"prompt,b\nOne, two, three\n", "a.csv:row 1: more cells than the header; put"),
    "CSV short row": ("a.csv", b"id,prompt\n1,a\n2\n", "a.csv:row 2 .*the prompt is null; fill"),
    "CSV open quote": ("a.csv", b'prompt\n"a\nb\n', "a.csv:row 1: is not CSV .*; quote"),
    "CSV latin-1": ("a.csv", b"prompt\nok\ncaf\xe9\n", "a.csv: is not UTF-8 .*; save"),
    "CSV NUL": ("a.csv", b"prompt\na\0b\n", r"a.csv:row 1.*NUL"),
    "parquet": ("a.parquet", b"PAR1 this is none", "a.parquet: is not a readable Parquet file .*; write or download"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_cannot_be_used_says_why_and_what_to_do(tmp_path: Path, case: str) -> None:
    name, data, says = FILES[case]
    (tmp_path / name).write_bytes(data)
    for step in (check_source, lambda spec, base: load_prompts(spec, base, lambda prompt: Encoded([1]))):
        if case == "blank" and step is not check_source:
            says = "0 rows give 0 usable prompts"
        with pytest.raises(InputError, match=says):
            step(spec(name), tmp_path)


def test_a_parquet_file_cut_short_and_a_wrong_column(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"Prompt": ["a"] * 1000}), path)
    with pytest.raises(InputError, match=r"a.parquet: no column 'prompt'; did you mean 'Prompt'"):
        check_source(spec("a.parquet"), tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"a.parquet: is not a readable Parquet file"):
        check_source(spec("a.parquet", column="Prompt"), tmp_path)


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text("{}")
    with pytest.raises(MissingError, match=r"promts.jsonl: no such file in .*; did you mean 'prompts.jsonl'\?"):
        check_source(spec("promts.jsonl"), tmp_path)
    with pytest.raises(FileNotFoundError, match="paths are relative to the recipe"):
        check_source(spec("./nowhere/x.csv"), tmp_path)


def test_folders_pipes_and_local_files_of_a_recipe_from_the_hub_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").mkdir()
    os.mkfifo(tmp_path / "b.jsonl")
    for name in ("a.jsonl", "b.jsonl", "./"):
        with pytest.raises(InputError, match="not a file that is read here"):
            check_source(spec(name), tmp_path)
    with pytest.raises(InputError, match="a recipe from the Hub cannot read local files"):
        check_source(spec("a.jsonl"), None)


def test_an_unreadable_file_is_a_typed_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a"}')
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("runs as root, who may read everything")
    with pytest.raises(InputError, match=r"a.jsonl: cannot be read .*; check its permissions"):
        check_source(spec("a.jsonl"), tmp_path)


def test_check_reads_only_the_first_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}\n' * 500 + "not JSON\n")
    assert check_source(spec("a.jsonl"), tmp_path).rows == 501
    with pytest.raises(InputError, match=r"a.jsonl:row 501: is not JSON"):
        load_prompts(spec("a.jsonl"), tmp_path, lambda prompt: Encoded([1]))


def test_memory_is_bounded(tmp_path: Path) -> None:
    import tracemalloc

    filler = "x" * 2000
    with (tmp_path / "a.jsonl").open("w") as stream:
        stream.writelines(json.dumps({"prompt": f"{i} {filler}"}) + "\n" for i in range(10_000))  # 20 MB of text
    tracemalloc.start()
    load_prompts(spec("a.jsonl", count=50), tmp_path, lambda prompt: Encoded([1]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6  # 10,000 digests and 50 prompts


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not here")
@pytest.mark.parametrize(
    ("name", "column", "rows"),
    [
        ("train/alpaca_en_1k.jsonl", "prompt", 999),
        ("train/gsm8k_train.jsonl", "prompt", 7473),
        ("eval/ultrafeedback_eval.jsonl", "prompt", 2000),
    ],
)
def test_real_data_sets_are_read_whole(name: str, column: str, rows: int) -> None:
    _, _, report = load_prompts(
        PromptsSpec(dataset=name, column=column, heldout=100, max_tokens=10_000), SHARED, lambda prompt: Encoded([1])
    )
    assert report.read == rows
    assert report.kept_train + report.kept_heldout + report.duplicates + report.empty == rows


def test_shipped_data_are_found_from_anywhere_and_in_a_recipe_from_the_hub():
    facts = check_source(PromptsSpec(dataset="shipped:quickstart_prompts.jsonl"), None)
    assert (facts.kind, facts.rows, facts.license) == ("local", 700, "apache-2.0")
    for name in ("shipped:nothing.jsonl", "shipped:../quickstart.yaml", "shipped:/etc/passwd"):
        with pytest.raises(MissingError, match=r"there is quickstart_prompts\.jsonl"):
            check_source(PromptsSpec(dataset=name), None)
