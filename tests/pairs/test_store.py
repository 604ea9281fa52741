"""The pair store: exact round trip, resume, damage, the join."""

import dataclasses

import pytest

from hubdistill.errors import TrainingError
from hubdistill.pairs.join import Pairs
from hubdistill.pairs.store import Question, Response, ResponseHeader, collect, read_responses, seed_for

HEADER = ResponseHeader(who="teacher", purpose="round 1", model="m", commit="c", dtype="float32", vocab=34, adapter=None, template="t",
                        sampling={"temperature": 0.8}, stop_ids=(3,), engine="transformers", engine_version="5", seed=0)  # fmt: skip
QUESTIONS = [Question(f"{i:02d}", (1, 2, i)) for i in range(10)]


def answer(question: Question) -> Response:
    n = int(question.prompt_id)
    ids = (3,) if n == 7 else (5, n, 3) if n % 2 else (5, n)
    return Response(question.prompt_id, question.prompt_ids, ids, "stop" if ids[-1] == 3 else "length", n)


class Engine:
    """Answers in batches of 3 and remembers whom it was asked about; dies after `dies_after` batches."""

    def __init__(self, dies_after: int | None = None):
        self.asked: list[str] = []
        self.dies_after = dies_after

    def __call__(self, questions):
        for number, start in enumerate(range(0, len(questions), 3)):
            if number == self.dies_after:
                raise KeyboardInterrupt
            batch = questions[start : start + 3]
            self.asked += [q.prompt_id for q in batch]
            yield [answer(q) for q in batch]


def test_round_trip_is_exact_and_counted(tmp_path):
    found = collect(tmp_path, HEADER, QUESTIONS, Engine())
    assert list(found.rows()) == [answer(q) for q in QUESTIONS]
    assert found.manifest["rows"] == 10
    assert found.manifest["truncated"] == 5
    assert found.manifest["tokens"] == sum(len(answer(q).response_ids) for q in QUESTIONS)
    assert found.manifest["model"] == "m"
    assert not (tmp_path / "teacher.partial").exists()


def test_an_interrupted_set_goes_on_where_it_stopped_with_the_same_bytes(tmp_path):
    whole = tmp_path / "whole"
    collect(whole, HEADER, QUESTIONS, Engine())
    cut = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        collect(cut, HEADER, QUESTIONS, Engine(dies_after=2))
    second = Engine()
    collect(cut, HEADER, QUESTIONS, second)
    assert second.asked == ["06", "07", "08", "09"]
    assert (cut / "teacher.parquet").read_bytes() == (whole / "teacher.parquet").read_bytes()
    third = Engine()
    collect(cut, HEADER, QUESTIONS, third)
    assert third.asked == []


@pytest.mark.parametrize("change", [{"seed": 1}, {"template": "u"}, {"sampling": {"temperature": 0.7}}, {"adapter": "x"}])
def test_a_partial_set_of_other_settings_is_not_used(tmp_path, change):
    with pytest.raises(KeyboardInterrupt):
        collect(tmp_path, HEADER, QUESTIONS, Engine(dies_after=2))
    other = Engine()
    collect(tmp_path, dataclasses.replace(HEADER, **change), QUESTIONS, other)
    assert len(other.asked) == 10


def test_damage_is_noticed(tmp_path):
    collect(tmp_path, HEADER, QUESTIONS, Engine())
    data = tmp_path / "teacher.parquet"
    data.write_bytes(data.read_bytes()[:-7] + b"garbage")
    assert read_responses(tmp_path, "teacher") is None
    again = Engine()
    assert len(collect(tmp_path, HEADER, QUESTIONS, again)) == 10
    assert len(again.asked) == 10


@pytest.mark.parametrize("text", ["{", "[]", "null", '{"rows": 10}'])
def test_a_damaged_manifest_is_no_set(tmp_path, text):
    collect(tmp_path, HEADER, QUESTIONS, Engine())
    (tmp_path / "teacher.json").write_text(text)
    assert read_responses(tmp_path, "teacher") is None


def test_seeds_depend_on_everything_they_should():
    base = ("round 1", "teacher", "p")
    found = {seed_for(0, *base), seed_for(1, *base), seed_for(0, "round 2", "teacher", "p"), seed_for(0, "round 1", "student", "p"), seed_for(0, "round 1", "teacher", "q")}
    assert len(found) == 5
    assert seed_for(0, *base) == seed_for(0, *base)
    assert all(0 <= seed < 2**63 for seed in found), "they go into an int64 column"


def student_set(folder, questions):
    return collect(folder, dataclasses.replace(HEADER, who="student"), questions, Engine())


def test_pairs_join_by_prompt_id_and_count_what_is_left_out(tmp_path):
    teacher = collect(tmp_path, HEADER, QUESTIONS, Engine())
    student = student_set(tmp_path, QUESTIONS[3:])
    pairs = Pairs(teacher, student)
    assert pairs.report.as_dict() == {"pairs": 6, "unmatched": 3, "empty": 1, "truncated_teacher": 3, "truncated_student": 3}
    assert [pairs[i].prompt_id for i in range(len(pairs))] == ["03", "04", "05", "06", "08", "09"]
    assert pairs[1].teacher_ids == (5, 4)
    assert pairs[0].prompt_ids == (1, 2, 3)


def test_no_pair_at_all_is_an_error_that_says_so(tmp_path):
    with pytest.raises(TrainingError, match="nothing to train on: all 1 pairs have an empty response"):
        Pairs(collect(tmp_path, HEADER, QUESTIONS[7:8], Engine()), student_set(tmp_path, QUESTIONS[7:8]))
