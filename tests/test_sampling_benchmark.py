"""The table of benchmarks/sampling.py, of numbers that are known; and one of its subjects for real, on a tiny model."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from tests import tiny

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    found = []
    for name in ("sampling", "sampling_subjects"):
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found.append(module)
    yield found
    sys.modules.pop("sampling_subjects", None)


def run_of(sampling, cpu, responses, start=5.0):
    return {"start": start, "sampling": sampling, "cpu": cpu, "responses": responses, "tokens": sum(map(len, responses))}


def test_ratios_are_of_neighbours_in_time(benchmark):
    ours = [run_of(2.0, 1.0, [[1, 2], [3, 4]]), run_of(8.0, 1.0, [[1, 2], [3, 4]], start=7.0)]
    bare = [run_of(1.0, 1.0, [[1, 2], [3, 5]]), run_of(4.0, 2.0, [[1, 2], [3, 5]])]
    ours_row, bare_row = benchmark[0].table({"ours": ours, "bare": bare})[2:]
    assert ours_row == "| hubdistill, vLLM engine | 1 [0, 2] |  |  | 6.0 [5.0, 7.0] | 11.0 [7.0, 15.0] | 4 | 2 of 2 |"
    assert "| 0.50 [0.50, 0.50] | 1.50 [1.00, 2.00] |" in bare_row
    assert bare_row.endswith("| 4 | 1 of 2 |")


def test_a_subject_samples_and_is_timed(benchmark, tmp_path):
    folder = tiny.save(tmp_path / "model", tiny.make_model(1), tiny.make_tokenizer())
    questions = [{"id": f"p{i}", "ids": [4 + i, 9], "seed": i} for i in range(5)]
    job = {"folder": str(tmp_path), "model": str(folder), "adapter": None, "device": "cpu", "dtype": "float32", "stop_ids": [3], "pad_id": 0, "questions": questions,
           "sampling": {"max_tokens": 6, "batch_size": 2}}  # fmt: skip
    (tmp_path / "job.json").write_text(json.dumps(job))
    benchmark[1].main("transformers", tmp_path / "job.json", tmp_path / "result.json")
    found = json.loads((tmp_path / "result.json").read_text())
    assert len(found["responses"]) == 5
    assert found["tokens"] == sum(map(len, found["responses"]))
    assert min(found["start"], found["sampling"]) > 0
    assert found["cpu"] >= 0
