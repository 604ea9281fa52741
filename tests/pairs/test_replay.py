"""The replay buffer, and pairs of one side or of a given number of tokens."""

import pytest

from hubdistill.pairs.join import Pairs, filled
from hubdistill.pairs.replay import replayed
from tests.pairs.test_join import STOP, response_set

PROMPTS = [f"{i:03d}" for i in range(300)]


def round_of(number: int):
    found = response_set({prompt: ((10 * number, int(prompt) + 100, STOP), "stop") for prompt in PROMPTS})
    found.manifest["sha256"] = f"round {number}"
    return found


def test_a_buffer_gives_each_prompt_its_own_answer_of_a_round_drawn_evenly():
    sets = [round_of(1), round_of(2), round_of(3)]
    found = replayed(sets, 0, 3)
    rows = list(found.rows())
    assert [row.prompt_id for row in rows] == PROMPTS
    assert all(row.response_ids[1] == int(row.prompt_id) + 100 for row in rows)
    drawn = [row.response_ids[0] // 10 for row in rows]
    assert all(70 < drawn.count(number) < 130 for number in (1, 2, 3))  # 100 expected, standard deviation 8
    assert drawn == [row.response_ids[0] // 10 for row in replayed(sets, 0, 3).rows()]
    assert drawn != [row.response_ids[0] // 10 for row in replayed(sets, 1, 3).rows()]
    assert found.manifest["sha256"] != replayed(sets[::-1], 0, 3).manifest["sha256"]
    assert replayed(sets[:1], 0, 1) is sets[0]


@pytest.mark.parametrize("side", [0, 1])
def test_pairs_of_one_side(side):
    rows = {"1": ((5, 6), "length"), "2": ((STOP,), "stop"), "3": ((7, STOP), "stop")}
    sets = [None, None]
    sets[side] = response_set(rows)
    pairs = Pairs(*sets)
    assert [(pair.prompt_id, pair.prompt_ids, (pair.teacher_ids, pair.student_ids)[side], (pair.teacher_ids, pair.student_ids)[1 - side]) for pair in pairs] == [
        ("1", (1, 1), (5, 6), ()), ("3", (1, 3), (7, STOP), ())
    ]  # fmt: skip
    cut = (pairs.report.truncated_teacher, pairs.report.truncated_student)
    assert (pairs.report.pairs, pairs.report.empty, pairs.report.unmatched, cut[side], cut[1 - side], pairs.tokens) == (2, 1, 0, 1, 0, 4)


@pytest.mark.parametrize("tokens", [1, 40, 100, 1000, 12345])
def test_pairs_hold_as_many_tokens_as_asked_for(tokens):
    sizes = [3 + number % 7 for number in range(20)]
    order = filled(sizes, tokens, seed=5)
    total = sum(sizes[number] for number in order)
    assert abs(total - tokens) <= max(sizes) / 2 or len(order) == 1
    counts = [order.count(number) for number in range(20)]
    assert max(counts) - min(counts) <= 1  # whole passes, then a part of one
    assert order == filled(sizes, tokens, seed=5)


def test_a_budget_repeats_pairs_and_reports_them_once():
    rows = {str(i): ((5, i + 4), "length") for i in range(4)}
    pairs = Pairs(response_set(rows), response_set(rows), tokens=40)
    assert (len(pairs), pairs.tokens, pairs.report.pairs) == (10, 40, 4)
    assert {pair.prompt_id for pair in pairs} == set(rows)
