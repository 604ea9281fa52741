"""A plan becomes stages, in order: prompts, samples, warm-up, rounds, evaluation, card, push.

Each stage reads files and writes files, loads only the models it needs, and frees them before the next one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hubdistill import __version__
from hubdistill.errors import InputError, RecipeError
from hubdistill.evaluation.questions import not_trained_on, question_sets
from hubdistill.evaluation.statistics import Measurement
from hubdistill.examination import KNOWN, PREFERRED, Examination
from hubdistill.files import digest_of, write_atomically, write_json
from hubdistill.lessons import Lessons
from hubdistill.losses.contrastive import INTERLEAVED
from hubdistill.models.hardware import hardware
from hubdistill.models.sources import read_json
from hubdistill.pairs.prompt_report import counted
from hubdistill.pairs.prompts import Prompt, read_prompts
from hubdistill.pairs.store import ResponseSet, read_responses
from hubdistill.plan import Plan
from hubdistill.plan_checks import check_adapter
from hubdistill.processes import Processes
from hubdistill.prompting import Prompting
from hubdistill.publication import build_local, write_record
from hubdistill.report.page import write_report
from hubdistill.rundir import RunDirectory
from hubdistill.stages import NOT_THE_RESULT, NOT_THE_TEXT, Reporter, Workshop
from hubdistill.tasks.recipe_tasks import RecipeTasks
from hubdistill.teaching import Teaching


@dataclass
class Run:
    """One run of a plan in a directory. `until` stops it after a stage, for example ("train", 2)."""

    plan: Plan
    directory: RunDirectory
    reporter: Reporter

    @cached_property
    def shop(self) -> Workshop:
        return Workshop(self.plan, self.reporter, self.path, self.processes)

    @property
    def processes(self) -> Processes:
        return self.directory.processes

    @property
    def path(self) -> Path:
        return self.directory.path

    def distil(self, until: str = "evaluate", round: int | None = None) -> None:
        """Everything that needs models, up to and with a stage: prompts, sample, warmup, train or evaluate."""
        self._begin()
        if until == "evaluate" and self._benchmarks:
            self._benchmarks.announce()  # what is missing shows now, and not after the training
        self._prompts()
        if until == "prompts":
            return
        self._before()
        last = round or self.plan.recipe.train.rounds
        for number in range(1, last + 1):
            if self.lessons.teacher_answers(number):
                self._sample("teacher", number)
            if number == 1:
                self._warm_up()
            if until == "warmup":
                return
            if number == 1 and self.lessons.data:
                self._keep_data_responses()
            if self.lessons.student_answers(number):
                self._sample("student", number, self._adapter(number - 1))
            if self.plan.preset.interleaved:
                self._sample(INTERLEAVED, number, self._adapter(number - 1))
            if until == "sample" and number == last:
                return
            self._train(number)
        if until == "evaluate":
            self._prefer()
            self._evaluate()

    def _begin(self) -> None:
        _ = self.shop.device, self.shop.teacher_device, self.shop.readers  # what is not there shows now, not when all is sampled
        if problems := check_adapter(self.plan.recipe, self.plan.student):
            raise RecipeError([f"{self.plan.loaded.path}: {problem}" for problem in problems])
        if self.processes.first:
            self._mark()
        self.processes.wait()

    def _mark(self) -> None:
        write_json(self.path / "plan.json", self.plan.as_dict())  # first: it marks the directory as ours
        record = self.path / "run.json"
        if record.is_file() and read_json(record).get("digest") != self.plan.digest:
            # What it says would no longer be true of the adapter: `push` and `card` refuse a run without it.
            record.unlink()
        write_atomically(self.path / "recipe.yaml", self.plan.loaded.text.encode())
        if not self.processes.alone:
            self.shop.build_student()  # once, before all of them load it

    def _prompts(self) -> None:
        Prompting(self.shop, self.directory).read()

    def _before(self) -> None:
        """What the target measures before anything is trained. Raises InputError where it says that training cannot help."""
        plan = self.plan
        if plan.target.before is None or not self._read("heldout"):
            return

        def work() -> dict[str, Any]:
            found = Examination(self.shop, {"student": None}).outlook()
            if found.stop:
                raise InputError(f"{plan.loaded.path}: {found.stop}")
            return {"note": found.note} if found.note else {}

        inputs = [self._model("teacher"), self._model("student"), plan.recipe.target.model_dump(mode="json"), plan.recipe.sampling.model_dump(exclude=NOT_THE_TEXT),
                  plan.recipe.train.seed, self.directory.digests["prompts"], str(self.shop.device), str(self.shop.teacher_device), hardware(plan.recipe.train.device)]  # fmt: skip
        self.directory.stage("before-training", inputs, ["evaluation/teacher.parquet"], work)
        if note := self.results()["before-training"].get("note"):
            self.reporter.note(note)

    def _read(self, split: str) -> list[Prompt]:
        return read_prompts(self.path / "prompts" / f"{split}.parquet")

    @cached_property
    def lessons(self) -> Lessons:
        return Lessons(self.plan, self.path)

    def _keep_data_responses(self) -> None:
        inputs = [self.directory.digests["prompts"], self.plan.recipe.sampling.max_tokens, self.plan.vocab, self._model("teacher"), __version__]
        self.directory.stage("data-responses", inputs, ["data.parquet", "data.json"], lambda: self._teaching.data_responses(self.path), together=True)

    def _sample(self, who: str, number: int, adapter: Path | None = None) -> None:
        """What a round trains on, from one who speaks."""
        plan, shop, train, folder = self.plan, self.shop, self._read("train"), f"round_{number}"
        asked = self.lessons.asked(who, number, train)

        def work() -> dict[str, Any]:
            with shop.answering(who, adapter) as model, shop.beside(who) as teacher:
                responses = shop.sample(self.path / folder, who, f"round {number}", model, shop.questions(asked, who), adapter, together=True, teacher=teacher)
            return {key: responses.manifest[key] for key in ("rows", "tokens", "truncated", "unusable")}

        others: list[Any] = [[prompt.id for prompt in asked]] if len(asked) < len(train) else []
        others += [plan.served_as] if plan.served(who) else [shop.together] if who == INTERLEAVED else []
        inputs = [self._model(who), plan.teacher.commit, plan.recipe.sampling.model_dump(exclude=NOT_THE_TEXT), plan.recipe.train.seed,
                  plan.vocab, self.directory.digests["prompts"], self._digest_of_adapter(adapter), *others]  # fmt: skip
        self.directory.stage(f"{folder}-{who}", inputs, [f"{folder}/{who}.parquet", f"{folder}/{who}.json"], work, together=True)

    def _model(self, who: str) -> list[str]:
        """What decides a model's numbers: its commit and its number format."""
        facts = self.plan.teacher if who == "teacher" else self.plan.student
        return [facts.commit, self.plan.number_format(who)]

    def _optimisation(self, *without: str) -> dict[str, Any]:
        """The fields of `train` that training depends on."""
        return self.plan.recipe.train.model_dump(exclude={*NOT_THE_RESULT, *without})

    def _adapter(self, number: int) -> Path:
        """Folder of the adapter after a round; 0 is the one that the first round starts from."""
        return self.path / ("warmup" if number == 0 else f"round_{number}") / "adapter"

    def _digest_of_adapter(self, adapter: Path | None) -> str | None:
        from hubdistill.files import folder_sha256

        return folder_sha256(adapter) if adapter else None

    def _warm_up(self) -> None:
        recipe, spec = self.plan.recipe, self.plan.recipe.warmup
        outputs = ["warmup/adapter"] if spec.kind == "none" else ["warmup/adapter", "warmup/metrics.jsonl"]

        def work() -> dict[str, Any]:
            teacher = self._responses("round_1", "teacher") if spec.responses == "teacher" else None
            return self._teaching.warm_up(self._adapter(0), teacher)

        inputs: list[Any] = [spec.kind, recipe.train.seed, recipe.lora.model_dump(), self._model("student")]
        if spec.kind != "none":
            rows = self.directory.digests["round_1-teacher"] if spec.responses == "teacher" else recipe.sampling.max_tokens
            inputs += [spec.model_dump(), self._optimisation("rounds", "tokens", "prompts_per_round"), self.directory.digests["prompts"], self.plan.vocab, rows]
        self.directory.stage("warmup", inputs, outputs, work, together=True)

    def _responses(self, folder: str, who: str) -> ResponseSet:
        found = read_responses(self.path / folder, who)
        assert found is not None, f"{folder}/{who} was written by a stage before"
        return found

    def _train(self, number: int) -> None:
        from hubdistill.training.rounds import RoundFiles

        name = f"round_{number}"
        inputs = [self.directory.digests["prompts"], *(self.directory.digests[stage] for stage in self.lessons.stages(number)),
                  self.directory.digests["warmup" if number == 1 else f"round_{number - 1}-train"], self._model("teacher"), self._model("student"),
                  self.plan.vocab, asdict(self.plan.preset), self._optimisation(), number, __version__]  # fmt: skip
        files = RoundFiles(folder=self.path / name, previous=self.path / f"round_{number - 1}" if number > 1 else None, inputs=digest_of([inputs, self.plan.recipe.train.micro_batch]))
        outputs = [f"{name}/{file}" for file in ("adapter", "optimizer.pt", "curriculum.json", "metrics.jsonl")]
        self.directory.stage(f"{name}-train", inputs, outputs, lambda: self._teaching.round(self.lessons.lesson(number, self._read("train")), self._adapter(number - 1), files), together=True)
        if self.processes.first:
            self._gather_metrics(number)

    def _prefer(self) -> None:
        """Preference tuning, where the recipe has it."""
        recipe, last = self.plan.recipe, self.plan.recipe.train.rounds
        if recipe.preference is None:
            return
        inputs = [self.directory.digests["prompts"], self.directory.digests[f"round_{last}-train"], self._model("student"), self.plan.vocab, recipe.sampling.max_tokens,
                  recipe.preference.model_dump(), self._optimisation("rounds", "tokens", "learning_rate"), __version__]  # fmt: skip
        teaching = Teaching(self.shop, self.processes, self._preferred())
        self.directory.stage("preference", inputs, [f"preference/{file}" for file in ("adapter", "metrics.jsonl")], lambda: teaching.prefer(self._adapter(last), self.path / "preference"))

    def _preferred(self) -> list[Prompt]:
        """The pairs to tune on, without those whose prompt something is measured on."""
        found = self._read(PREFERRED)
        kept = not_trained_on(found, self._read("heldout"), "")
        for file, spec in question_sets(self.plan.recipe.evaluate):
            kept = not_trained_on(kept, self._read(file), spec.instruction)
        if len(kept) < len(found):
            self.reporter.note(f"preference: {counted(len(found) - len(kept), 'pair')} left out, whose prompts are held out or asked as questions")
        return kept

    @property
    def _teaching(self) -> Teaching:
        return Teaching(self.shop, self.processes, self._read("train"))

    def _gather_metrics(self, last: int) -> None:
        folders = [f"round_{i}" for i in range(1, last + 1)]
        if self.plan.recipe.warmup.kind != "none":  # else the file would be of an earlier recipe
            folders.insert(0, "warmup")
        parts = [self.path / folder / "metrics.jsonl" for folder in folders]
        write_atomically(self.path / "metrics.jsonl", b"".join(part.read_bytes() for part in parts if part.is_file()))

    @cached_property
    def _benchmarks(self) -> RecipeTasks | None:
        """What the recipe's benchmarks ask; of the process that evaluates."""
        asked = self.processes.first and any(one.kind == "benchmark" for one in self.plan.recipe.evaluate)
        return Examination(self.shop, {}).tasks if asked else None

    def _evaluate(self) -> None:
        plan = self.plan

        def work() -> dict[str, Any]:
            adapters = {"student": None, "warm-up": self._adapter(0), "distilled": self._adapter(plan.recipe.train.rounds)}
            if plan.recipe.preference:
                adapters |= {"before preference": adapters.pop("distilled"), "distilled": self.path / "preference" / "adapter"}
            if plan.recipe.warmup.kind == "none":
                del adapters["warm-up"]
            (self.path / "evaluation" / "examples.json").unlink(missing_ok=True)  # of an earlier recipe
            something = plan.recipe.preference or any(one.questions or one.kind == "benchmark" for one in plan.recipe.evaluate) or (plan.recipe.evaluate and self._read("heldout"))
            rows = Examination(self.shop, adapters).measure() if something else []
            write_json(self.path / "measurements.json", [row.as_dict() for row in rows])
            return {"measurements": len(rows)}

        stages = ["warmup", f"round_{plan.recipe.train.rounds}-train", *(["preference"] if plan.recipe.preference else [])]
        asked = [self._benchmarks.digest] if self._benchmarks else []
        inputs = [plan.digest, self.directory.digests["prompts"], *asked, *(self.directory.digests[stage] for stage in stages), __version__]
        self.directory.stage("evaluate", inputs, ["measurements.json"], work)

    def measure_before(self) -> None:
        """Measure the student and the warmed-up student on the held-out prompts now; `evaluate` finds it done."""
        plan = self.plan
        adapters = {"student": None} | ({"warm-up": self._adapter(0)} if plan.recipe.warmup.kind != "none" else {})
        if not self._read("heldout"):
            return

        def work() -> None:
            Examination(self.shop, adapters).measure_before()

        inputs = [[one.model_dump(mode="json") for one in plan.recipe.evaluate], self._model("teacher"), self._model("student"), plan.recipe.sampling.model_dump(exclude=NOT_THE_TEXT),
                  plan.recipe.train.seed, plan.vocab, self.directory.digests["prompts"], self.directory.digests["warmup"], __version__]  # fmt: skip
        self.directory.stage("evaluate-before", inputs, [f"evaluation/{KNOWN}"], work)

    def finish(self) -> None:
        """After the evaluation: the record, the card, the local repository folder, the report."""
        write_record(self.path, self.plan, self.directory.seconds(), self.results(), self.chat_template(), self.directory.memory())
        self.reporter.stage("card", "started")
        build_local(self.path)
        write_report(self.path)

    def chat_template(self) -> str | None:
        """The chat template that the student was trained with, where its own differs or is missing: who uses the adapter needs it."""
        from hubdistill.models.load import load_processor, load_tokenizer

        own_view = self.plan.target.modality.own_view
        own = (load_processor if own_view else load_tokenizer)(self.plan.student_source).chat_template
        used = self.shop.readers["student"].chat_template
        return None if own == used else str(used)

    def measurements(self) -> list[Measurement]:
        """What the evaluation found; empty when there was nothing to evaluate."""
        return [Measurement.from_dict(row) for row in read_json_list(self.path / "measurements.json")]

    def results(self) -> dict[str, dict[str, Any]]:
        """What each stage of this run reported; stages of an earlier recipe in the same directory are not among them."""
        return {stage: read_json(self.path / "stages" / f"{stage}.json")["result"] for stage in self.directory.digests}


def read_json_list(path: Path) -> list[Any]:
    """A JSON list; empty when the file is not there."""
    import json

    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
