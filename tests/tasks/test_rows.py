"""Questions of benchmarks: columns of the Hub's and of other files, what is wrong with a file, and no network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hubdistill.errors import HubError, InputError, MissingError
from hubdistill.specs import COMMIT
from hubdistill.tasks.catalog import TASKS, Benchmark, benchmark
from hubdistill.tasks.rows import read

SUM = {"question": "What is 1 + 2?", "answer": "1 + 2 = <<1+2=3>>3\n#### 3"}


def named(path: Path, rows: list[dict], task: str = "gsm8k", **settings) -> Benchmark:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return benchmark(task, dataset=path.name, base_dir=path.parent, allow_code_execution=True, **settings)


def test_rows_in_the_columns_of_the_hub_and_of_other_files_are_the_same(tmp_path):
    other = {"id": "sum/1", "prompt": SUM["question"], "reference": SUM["answer"], "answer": "3"}
    ours, theirs = (read(named(tmp_path / "a.jsonl", [row])) for row in (SUM, other))
    assert ours.rows == theirs.rows == (SUM,)
    assert (ours.ids, theirs.ids) == (("gsm8k-1",), ("sum-1",))  # an id may name a file


def test_a_limit_asks_the_first_questions_and_leaves_the_others_for_examples(tmp_path):
    found = read(named(tmp_path / "a.jsonl", [SUM | {"id": str(i)} for i in range(5)], limit=2))
    assert [name for name, _ in found.questions] == ["0", "1"]
    assert len(found.rows) == 5
    assert found.digest != read(named(tmp_path / "a.jsonl", [SUM | {"id": str(i)} for i in range(5)], limit=3)).digest


def test_mbpp_reads_three_ways_of_writing_it(tmp_path):
    want = {"prompt": "Double it.", "tests": ["assert twice(2) == 4"], "setup": "import math"}
    rows = [
        {"task_id": 1, "text": "Double it.", "test_list": want["tests"], "test_setup_code": "import math"},
        {"task_id": "Mbpp/2", "prompt": "Double it.", "test_list": want["tests"], "test_imports": ["import math"], "test": "assert twice(2) == 4"},
        {"id": "3", "prompt": "Double it.", "tests": want["tests"], "setup": "import math"},
    ]
    first, second, third = read(named(tmp_path / "a.jsonl", rows, "mbpp")).rows
    assert first == third == want
    assert second == want | {"setup": ["import math"], "test": "assert twice(2) == 4"}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([SUM, {"question": "?"}], "a.jsonl:row 2: no 'reference' or 'answer', which GSM8K needs; its columns are question"),
        ([SUM | {"id": "x"}, SUM | {"id": "x"}], "two questions are called 'x'"),
        ([], "is empty"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_its_row(tmp_path, rows, words):
    with pytest.raises(InputError, match=words):
        read(named(tmp_path / "a.jsonl", rows))


def test_other_formats_and_missing_files_are_told(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,answer\n1,2\n")
    with pytest.raises(InputError, match=r"evaluate\[0\].dataset: a.csv: .*\.jsonl or \.json"):
        read(benchmark("gsm8k", dataset="a.csv", base_dir=tmp_path, key="evaluate[0].dataset"))
    with pytest.raises(MissingError, match=r"b\.jsonl: no such file"):
        read(benchmark("gsm8k", dataset="b.jsonl", base_dir=tmp_path))


@pytest.mark.parametrize("task", TASKS)
def test_without_network_the_error_names_the_key_and_a_local_file(task, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"go online .* or name a local \.jsonl file: evaluate\[2\]\.dataset"):
        read(benchmark(task, allow_code_execution=True, key="evaluate[2].dataset"))


def test_every_data_set_of_the_hub_is_pinned_to_a_commit():
    import re

    assert all(re.match(COMMIT, task.hub.revision or "") for task in TASKS.values())


def test_programs_are_run_only_where_it_is_said():
    for task in ("humaneval", "mbpp"):
        with pytest.raises(InputError, match=r"runs programs that the models write.*allow_code_execution: true"):
            benchmark(task)
    assert not benchmark("gsm8k").task.runs_code
    with pytest.raises(InputError, match="choose one of gsm8k, math, ifeval, humaneval, mbpp"):
        benchmark("mmlu")
