"""The prompts stage: training and held-out prompts, and the questions that evaluations ask, drawn once and kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hubdistill.errors import InputError
from hubdistill.evaluation.questions import not_trained_on, question_sets
from hubdistill.pairs.image_sources import state_of_files
from hubdistill.pairs.prompt_sources import local_file
from hubdistill.pairs.prompts import Prompt, load_prompts, save_prompts
from hubdistill.rundir import RunDirectory
from hubdistill.specs import QuestionsSpec, SourceSpec
from hubdistill.stages import Workshop


@dataclass(frozen=True)
class Prompting:
    """Reads what a recipe names into `prompts/` of its run directory."""

    shop: Workshop
    directory: RunDirectory

    def read(self) -> None:
        """The stage; kept where nothing changed that it reads, the image files that a data file names among it."""
        plan, seed = self.shop.plan, self.shop.plan.recipe.train.seed
        spec, sets = plan.recipe.prompts, question_sets(plan.recipe.evaluate)
        inputs = [spec.model_dump(mode="json"), plan.prompts.commit, plan.teacher.commit, seed]
        inputs += [plan.student_source.commit] if plan.target.modality.own_view else []
        inputs += [[state for source in (spec, *(asked for _, asked in sets)) if (state := self._images_on_disk(source))]]
        inputs += [[asked.model_dump(mode="json") for _, asked in sets], [facts.commit for facts in plan.questions]] if sets else []
        self.directory.stage("prompts", inputs, [f"prompts/{name}.parquet" for name in ("train", "heldout", *dict(sets))], self._work)

    def _work(self) -> dict[str, Any]:
        shop, recipe, folder = self.shop, self.shop.plan.recipe, self.shop.folder
        (folder / "run.json").unlink(missing_ok=True)  # images may have changed under an unchanged plan: `push` refuses a run without it
        train, heldout, report = load_prompts(recipe.prompts, self._base, shop.encode, recipe.train.seed, shop.images)
        saved = {"train": train, "heldout": heldout}
        saved |= {name: self._read_questions(spec, train) for name, spec in question_sets(recipe.evaluate)}
        for name, prompts in saved.items():
            save_prompts(folder / "prompts" / f"{name}.parquet", prompts, shop.encode)
        shop.images.keep_only(name for prompts in saved.values() for prompt in prompts for name in prompt.images)
        for line in report.lines():
            shop.reporter.note(line)
        return report.as_dict()

    def _read_questions(self, spec: QuestionsSpec, train: list[Prompt]) -> list[Prompt]:
        """A set of questions without those that are trained on. Raises InputError where none is left."""
        shop = self.shop
        found, _, report = load_prompts(spec, self._base, shop.encode, shop.plan.recipe.train.seed, shop.store(spec.image_pixels))
        kept = not_trained_on(found, train, spec.instruction)
        if not kept:
            raise InputError(f"{spec.dataset}: all of its {len(found)} questions are training prompts, so they would measure memory; name another file or split in `questions`")
        trained = [f"left out: {len(found) - len(kept)} that are training prompts"] if len(kept) < len(found) else []
        lines = replace(report, kept_train=len(kept), without_response=0).lines("question")
        shop.reporter.note(f"{spec.dataset}: {'; '.join([*lines, *trained])}")
        return kept

    @property
    def _base(self) -> Path | None:
        """Folder that local data files are relative to; None for a recipe from the Hub, which may not name any."""
        return None if self.shop.plan.loaded.origin == "hub" else self.shop.plan.base_dir

    def _images_on_disk(self, spec: SourceSpec) -> str | None:
        path = local_file(spec, self._base)
        return state_of_files(path, spec) if path else None
