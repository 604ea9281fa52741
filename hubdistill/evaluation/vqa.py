"""VQA accuracy of short answers to questions about images (Antol et al. 2015, arXiv:1505.00468).

The normalisation follows the published evaluator, github.com/GT-Vision-Lab/VQA at c4e6a0e (`vqaEval.py`: processPunctuation,
then processDigitArticle). Four things differ from it, each on purpose:

- References are normalised as the response is, always. The evaluator changes them only where the annotators disagree, and
  then only their punctuation, so that "Two" in the references never equals "two" in a response. Ours can only remove
  differences of form; most later evaluators do the same.
- An answer of articles alone keeps them: "A" may be a letter or a choice, and must not equal an empty response.
- Every full stop that ends no number is dropped; the evaluator stops after 32 (it passes a flag where the count belongs).
- "somebodyd" becomes "somebody'd", where the evaluator does the reverse. What equals what stays the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

ENOUGH_MATCHES = 3  # an answer that three annotators gave is fully right
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'  # neither ' nor : nor . is among them
COMMA_IN_NUMBER = re.compile(r"\d,\d")
# The evaluator writes (?!<=\d)(\.)(?!\d). Its first group is a typo of a lookbehind and holds everywhere, so that a full
# stop after a digit ("3.") goes too, and "7.5" and ".5" keep theirs.
STOP_BEFORE_NO_DIGIT = re.compile(r"\.(?!\d)")
ARTICLES = frozenset(("a", "an", "the"))
ZERO_TO_TEN = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0", **{word: str(number) for number, word in enumerate(ZERO_TO_TEN)}}
# The evaluator's contractions as they should read. It knows each by the spellings that lack one apostrophe; its entries
# with a capital I are left out, as they never match a text in lower case.
CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
    how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
    oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
    there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
    where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all
    y'all'll y'all'd've you'd you'd've you'll you're you've
"""
APOSTROPHE_LOST = {
    word[:at] + word[at + 1 :]: word for word in CONTRACTIONS.split() for at, letter in enumerate(word) if letter == "'"
}


def vqa_accuracy(response: str, answers: Sequence[str]) -> float:
    """Share of a right answer, 0 to 1: min(matches / 3, 1), averaged over the subsets that leave one annotator out.

    `answers` holds one answer per annotator (ten in VQA and TextVQA; 1, 2, 3 and 4 matches of ten score 0.3, 0.6, 0.9, 1).
    Fewer go through the same formula, so that n < 4 annotators score (n - 1) / 3 at best. Alternative spellings of one
    answer are no annotators: `exact_match` is for them. A single answer leaves nobody to compare with: it is an exact match.
    Raises ValueError without answers.
    """
    matches = _matches(response, answers)
    if len(matches) == 1:
        return float(matches[0])
    # The integers are summed first, so that no order of the annotators changes the last digit.
    thirds = sum(min(ENOUGH_MATCHES, sum(matches) - left_out) for left_out in matches)
    return thirds / (ENOUGH_MATCHES * len(matches))


def exact_match(response: str, answers: Sequence[str]) -> float:
    """1.0 where the response equals any of the answers once both are normalised, else 0.0. ValueError without answers."""
    return float(any(_matches(response, answers)))


def normalise(answer: str) -> str:
    """The form in which answers are compared: "The two  dogs!" is "2 dogs"; the module says where the rules are from.

    The result is in lower case, and normalising it again changes nothing.
    """
    text = _without_punctuation(answer.replace("\n", " ").replace("\t", " ").strip())
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    kept = [word for word in words if word not in ARTICLES] or words
    return " ".join(APOSTROPHE_LOST.get(word, word) for word in kept)


def answer_of(text: str) -> str:
    """What to score of a model's response: its first line that is not blank, trimmed, without one full stop at its end."""
    first = text.strip().partition("\n")[0].strip()
    return first[:-1].rstrip() if first.endswith((".", "。")) else first


def _matches(response: str, answers: Sequence[str]) -> list[bool]:
    if not answers:
        raise ValueError("there is no answer to compare the response with; give at least one")
    wanted = normalise(response)
    return [normalise(answer) == wanted for answer in answers]


def _without_punctuation(text: str) -> str:
    # A mark becomes a space ("black-and-white"). It goes without one where a space stands next to it anywhere in the text
    # ("yes , no"), and every mark does where any number has a comma ("1,000").
    dropped = COMMA_IN_NUMBER.search(text) is not None
    by_mark = {ord(mark): "" if dropped or f"{mark} " in text or f" {mark}" in text else " " for mark in PUNCTUATION}
    return STOP_BEFORE_NO_DIGIT.sub("", text.translate(by_mark))
