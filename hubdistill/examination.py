"""The evaluate stage: who is measured (the student at every point of its training, the teacher), and on what."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from hubdistill import __version__
from hubdistill.evaluation.heldout import HeldOut, Subject, measure
from hubdistill.evaluation.judge import Contest
from hubdistill.evaluation.judge_client import Judge
from hubdistill.evaluation.preference import Preferences
from hubdistill.evaluation.questions import HELD_OUT, QuestionSet, decoding, names_of, question_sets
from hubdistill.evaluation.statistics import Measurement
from hubdistill.files import digest_of, file_sha256, folder_sha256, write_json
from hubdistill.modalities.base import Row
from hubdistill.models.sources import read_json
from hubdistill.pairs.image_parts import text_of_turn
from hubdistill.pairs.prompts import Prompt, read_prompts
from hubdistill.pairs.store import Question, Response, ResponseSet, read_responses
from hubdistill.specs import EvaluationSpec
from hubdistill.stages import NOT_THE_TEXT, Workshop, borrowed
from hubdistill.targets.base import Outlook
from hubdistill.tasks.candidate import Candidate
from hubdistill.tasks.recipe_tasks import RecipeTasks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


PREFERRED, PREFERRED_HELD_OUT = "preference", "preference_heldout"  # in `prompts/`: pairs of the preference stage
VALUES = "values.json"  # what measurements are means of: "metric, on" -> subject -> prompt id -> value
KNOWN = "before.json"  # values of subjects that were measured before the others were there
EXAMPLES = 20  # held-out prompts on the page of examples


def row_finder(prompts: Sequence[Prompt]) -> Callable[[Response], Row]:
    """Response -> its row, under the prompt as each model reads it."""
    by_id = {prompt.id: prompt for prompt in prompts}

    def row_of(response: Response) -> Row:
        prompt = by_id[response.prompt_id]
        return Row(prompt.prompt_ids, response.response_ids, False, prompt.student_prompt_ids, prompt.images)

    return row_of


def ground_truth(shop: Workshop, prompts: Sequence[Prompt]) -> list[Response]:
    """The data set's own responses, cut at the recipe's length limit; of the prompts that have one."""
    from hubdistill.training.warmup import ground_truth_rows

    found = list[Response]()
    for prompt in prompts:
        rows, _ = ground_truth_rows([prompt], shop.tokenizer, shop.end_id, shop.vocab, shop.plan.recipe.sampling.max_tokens, shop.media_ids)
        found += [Response(prompt.id, row.prompt_ids, row.response_ids, "stop" if row.response_ids[-1] == shop.end_id else "length", 0) for row in rows]
    return found


@dataclass(frozen=True)
class Examination:
    """`adapters` are the student's on its way: subject -> adapter folder, None for the student without one."""

    shop: Workshop
    adapters: dict[str, Path | None]

    @property
    def folder(self) -> Path:
        return self.shop.folder / "evaluation"

    def measure(self) -> list[Measurement]:
        """Every evaluation of the recipe, on every subject."""
        plan = self.shop.plan
        with self._held_out() as heldout:
            found = plan.target.evaluate(heldout, plan.recipe.evaluate)
            self._write_verdicts(heldout.contests)
            write_json(self.folder / VALUES, {f"{metric}, {on}": by_subject for (metric, on), by_subject in heldout.values.items()})
            if prompts := read_prompts(self.prompts):
                self._write_examples(prompts, heldout.teacher_responses)
        return found

    def measure_before(self) -> None:
        """Sample and measure the subjects now, and keep it for a later `measure` of the same subjects with others after them."""
        plan = self.shop.plan
        with self._held_out() as heldout:
            measure(heldout, plan.recipe.evaluate)
            found = {name: {f"{metric}, {on}": by_subject[name] for (metric, on), by_subject in heldout.values.items() if name in by_subject} for name in self.adapters}
            write_json(self.folder / KNOWN, {name: {"of": self._identity(name, heldout.teacher_responses), "values": values} for name, values in found.items()})

    def _known(self, teacher: ResponseSet) -> dict[str, dict[str, dict[str, float]]]:
        """What `measure_before` kept of these subjects, as long as nothing changed that they depend on."""
        path = self.folder / KNOWN
        kept = read_json(path) if path.is_file() else {}
        return {name: kept[name]["values"] for name in self.adapters if name in kept and kept[name]["of"] == self._identity(name, teacher)}

    def _identity(self, subject: str, teacher: ResponseSet) -> str:
        """What a subject's values depend on."""
        plan, adapter = self.shop.plan, self.adapters[subject]
        models = [plan.teacher.commit, plan.number_format("teacher"), plan.student.commit, plan.number_format("student"), folder_sha256(adapter) if adapter else None]
        settings = [[one.model_dump(mode="json") for one in plan.recipe.evaluate], plan.recipe.sampling.model_dump(exclude=NOT_THE_TEXT), plan.recipe.train.seed]
        return digest_of([*models, self.shop.vocab, settings, file_sha256(self.prompts), self.tasks.digest, teacher.manifest["sha256"], str(self.shop.device), __version__])

    def outlook(self) -> Outlook:
        """What the target says before training, measured on the student as it is."""
        plan = self.shop.plan
        assert plan.target.before is not None, "who asks has looked"
        with self._held_out() as heldout:
            return plan.target.before(heldout, plan.recipe.target.options)

    @property
    def prompts(self) -> Path:
        return self.shop.folder / "prompts" / "heldout.parquet"

    @contextmanager
    def _held_out(self) -> Iterator[HeldOut]:
        """What is measured on, with the teacher loaded."""
        from hubdistill.evaluation.divergence import Scorer

        shop = self.shop
        prompts = read_prompts(self.prompts)
        students = shop.questions(prompts, "student")
        subjects: list[Subject] = [HeldOutSubject(self, name, adapter, students) for name, adapter in self.adapters.items()]
        with borrowed(shop.load_teacher) as teacher:
            responses = shop.sample(self.folder, "teacher", "held-out", teacher, shop.questions(prompts, "teacher"))
            scorer = Scorer(teacher, shop.reading, shop.vocab, row_finder(prompts))
            asked = list(self._asked(prompts))
            yield HeldOut(scorer, shop.tokenizer, responses, subjects, self._decoding(), shop.plan.recipe.train.seed, [one for one in asked if isinstance(one, QuestionSet)], self.answer,
                          [one for one in asked if isinstance(one, Contest)], self._judge, self._benchmark, self.tasks.how,
                          ground_truth(shop, prompts), longest=shop.plan.recipe.sampling.max_tokens, stop_ids=shop.stop_ids, preferences=self._preferences(), known=self._known(responses))  # fmt: skip

    def _preferences(self) -> Preferences | None:
        """The held-out pairs of the preference stage, cut as those that are trained on are."""
        shop, file = self.shop, self.shop.folder / "prompts" / f"{PREFERRED_HELD_OUT}.parquet"
        if not shop.plan.recipe.preference:
            return None
        from hubdistill.training.preference import preference_pairs

        pairs, _ = preference_pairs(read_prompts(file), shop.tokenizer, shop.end_id, shop.vocab, shop.plan.recipe.sampling.max_tokens)
        chosen, rejected = ([Response(one.prompt_id, one.prompt_ids, getattr(one, ids), "stop", 0) for one in pairs] for ids in ("chosen_ids", "rejected_ids"))
        return Preferences(chosen, rejected) if pairs else None

    def _write_examples(self, prompts: Sequence[Prompt], teacher: ResponseSet) -> None:
        """What everyone said on the first held-out prompts, as text; report.py makes a page of it."""
        sets = {name: read_responses(self.folder / name, "student") for name in self.adapters} | {"teacher": teacher}
        said = {name: {row.prompt_id: self._text(row) for row in found.rows()} for name, found in sets.items() if found}
        rows = [
            {"prompt": text_of_turn(prompt.messages[-1]), "images": list(prompt.images), "answer": prompt.response,
             "responses": {name: texts[prompt.id] for name, texts in said.items() if prompt.id in texts}}
            for prompt in prompts[:EXAMPLES]
        ]  # fmt: skip
        write_json(self.folder / "examples.json", {"total": len(prompts), "decoding": self._decoding(), "rows": rows})

    def _text(self, response: Response) -> str:
        return str(self.shop.tokenizer.decode(list(response.response_ids), skip_special_tokens=True))

    def _asked(self, heldout: list[Prompt]) -> Iterator[QuestionSet | Contest]:
        """What the recipe's `vqa` and `judge` evaluations ask; the held-out prompts (that have an answer, where one is needed) for those that
        name no set."""
        recipe = self.shop.plan.recipe
        sets = question_sets(recipe.evaluate)
        names = zip((file for file, _ in sets), names_of([spec.dataset for _, spec in sets]), strict=True)
        for index, spec in enumerate(recipe.evaluate):
            if spec.kind not in ("vqa", "judge"):
                continue
            file, name = next(names) if spec.questions else ("", HELD_OUT)
            prompts = read_prompts(self.shop.folder / "prompts" / f"{file}.parquet") if file else [replace(prompt, answers=(prompt.response,) if prompt.response else ()) for prompt in heldout]
            if (asked := _set_of(name, prompts, spec)).prompts:
                yield Contest(asked, spec.judge.under(f"evaluate[{index}].judge"), recipe.train.seed) if spec.judge else asked

    @cached_property
    def tasks(self) -> RecipeTasks:
        """The recipe's benchmarks. Raises, where one cannot be asked here, what `RecipeTasks.ready` raises."""
        shop, plan = self.shop, self.shop.plan
        return RecipeTasks.ready(plan.recipe.evaluate, None if plan.loaded.origin == "hub" else plan.base_dir, self.folder, shop.reporter.note)

    def _benchmark(self, model: PreTrainedModel, subject: str) -> dict[str, dict[str, float]]:
        """The scores of a subject, through the tokenizer and with the stop tokens of the run."""
        shop, plan, adapter = self.shop, self.shop.plan, self.adapters.get(subject)
        facts = plan.teacher if subject == "teacher" else plan.student
        identity = (facts.commit, plan.number_format("teacher" if subject == "teacher" else "student"), folder_sha256(adapter) if adapter else "", str(shop.vocab))
        return self.tasks.scores(Candidate(name=subject, load=lambda: nullcontext(model), tokenizer=shop.tokenizer, stop_ids=shop.stop_ids, identity=identity, vocab=shop.vocab,
                                           batch_size=plan.recipe.sampling.batch_size, start=shop.reporter.start, progress=shop.reporter.advance))  # fmt: skip

    def _judge(self, contest: Contest) -> Judge:
        """Who compares the answers of a contest; what there is to do is told as it is done."""
        judge, reporter = Judge(contest.spec, self.shop.reporter.advance), self.shop.reporter
        if missing := judge.missing([case for both in contest.cases().values() for case in both]):
            reporter.start(f"{contest.spec.model} judges", len(missing), "verdicts")
        return judge

    def _write_verdicts(self, contests: Sequence[Contest]) -> None:
        """What judges said, for reading: subject -> a row for each prompt."""
        for contest in contests:
            for line in contest.without():
                self.shop.reporter.note(line)
            write_json(self._folder_of(contest.questions) / "verdicts.json", {"judge": contest.spec.model, "against": contest.spec.against, "subjects": contest.verdicts})

    def _folder_of(self, questions: QuestionSet) -> Path:
        return self.folder / re.sub(r"[^\w-]+", "_", questions.name)

    def answer(self, model: PreTrainedModel, subject: str, questions: QuestionSet) -> dict[str, str]:
        """What a subject answers. Answers lie in the run directory, as all responses do."""
        shop, who = self.shop, "teacher" if subject == "teacher" else "student"
        sampling = shop.plan.recipe.sampling
        settings = sampling.model_copy(update={"temperature": questions.temperature, "top_p": questions.top_p, "max_tokens": questions.max_tokens})
        if questions.name == HELD_OUT and settings == sampling:  # what was sampled for the other evaluations
            found = read_responses(self.folder if who == "teacher" else self.folder / subject, who)
            assert found is not None, "the held-out prompts are answered first"
        else:
            prompts = [prompt if prompt.prompt_ids else shop.rendered(prompt) for prompt in questions.prompts]
            found = shop.sample(self._folder_of(questions) / subject, who, questions.name, model, shop.questions(prompts, who), self.adapters.get(subject), settings)
        return {row.prompt_id: self._text(row) for row in found.rows()}

    def _decoding(self) -> str:
        sampling = self.shop.plan.recipe.sampling
        return decoding(sampling.temperature, sampling.top_p, sampling.max_tokens)


def _set_of(name: str, prompts: Sequence[Prompt], spec: EvaluationSpec) -> QuestionSet:
    """The prompts as an evaluation asks them: those that have an answer, where it needs one."""
    compared = spec.judge is not None and spec.judge.against != "reference"
    return QuestionSet(name, tuple(prompt for prompt in prompts if prompt.answers or compared), spec.max_tokens, spec.temperature, spec.top_p)


@dataclass(frozen=True)
class HeldOutSubject:
    """A student at one point of its training, with its own responses on the held-out prompts."""

    examination: Examination
    name: str
    adapter: Path | None
    questions: Sequence[Question]

    @contextmanager
    def opened(self) -> Iterator[PreTrainedModel]:
        shop = self.examination.shop
        with borrowed(lambda: shop.load_adapted(self.adapter) if self.adapter else shop.load_student()) as model:
            yield model

    def responses(self, model: PreTrainedModel) -> ResponseSet:
        # The same noise for every subject, so that differences between them are of the models and not of the draw.
        return self.examination.shop.sample(self.examination.folder / self.name, "student", "held-out", model, self.questions, self.adapter)
