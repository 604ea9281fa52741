"""Nothing that is published names a path of this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hubdistill.hub.base_publish import check_base_files
from hubdistill.hub.local_names import override_without_paths, short_name, short_names, without_paths
from tests.hub.conftest import safetensors

NAMES = short_names([("/home/me/models/teacher", "/home/me/models/teacher"), ("../x", "/home/me/x"), (".", "/home/me/here")], ["data/rows.jsonl"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/me/models/teacher (layers 0, 1)", "./teacher (layers 0, 1)"),
        ("../x states no licence", "./x states no licence"),
        ("from /home/me/models/teacher.", "from ./teacher."),
        ("/home/me/models/teacher-2", "/home/me/models/teacher-2"),
        ("../../x and a/../x and 0.5.", "../../x and a/../x and 0.5."),
        (".", "./here"),
        ("data/rows.jsonl:row 3", "rows.jsonl:row 3"),
    ],
)
def test_paths_are_replaced_where_they_stand_and_nothing_else_is(text, expected):
    assert without_paths({"a": [text, 3, None]}, NAMES) == {"a": [expected, 3, None]}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("teacher.model=/home/me/models/teacher", "teacher.model=./teacher"),
        ("teacher={model: ../x, dtype: auto}", "teacher={model: ./x, dtype: auto}"),
        ("student.model=/home/me/of an earlier override", "student.model=./of an earlier override"),
        ('student={model: "~/other/model"}', 'student={model: "./model"}'),
        ("teacher.model=org/name", "teacher.model=org/name"),
        ("teacher.revision=~", "teacher.revision=~"),
        ("prompts.dataset=data/rows.jsonl", "prompts.dataset=rows.jsonl"),
    ],
)
def test_overrides_name_no_path(override, expected):
    assert override_without_paths(override, NAMES) == expected


def test_a_reference_without_a_name_takes_that_of_its_place():
    assert [short_name(reference, "/home/me/m") for reference in ("..", "./", "~", "a/..")] == ["./m"] * 4


def test_a_base_is_sent_without_where_it_was_loaded_from(tmp_path: Path):
    texts = {
        "config.json": {"_name_or_path": "/home/me", "text_config": {"_name_or_path": "/home/me"}, "model_type": "llama"},
        "tokenizer_config.json": {"name_or_path": "/home/me", "model_max_length": 8},
        "generation_config.json": {"eos_token_id": 3},
        "vocab.json": {"name_or_path": 0},
    }
    for name, content in texts.items():
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "model.safetensors").write_bytes(safetensors({"w": [2]}))
    contents = check_base_files(tmp_path, "org/base", "---\nlicense: mit\n---\n# Base\n")
    sent = {name: json.loads(value if isinstance(value, bytes) else value.read_text()) for name, value in contents.items() if name.endswith("json")}
    assert sent["config.json"] == {"text_config": {}, "model_type": "llama"}
    assert sent["tokenizer_config.json"] == {"model_max_length": 8}
    assert sent["vocab.json"] == {"name_or_path": 0}, "there it is a token"
    assert contents["generation_config.json"] == tmp_path / "generation_config.json"  # as it is
