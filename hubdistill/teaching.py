"""What warm-up and rounds train on, and with what models; training/ does the rest. All processes of a run come here together."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubdistill import __version__
from hubdistill.errors import TrainingError
from hubdistill.examination import ground_truth, row_finder
from hubdistill.lessons import DATA, Lesson
from hubdistill.losses.contrastive import INTERLEAVED
from hubdistill.losses.schedules import AlphaCurriculum
from hubdistill.modalities.base import Row
from hubdistill.pairs.join import Pairs
from hubdistill.pairs.prompts import Prompt
from hubdistill.pairs.store import Question, ResponseHeader, ResponseSet, collect
from hubdistill.processes import Processes
from hubdistill.stages import Workshop, borrowed

if TYPE_CHECKING:
    from hubdistill.training.rounds import RoundFiles
    from hubdistill.training.states import States
    from hubdistill.training.teachers import Teacher


@dataclass(frozen=True)
class Teaching:
    """Trains the student's adapter, with the models that the `shop` loads."""

    shop: Workshop
    processes: Processes
    prompts: Sequence[Prompt]

    def warm_up(self, adapter: Path, teacher: ResponseSet | None) -> dict[str, Any]:
        """Leave the adapter that the first round starts from: fresh, or fine-tuned on the teacher's or the data set's responses."""
        from hubdistill.training.rounds import save_adapter

        recipe = self.shop.plan.recipe
        with borrowed(lambda: self.shop.load_to_train(None)) as model:
            result = {} if recipe.warmup.kind == "none" else self._fine_tune(model, adapter.parent, teacher)
            if self.processes.first:
                save_adapter(model, adapter)
        return result

    def _fine_tune(self, model: Any, folder: Path, teacher: ResponseSet | None) -> dict[str, Any]:
        from hubdistill.training.warmup import WarmupFiles, warm_up

        recipe, shop = self.shop.plan.recipe, self.shop
        rows, counts = self._rows(teacher)
        files = WarmupFiles(folder / "checkpoints", folder / "metrics.jsonl")
        shop.reporter.start("warm-up", math.ceil(len(rows) / recipe.train.pairs_per_step * recipe.warmup.epochs), "steps")
        result = warm_up(model, shop.tokenizer, rows, recipe.warmup, recipe.train, files, reading=shop.reading, accumulation=shop.plan.accumulation,
                         progress=shop.reporter.advance)  # fmt: skip
        return result | counts

    def _rows(self, teacher: ResponseSet | None) -> tuple[list[Row], dict[str, int]]:
        """Responses to fine-tune on, and how many were left out or cut at the length limit."""
        from hubdistill.training.warmup import ground_truth_rows

        shop = self.shop
        shop.questions(self.prompts, "student")  # refuses prompts that the student cannot read
        if teacher is not None:
            row_of, answers = row_finder(self.prompts), list(teacher.rows())
            rows = [row_of(answer) for answer in answers if len(answer.response_ids) > 1]
            return rows, {"empty": len(answers) - len(rows), "cut": sum(r.finish_reason == "length" for r in answers)}
        return ground_truth_rows(self.prompts, shop.tokenizer, shop.end_id, shop.vocab, shop.plan.recipe.sampling.max_tokens, shop.media_ids)

    def data_responses(self, folder: Path) -> dict[str, Any]:
        """Keep the data set's own responses as a response set, cut at the recipe's length limit. Raises TrainingError where there are none."""
        shop, recipe = self.shop, self.shop.plan.recipe
        found = {response.prompt_id: response for response in ground_truth(shop, self.prompts)}
        if not found:
            raise TrainingError(f"loss.preset {shop.plan.preset.name} trains on the data set's responses, and no prompt has one; name their column in prompts.response_column, or write loss.fixed_responses: teacher")
        header = ResponseHeader(who=DATA, purpose="data set", model=recipe.prompts.dataset, commit=shop.plan.prompts.commit, dtype="", vocab=shop.vocab, adapter=None,
                                template="", sampling={"max_tokens": recipe.sampling.max_tokens}, stop_ids=shop.stop_ids, engine=DATA, engine_version=__version__, seed=0)  # fmt: skip
        questions = [Question(response.prompt_id, response.prompt_ids) for response in found.values()]
        kept = collect(folder, header, questions, lambda missing: [[found[question.prompt_id] for question in missing]] if missing else [], self.processes)
        return {key: kept.manifest[key] for key in ("rows", "tokens", "truncated")}

    def round(self, lesson: Lesson, adapter: Path, files: RoundFiles) -> dict[str, Any]:
        """Train a round, from the adapter of the one before."""
        from hubdistill.training.rounds import train_round
        from hubdistill.training.trainer import Distillation, Position

        plan, shop, train = self.shop.plan, self.shop, self.shop.plan.recipe.train
        views = {prompt.id: prompt for prompt in self.prompts} if plan.target.modality.own_view else None
        pairs = Pairs(lesson.teacher, lesson.student, views, tokens=train.tokens, seed=train.seed + lesson.number, only=lesson.prompts)
        with self._teacher(lesson) as teacher, borrowed(lambda: shop.load_to_train(adapter)) as student:
            distillation = Distillation(
                teacher=teacher, reading=shop.reading, vocab=shop.vocab, preset=plan.preset, shared=shop.who_shares(teacher, student, pairs[0]),
                position=Position(round=lesson.number, rounds=train.rounds), curriculum=AlphaCurriculum(plan.preset, round=lesson.number),
            )  # fmt: skip
            shop.reporter.start(f"round {lesson.number} of {train.rounds}, training", math.ceil(len(pairs) / plan.prompts_per_step), "steps")
            return train_round(student, pairs, distillation, train, files, accumulation=plan.accumulation, progress=shop.reporter.advance, processes=self.processes)

    def prefer(self, adapter: Path, folder: Path) -> dict[str, Any]:
        """Go on with an adapter by preference tuning; what comes out lies in `folder`."""
        from hubdistill.training.preference import prefer, preference_pairs, steps_of
        from hubdistill.training.rounds import save_adapter

        shop, recipe, spec = self.shop, self.shop.plan.recipe, self.shop.plan.recipe.preference
        assert spec is not None, "who calls it has looked"
        pairs, counts = preference_pairs(self.prompts, shop.tokenizer, shop.end_id, shop.vocab, recipe.sampling.max_tokens)
        shop.questions(self.prompts, "student")  # refuses prompts that the student cannot read
        shop.reporter.start("preference tuning", steps_of(len(pairs), spec, recipe.train), "steps")
        with borrowed(lambda: shop.load_to_train(adapter)) as model:
            result = prefer(model, shop.tokenizer, pairs, spec, recipe.train, folder, pad_id=shop.pad_id, accumulation=shop.plan.accumulation, progress=shop.reporter.advance)
            save_adapter(model, folder / "adapter")
        return result | counts

    @contextmanager
    def _teacher(self, lesson: Lesson) -> Iterator[Teacher]:
        """The teacher as `teacher.placement` says."""
        from hubdistill.models.load import head_of
        from hubdistill.training.teachers import CachedTeacher, LoadedTeacher, moved

        shop = self.shop
        if shop.plan.recipe.teacher.placement != "cached":
            with borrowed(lambda: shop.load_teacher(layout=shop.teacher_layout)) as model:
                yield LoadedTeacher(model, shop.reading, shop.device)
            return
        with borrowed(shop.load_teacher) as model:
            by_teacher = self._states(lesson.teacher_folder, lesson.teacher, model) if lesson.teacher else None
            by_student = self._states(lesson.student_folder, lesson.student, model) if lesson.student else None
            head = moved(head_of(model), shop.device)
        yield CachedTeacher(head, by_teacher, by_student)
        for states, responses in ((by_teacher, lesson.teacher), (by_student, lesson.student)):
            # Where the student has a part in them, there are others in the next round; the teacher's and the data set's serve again.
            if self.processes.first and states and responses and responses.manifest["who"] in ("student", INTERLEAVED):
                shutil.rmtree(states.folder, ignore_errors=True)

    def _states(self, folder: Path, responses: ResponseSet, teacher: Any) -> States:
        """The teacher's hidden states of a response set, written unless they are there."""
        from hubdistill.training.states import digest_of_states, read_states, write_states

        shop, where = self.shop, folder / f"{responses.manifest['who']}.states"
        facts = shop.plan.teacher
        wanted = digest_of_states(responses, [facts.commit, shop.plan.number_format("teacher"), str(teacher.dtype), __version__])
        found = self.processes.share(read_states(where, wanted) if self.processes.first else None)
        if found is not None:
            return found
        rows = list(responses.rows())
        shop.reporter.start(f"the teacher reads the {responses.manifest['who']}'s responses", len(rows), "responses")
        return write_states(where, wanted, rows, row_finder(self.prompts), teacher, shop.reading, shop.plan.recipe.train.micro_batch * 2,
                            processes=self.processes, progress=shop.reporter.advance)  # fmt: skip
