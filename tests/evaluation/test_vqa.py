"""VQA accuracy against values computed by hand, and normalised answers traced by hand through the published evaluator."""

import random

import pytest

from hubdistill.evaluation.vqa import answer_of, exact_match, normalise, vqa_accuracy


def annotators(matches: int, of: int = 10) -> list[str]:
    return ["red"] * matches + [f"other {chr(ord('b') + i)}" for i in range(of - matches)]


@pytest.mark.parametrize(
    ("matches", "of", "expected"),
    [
        # Of ten: the m annotators that match see m - 1 others who do, the rest see m; each gets at most 3/3.
        (0, 10, 0.0),
        (1, 10, 0.3),  # (1 * 0 + 9 * 1/3) / 10
        (2, 10, 0.6),  # (2 * 1/3 + 8 * 2/3) / 10
        (3, 10, 0.9),  # (3 * 2/3 + 7 * 1) / 10
        (4, 10, 1.0),
        (10, 10, 1.0),
        # Fewer annotators, the same formula.
        (1, 1, 1.0),  # nobody is left to compare with: an exact match
        (0, 1, 0.0),
        (2, 2, 1 / 3),  # each sees one other
        (1, 2, 1 / 6),  # (0 + 1/3) / 2
        (3, 3, 2 / 3),
        (4, 4, 1.0),
        (3, 5, 0.8),  # (3 * 2/3 + 2 * 1) / 5
    ],
)
def test_accuracy_averages_over_the_annotators_left_out(matches, of, expected):
    assert vqa_accuracy("red", annotators(matches, of)) == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("the cat", "cat"),
        ("An apple and a pear", "apple and pear"),
        ("another", "another"),  # articles are whole words
        ("None", "0"),
        ("two", "2"),
        ("TEN dogs", "10 dogs"),
        ("eleven", "eleven"),  # the table ends at ten
        ("dont", "don't"),
        ("Don't", "don't"),
        ("couldn'tve", "couldn't've"),
        ("couldnt've", "couldn't've"),
        ("couldntve", "couldntve"),  # two apostrophes lost are not in the table
        ("5 oclock", "5 o'clock"),
        ("yall'd've", "y'all'd've"),
        ("'ow'sat", "'ow's'at"),
        ("twas", "'twas"),
        ("Im", "im"),  # the evaluator's "Im" never meets a text in lower case
        ("lets", "lets"),
        ("shes", "shes"),
        ("1,000", "1000"),
        ("7.5", "7.5"),
        ("$1,234.50", "$1234.50"),
        ("3.", "3"),
        (".5", ".5"),
        ("U.S.", "us"),
        ("U. S.", "u s"),
        ("e.g.5", "eg.5"),
        ("a" + "." * 40, "a"),  # the evaluator leaves eight of the forty
        ("black-and-white", "black and white"),
        ("black - white", "black white"),  # a space next to the mark: it goes without one
        ("well-known - yes", "wellknown yes"),  # and so does the same mark elsewhere
        ("well-known, yes", "well known yes"),  # but not another mark
        ("1,000-2,000", "10002000"),  # a comma in a number: no mark leaves a space
        ("yes!", "yes"),
        ("yes/no", "yes no"),
        ("yes,no", "yes no"),
        ("yes, no", "yes no"),
        ("(left)", "left"),
        ("user@host", "user host"),
        ("10:30", "10:30"),  # a colon is not in the list
        ("it's 50%", "it's 50%"),
        ("stop\nsign", "stop sign"),
        ("\t stop \t\t sign\n", "stop sign"),
        ("stop\r\nsign", "stop sign"),
        ("ÉCOLE", "école"),
        ("猫", "猫"),
        ("café-au-lait", "café au lait"),
        ("don’t", "don’t"),  # a typographic apostrophe is a letter like any other
        ("", ""),
        ("  ", ""),
        ("?!", ""),
        ("A", "a"),  # ours: an article that is the whole answer stays
        ("(A)", "a"),
        ("the a", "the a"),
    ],
)
def test_normalised_answers_traced_by_hand(raw, expected):
    assert normalise(raw) == expected
    assert normalise(expected) == expected


def test_responses_and_answers_are_both_normalised():
    assert vqa_accuracy("The two dogs.", ["2 dogs"] * 2 + ["Two dogs!", "a  TWO dogs"]) == 1.0
    assert vqa_accuracy("2", ["Two"] * 10) == 1.0  # the published evaluator leaves these references alone: 0
    assert exact_match("1,000", ["999", "1000"]) == 1.0
    assert exact_match("it isnt", ["it isn't"]) == 1.0


def test_exact_match_wants_the_whole_of_any_answer():
    assert exact_match("red", ["blue", "red"]) == 1.0
    assert exact_match("red car", ["blue", "red"]) == 0.0
    assert exact_match("", ["red"]) == 0.0


@pytest.mark.parametrize("score", [vqa_accuracy, exact_match])
def test_an_empty_response_is_not_the_choice_a(score):
    assert score("", ["A"] * 10) == 0.0
    assert score("the", ["A"] * 10) == 0.0
    assert score("A.", ["a"] * 10) == 1.0


@pytest.mark.parametrize("score", [vqa_accuracy, exact_match])
def test_no_answers_are_an_error(score):
    with pytest.raises(ValueError, match="no answer to compare"):
        score("red", [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("red", "red"),
        ("  Red.  ", "Red"),
        ("\n\nred\nBecause it is.", "red"),
        ("red.\r\nand more", "red"),
        ("red .", "red"),
        ("wait...", "wait.."),  # one full stop only
        ("7.5", "7.5"),
        ("红色。", "红色"),
        ("", ""),
        (" \n ", ""),
        (".", ""),
    ],
)
def test_the_answer_is_the_first_line_without_its_full_stop(text, expected):
    assert answer_of(text) == expected


def random_text(generator: random.Random) -> str:
    pieces = ["a", "The", "one", "none", "dont", "y'allll", "7", "12", "é", "猫", "İ", "Σ", "  ", *"Is.,-/'?: \t\n"]
    return "".join(generator.choice(pieces) for _ in range(generator.randint(0, 9)))


def test_random_answers_normalise_once_and_for_all():
    generator = random.Random(0)
    for _ in range(2000):
        once = normalise(random_text(generator))
        assert normalise(once) == once
        assert once == once.strip()
        assert not set(once) & set(",-/?\t\n")


def test_random_accuracies_are_shares_and_no_order_of_annotators_matters():
    generator = random.Random(1)
    for _ in range(500):
        said = ["red", "Red.", "the red", "blue", "two", random_text(generator)]
        answers = generator.choices(said, k=generator.randint(1, 12))
        response = generator.choice(["red", "2", "blue!", *answers])
        value, exact = vqa_accuracy(response, answers), exact_match(response, answers)
        assert 0 <= value <= exact <= 1
        assert exact in (0, 1)
        assert (value > 0) == (exact > 0)
        generator.shuffle(answers)
        assert vqa_accuracy(response, answers) == value
