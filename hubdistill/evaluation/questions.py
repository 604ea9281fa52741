"""Right answers to questions about images, by type of question, and the same without the images: what can be guessed blind."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hubdistill.evaluation.vqa import answer_of, exact_match, vqa_accuracy
from hubdistill.pairs.image_parts import text_of_turn
from hubdistill.pairs.prompt_rows import ANNOTATORS, NO_IMAGE
from hubdistill.pairs.prompts import Prompt
from hubdistill.shipped import SHIPPED
from hubdistill.specs import EvaluationSpec, QuestionsSpec

RIGHT_ANSWERS = ("vqa_accuracy", "exact_match")  # the metrics of answers to questions
HELD_OUT = "held-out prompts"  # the name of the set that is no set of its own
QUESTIONS = "questions"  # the split of what was measured on a set of questions, which is not the prompts' data set
BLIND = f", {NO_IMAGE}"  # ends the name of a set that is asked blind
SCORE = "score"  # the metric of benchmarks
OF_TYPE = " / "  # comes before a type of question
AGAINST = ", against "  # comes before what answers were held against by a judge


@dataclass(frozen=True)
class QuestionSet:
    """Questions, most with answers; `max_tokens` is the longest response, greedy at temperature 0."""

    name: str
    prompts: tuple[Prompt, ...]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0

    @property
    def split(self) -> str:
        """Which part of which data it is: the held-out prompts, or questions of a data set of their own."""
        return "held-out" if self.name == HELD_OUT else QUESTIONS

    @property
    def decoding(self) -> str:
        """How they are answered, in words."""
        return decoding(self.temperature, self.top_p, self.max_tokens)

    @property
    def metric(self) -> str:
        """VQA accuracy where each question has the answers of four annotators or more (of fewer, leaving one out, none
        can be right in full), else exact match with any of its answers."""
        return "vqa_accuracy" if all(len(prompt.answers) >= ANNOTATORS for prompt in self.prompts) else "exact_match"

    def blind(self) -> QuestionSet:
        """The same questions without their images."""
        return replace(self, name=f"{self.name}{BLIND}", prompts=tuple(without_images(prompt) for prompt in self.prompts))


def decoding(temperature: float, top_p: float, max_tokens: int) -> str:
    """How responses are sampled, in words."""
    how = "greedy" if temperature == 0 else f"temperature {temperature:g}, top-p {top_p:g}"
    return f"{how}, at most {max_tokens} tokens"


def question_sets(evaluate: Sequence[EvaluationSpec]) -> list[tuple[str, QuestionsSpec]]:
    """(file name in `prompts/`, where they come from) of each set of questions that a recipe names."""
    specs = [one.questions.under(f"evaluate[{index}].questions") for index, one in enumerate(evaluate) if one.questions]
    return [(f"questions_{number}", spec) for number, spec in enumerate(specs, 1)]


def names_of(datasets: Sequence[str]) -> list[str]:
    """A name for each set of questions, from its file or Hub id; the second of one name says its number."""
    found: list[str] = []
    for number, dataset in enumerate(datasets, 1):
        name = re.sub(r"\.(jsonl|json|parquet|csv)$", "", dataset.removeprefix(SHIPPED).rpartition("/")[2]).removesuffix(BLIND).replace(AGAINST, " against ")
        found.append(f"{name} ({number})" if name in (*found, HELD_OUT) else name)
    return found


def set_of(on: str) -> str:
    """The name of the set of what was measured on: without the type of question, the mark of the blind control, and what it was held against."""
    return on.split(OF_TYPE)[0].split(AGAINST)[0].removesuffix(BLIND)


def not_trained_on(questions: Sequence[Prompt], trained: Sequence[Prompt], instruction: str) -> list[Prompt]:
    """The questions that are not, about the same images, the last turn of a training prompt (its case, outer space and
    the instruction left out of account): what was trained on says nothing about what was learnt."""

    def asked(prompt: Prompt) -> tuple[str, tuple[str, ...]]:
        return text_of_turn(prompt.messages[-1]).removesuffix(instruction.strip()).strip().casefold(), prompt.images

    known = {asked(prompt) for prompt in trained}
    return [prompt for prompt in questions if asked(prompt) not in known]


# (model, subject, questions) -> prompt id -> the text of its answer
Answer = Callable[[Any, str, QuestionSet], Mapping[str, str]]


def without_images(prompt: Prompt) -> Prompt:
    """The prompt as text alone, under its own id; its token ids are to be made anew."""
    turns = [{**turn, "content": text_of_turn(turn)} for turn in prompt.messages]
    return replace(prompt, messages=tuple(turns), images=(), prompt_ids=(), student_prompt_ids=None)


def score(questions: QuestionSet, texts: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """What was measured on (the set, and each type of question in it) -> prompt id -> score, 0 to 1."""
    judge = vqa_accuracy if questions.metric == "vqa_accuracy" else exact_match
    scores = {prompt.id: judge(answer_of(texts[prompt.id]), prompt.answers) for prompt in questions.prompts}
    groups: Sequence[str] = sorted({prompt.group for prompt in questions.prompts if prompt.group is not None})
    found = {questions.name: scores}
    for group in groups if len(groups) > 1 else ():
        found[f"{questions.name}{OF_TYPE}{group}"] = {prompt.id: scores[prompt.id] for prompt in questions.prompts if prompt.group == group}
    return found
