"""The join against plain dictionaries, on random response sets."""

import random

import pyarrow as pa
import pytest

from hubdistill.errors import TrainingError
from hubdistill.pairs.join import Pair, Pairs
from hubdistill.pairs.store import SCHEMA, ResponseSet

STOP = 3


def response_set(rows: dict[str, tuple[tuple[int, ...], str]], stop_ids=(STOP,), prompt_ids=None) -> ResponseSet:
    """Rows of prompt id -> (response ids, finish reason), in the order given."""
    columns = {
        "prompt_id": list(rows),
        "prompt_ids": [list((prompt_ids or {}).get(key, (1, int(key)))) for key in rows],
        "response_ids": [list(ids) for ids, _ in rows.values()],
        "finish_reason": [reason for _, reason in rows.values()],
        "seed": [0] * len(rows),
    }
    return ResponseSet(pa.table(columns, schema=SCHEMA), {"stop_ids": list(stop_ids)})


def random_rows(generator: random.Random) -> dict[str, tuple[tuple[int, ...], str]]:
    found = {}
    for key in generator.sample(range(40), generator.randint(10, 40)):
        words = tuple(generator.randint(4, 30) for _ in range(generator.choice((0, 0, 1, 2, 5))))
        found[f"{key:02d}"] = (words, "length") if generator.random() < 0.3 else ((*words, STOP), "stop")
    return found


@pytest.mark.parametrize("seed", range(8))
def test_pairs_and_report_are_those_of_plain_dictionaries(seed):
    generator = random.Random(seed)
    teacher, student = random_rows(generator), random_rows(generator)
    pairs = Pairs(response_set(teacher), response_set(student))
    both = [key for key in teacher if key in student]
    used = [key for key in both if teacher[key][0] not in ((), (STOP,)) and student[key][0] not in ((), (STOP,))]
    assert list(pairs) == [Pair(key, (1, int(key)), teacher[key][0], student[key][0]) for key in used]
    assert pairs.report.as_dict() == {
        "pairs": len(used),
        "unmatched": len(set(teacher) ^ set(student)),
        "empty": len(both) - len(used),
        "truncated_teacher": sum(teacher[key][1] == "length" for key in used),
        "truncated_student": sum(student[key][1] == "length" for key in used),
    }
    assert 0 < len(used) < len(both)


def test_token_ids_are_kept_as_they_are():
    teacher, student = {"1": ((5, STOP, 5, 6, STOP), "stop")}, {"1": ((7,), "length")}
    rendered = {"1": (9, 9, 3)}
    (pair,) = Pairs(response_set(teacher, prompt_ids=rendered), response_set(student, prompt_ids=rendered))
    assert pair == Pair("1", (9, 9, 3), (5, STOP, 5, 6, STOP), (7,))


def test_responses_to_prompts_of_other_token_ids_are_not_paired():
    rows = {"1": ((5,), "length"), "2": ((5,), "length")}
    yesterday = response_set(rows, prompt_ids={"1": (1, 1), "2": (9, 24)})
    with pytest.raises(TrainingError, match=r"^prompt 2 was sampled with other token ids"):
        Pairs(yesterday, response_set(rows, prompt_ids={"1": (1, 1), "2": (9, 25)}))


def test_any_stop_token_of_either_side_is_an_empty_response_on_both():
    rows = {"1": ((8,), "stop"), "2": ((5, 8), "stop")}
    for teacher_stops, student_stops in (((8,), (STOP,)), ((STOP,), (8,))):
        pairs = Pairs(response_set(rows, teacher_stops), response_set(rows, student_stops))
        assert [pair.prompt_id for pair in pairs] == ["2"]
        assert pairs.report.empty == 1


@pytest.mark.parametrize(
    ("teacher", "student", "why"),
    [
        ({"1": ((5,), "length")}, {"2": ((5,), "length")}, "no prompt has a response of both models"),
        ({"1": ((), "length"), "2": ((5,), "length")}, {"1": ((5,), "length"), "2": ((STOP,), "stop")}, "all 2 pairs have an empty response"),
        ({}, {}, "no prompt has a response of both models"),
    ],
)
def test_no_pair_is_an_error_that_says_why(teacher, student, why):
    with pytest.raises(TrainingError, match=f"^nothing to train on: {why}; look at the responses"):
        Pairs(response_set(teacher), response_set(student))


def test_places_outside_the_round_are_index_errors():
    rows = {str(i): ((5, i + 4), "length") for i in range(3)}
    pairs = Pairs(response_set(rows), response_set(rows))
    assert pairs[-1] == pairs[2]
    with pytest.raises(IndexError):
        pairs[3]


def test_lengths_count_the_prompt_once_and_widths_for_each_response():
    teacher, student = ({key: (ids, "length") for key, ids in rows.items()} for rows in ({"01": (5, 6, 7), "02": (5,)}, {"01": (8,), "02": (8, 9, 5, 5)}))
    pairs = Pairs(response_set(teacher), response_set(student))  # prompts of two tokens
    assert (pairs.lengths, pairs.widths) == ([2 + 3 + 1, 2 + 1 + 4], [2 * (2 + 3), 2 * (2 + 4)])
    alone = Pairs(response_set(teacher), None)
    assert (alone.lengths, alone.widths) == ([5, 3], [5, 3])
