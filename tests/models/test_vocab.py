"""Teacher and student must mean the same token by the same id, below the size that both heads have."""

from __future__ import annotations

import pytest

from hubdistill.errors import InputError
from hubdistill.models.vocab import common_vocab
from tests import tiny

NAMED = len(tiny.SPECIAL) + len(tiny.WORDS)


@pytest.mark.parametrize(("teacher_rows", "student_rows"), [(NAMED, NAMED), (64, 48), (48, 64), (NAMED + 1, NAMED)])
def test_unequal_heads_are_cut_to_the_smaller(tokenizer, teacher_rows, student_rows):
    assert common_vocab(tokenizer, tiny.make_tokenizer(), teacher_rows, student_rows) == min(teacher_rows, student_rows)


def test_tokens_beyond_the_smaller_head_need_not_agree(tokenizer):
    longer = tiny.make_tokenizer(extra=("zebra", "yak"))
    assert common_vocab(longer, tokenizer, NAMED + 2, NAMED) == NAMED


def test_ids_that_differ_are_named_with_both_tokens(tokenizer, monkeypatch):
    monkeypatch.setattr(tiny, "WORDS", [{"cat": "slow", "slow": "cat"}.get(word, word) for word in tiny.WORDS])
    cat = tokenizer.convert_tokens_to_ids("cat")
    slow = tokenizer.convert_tokens_to_ids("slow")
    with pytest.raises(InputError, match=r"2 of 64 ids differ .*choose a student of the teacher's family, with the same tokenizer$") as caught:
        common_vocab(tokenizer, tiny.make_tokenizer(), 64, 64)
    assert f"id {cat}: teacher 'cat', student 'slow'; id {slow}: teacher 'slow', student 'cat'" in str(caught.value)


def test_special_tokens_count_as_well(tokenizer):
    other = tiny.make_tokenizer()
    other.add_special_tokens({"additional_special_tokens": ["<tool>"]})
    with pytest.raises(InputError, match=rf"1 of 64 ids differ \(id {NAMED}: teacher None, student '<tool>'\)"):
        common_vocab(tokenizer, other, 64, 64)


@pytest.mark.parametrize("order", [1, -1])
def test_an_id_that_only_one_of_them_names_is_a_difference(tokenizer, order):
    pair = (tokenizer, tiny.make_tokenizer(extra=("zebra",)))[::order]
    shown = ("None", "'zebra'")[::order]
    with pytest.raises(InputError, match=rf"id {NAMED}: teacher {shown[0]}, student {shown[1]}"):
        common_vocab(*pair, 64, 64)


def test_only_the_first_three_of_many_are_shown(tokenizer):
    other = tiny.make_tokenizer(extra=tuple(f"new{i}" for i in range(9)))
    with pytest.raises(InputError) as caught:
        common_vocab(tokenizer, other, 64, 64)
    assert "9 of 64 ids differ" in str(caught.value)
    assert str(caught.value).count("teacher None") == 3
    assert f"id {NAMED}: " in str(caught.value)
