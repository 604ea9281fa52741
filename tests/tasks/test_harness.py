"""GSM8K, MATH and IFEval through the real lm-eval, without network."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest

from hubdistill.errors import InputError, MissingPackageError
from hubdistill.tasks import harness
from hubdistill.tasks.asking import ask, require
from hubdistill.tasks.candidate import Candidate
from hubdistill.tasks.catalog import benchmark
from hubdistill.tasks.rows import read
from tests import tiny

pytestmark = pytest.mark.slow  # lm-eval takes seconds to import
pytest.importorskip("lm_eval", reason=f"lm-eval is not installed: {harness.INSTALL}")

SUMS = [{"id": f"sum-{i}", "question": f"What is {i} + 1?", "answer": f"It is {i + 1}.\n#### {i + 1}"} for i in range(7)]
BOXED = [{"id": "root", "problem": "What is $\\sqrt{4}$?", "solution": "It is $\\boxed{2}$."}]
ORDERS = [
    {"id": "1", "prompt": "Say hello without commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    {"id": "2", "prompt": "Write in capitals.", "instruction_id_list": ["change_case:english_capital"], "kwargs": [{}]},
    {"id": "3", "prompt": "Write two sentences.", "instruction_id_list": ["length_constraints:number_sentences"], "kwargs": [{"relation": "at least", "num_sentences": 2}]},
]


class Answering(dict):
    """Answers by hand, in the place of those that lie in a folder: what is scored is then known."""

    def keep(self, asked, texts):
        raise AssertionError("everything is answered already")


@pytest.fixture
def tests_of(tmp_path, tokenizer, monkeypatch):
    """(task, rows, text of every answer) -> scores, by a model that is never asked."""

    def run(task, rows, said=None, **settings):
        path = tmp_path / f"{task}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        asked = benchmark(task, dataset=path.name, base_dir=tmp_path, max_tokens=4, **settings)
        model = tiny.make_model(0)
        model.config.max_position_embeddings = 4096  # its positions rotate, and have no end
        loads = []

        def load():
            loads.append(1)
            return nullcontext(model)

        who = Candidate(name="tiny", load=load, tokenizer=tokenizer, stop_ids=(tokenizer.eos_token_id,), identity=("tiny", str(said)), batch_size=2)
        if said is not None:
            memory = Answering()
            monkeypatch.setattr(Answering, "__contains__", lambda self, arguments: True)
            monkeypatch.setattr(Answering, "__getitem__", lambda self, arguments: said)
            monkeypatch.setattr(harness, "_Memory", lambda path: memory)
        return ask(asked, read(asked), who, tmp_path / "kept"), loads

    return run


def test_gsm8k_is_scored_by_both_of_its_filters(tests_of):
    found, _ = tests_of("gsm8k", SUMS, "I think it is 3. No, #### 4", limit=4)
    assert found.values["strict-match"] == {"sum-0": 0.0, "sum-1": 0.0, "sum-2": 0.0, "sum-3": 1.0}
    assert found.values["flexible-extract"] == found.values["strict-match"]
    found, _ = tests_of("gsm8k", SUMS, "I think it is 4.", limit=4)
    assert (sum(found.values["strict-match"].values()), found.values["flexible-extract"]["sum-3"]) == (0.0, 1.0)


def test_math_is_scored(tests_of):
    found, _ = tests_of("math", BOXED, "Final Answer: The final answer is $2$. I hope it is correct.")
    assert found.values == {"math_verify": {"root": 1.0}, "exact_match": {"root": 1.0}}


def test_ifeval_is_scored_and_what_cannot_be_counted_here_is_left_out_and_told(tests_of, monkeypatch):
    import nltk

    def nothing(name, *rest):
        raise LookupError(name)

    with monkeypatch.context() as patch:
        patch.setattr(nltk.data, "find", nothing)
        patch.setattr(nltk, "download", lambda name: False)
        found, _ = tests_of("ifeval", ORDERS, "hello there")
        assert found.values == {"prompt_level_strict_acc": {"1": 1.0, "2": 0.0}, "prompt_level_loose_acc": {"1": 1.0, "2": 0.0}}
        assert "1 of 3 questions" in found.notes[0]
        assert harness.NLTK_DATA in found.notes[0]
        with pytest.raises(InputError, match=r"every question needs NLTK's data"):
            tests_of("ifeval", ORDERS[2:], "hello there")


def test_a_model_is_asked_once_and_an_interrupted_benchmark_goes_on(tests_of, tmp_path, monkeypatch):
    kept = harness._Memory.keep

    def interrupted(memory, asked, texts):
        kept(memory, asked, texts)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(harness._Memory, "keep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tests_of("gsm8k", SUMS, limit=4)
    (answers,) = (tmp_path / "kept").glob("answers-*.jsonl")
    assert len(answers.read_text().split()) >= 2
    answers.write_text(answers.read_text() + '\n["cut of')
    asked = []
    monkeypatch.setattr(harness._Memory, "keep", lambda memory, found, texts: (asked.extend(texts), kept(memory, found, texts)))
    first, loads = tests_of("gsm8k", SUMS, limit=4)
    assert (len(asked), len(loads)) == (2, 1)  # two of four were known
    again, loads = tests_of("gsm8k", SUMS, limit=4)
    assert (again, loads) == (first, [])  # not even loaded
    assert not list((tmp_path / "kept").glob("answers-*"))
    _, loads = tests_of("gsm8k", SUMS, limit=5)
    assert loads == [1]


def test_a_missing_library_is_one_error_with_its_command(monkeypatch):
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"lm_eval is not installed; run: pip install 'hubdistill\[benchmarks\]'"):
        require(benchmark("gsm8k"))


def test_an_answer_longer_than_the_model_is_refused(tmp_path, tokenizer):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(SUMS[0]) + "\n")
    asked = benchmark("gsm8k", dataset=str(path), base_dir=tmp_path, max_tokens=256)
    who = Candidate(name="tiny", load=lambda: nullcontext(tiny.make_model(0)), tokenizer=tokenizer, stop_ids=(0,), identity=("x",))
    with pytest.raises(InputError, match="max_tokens: tiny has room for 256 tokens"):
        ask(asked, read(asked), who, tmp_path / "kept")
