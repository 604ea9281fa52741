"""ROUGE-L against longest common subsequences found by hand and by plain recursion."""

import functools
import random

import pytest

from hubdistill.evaluation.overlap import Words, rouge_l
from hubdistill.pairs.store import Response
from tests import tiny

TOKENIZER = tiny.make_tokenizer(("cats", "Cat"))
STOP = 3


def said(prompt_id: str, text: str, end: tuple[int, ...] = (STOP,)) -> Response:
    ids = tuple(TOKENIZER.convert_tokens_to_ids(text.split()))
    return Response(prompt_id, (4, 5), (*ids, *end), "stop" if end else "length", 0)


def score(own: str, teacher: str) -> float:
    return rouge_l(TOKENIZER, [said("p", own)], [said("p", teacher)])["p"]


def plain_f1(own: list[str], teacher: list[str]) -> float:
    @functools.cache
    def common(i: int, j: int) -> int:
        if i == len(own) or j == len(teacher):
            return 0
        return 1 + common(i + 1, j + 1) if own[i] == teacher[j] else max(common(i + 1, j), common(i, j + 1))

    found = common(0, 0)
    return 2 * found / (len(own) + len(teacher)) if found else 0.0


@pytest.mark.parametrize(
    ("own", "teacher", "expected"),
    [
        ("the cat sat on the mat", "the cat sat on the mat", 1.0),
        ("the cat sat", "the dog sat on a mat", 2 * (2 / 3) * (2 / 6) / (2 / 3 + 2 / 6)),  # "the sat": precision 2/3, recall 2/6
        ("mat the on sat", "sat on the mat", 2 * 1 / 8),  # in reverse only one word is in order
        ("red blue", "the cat", 0.0),
        ("the Cat", "the cat", 1.0),
        ("the cats", "the cat", 1.0),  # stems are compared
        ("cats xyzzy", "cat cat", 2 * 1 / 3),  # a word that is not in the vocabulary is a special token, and left out
        ("the cat .", "the cat ?", 1.0),
    ],
)
def test_rouge_l_is_the_f1_of_the_longest_common_subsequence(own, teacher, expected):
    assert score(own, teacher) == pytest.approx(expected)


def test_random_responses_agree_with_plain_recursion():
    generator = random.Random(0)
    words = ["the", "cat", "dog", "sat", "ran", "mat", "red"]
    for _ in range(60):
        own, teacher = ([generator.choice(words) for _ in range(generator.randint(1, 12))] for _ in range(2))
        assert score(" ".join(own), " ".join(teacher)) == pytest.approx(plain_f1(own, teacher))


def test_the_stop_token_is_no_word():
    cut, ended = said("p", "the cat", end=()), said("p", "the cat")
    assert rouge_l(TOKENIZER, [cut], [ended]) == {"p": 1.0}


def test_prompts_that_only_one_side_answered_are_left_out():
    own = [said("a", "the cat"), said("b", "the dog")]
    teacher = [said("b", "the dog"), said("c", "the mat")]
    assert rouge_l(TOKENIZER, own, teacher) == {"b": 1.0}


def test_responses_meet_by_prompt_id_and_not_by_place():
    own = [said("a", "the cat"), said("b", "red blue")]
    assert rouge_l(TOKENIZER, own, [said("b", "red blue"), said("a", "the cat")]) == {"a": 1.0, "b": 1.0}


def test_an_empty_response_scores_zero():
    assert score("", "the cat") == 0.0


def test_english_is_cut_as_rouge_score_cuts_it_and_other_scripts_are_kept():
    from rouge_score.tokenizers import DefaultTokenizer

    text = "The cats' 2nd_best running-shoes aren't (quite) HAPPILY tested at 3.5 km/h!"
    assert Words().tokenize(text) == DefaultTokenizer(use_stemmer=True).tokenize(text)
    assert Words().tokenize("猫は好き。Кошки, cats’ Ärger") == ["猫", "は", "好", "き", "кошки", "cat", "ärger"]
