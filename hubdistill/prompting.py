"""The prompts stage: training and held-out prompts, and the questions that evaluations ask, drawn once and kept."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hubdistill.errors import InputError
from hubdistill.evaluation.questions import not_trained_on, question_sets
from hubdistill.examination import PREFERRED, PREFERRED_HELD_OUT
from hubdistill.files import write_atomically
from hubdistill.pairs.image_sources import state_of_files
from hubdistill.pairs.prompt_report import counted
from hubdistill.pairs.prompt_sources import local_file
from hubdistill.pairs.prompts import Prompt, load_prompts, save_prompts
from hubdistill.rundir import RunDirectory
from hubdistill.specs import QuestionsSpec
from hubdistill.stages import Workshop

HOW_TUNED = {"beta", "epochs", "learning_rate"}  # fields of `preference` that decide no pair
READ_FROM = "read_from.json"  # in `prompts/`: what was read, for saying later what changed


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
        inputs += [self._read_from["images"]]
        inputs += [[asked.model_dump(mode="json") for _, asked in sets], [facts.commit for facts in plan.questions]] if sets else []
        if plan.recipe.preference and plan.preferences:
            inputs += [plan.recipe.preference.model_dump(mode="json", exclude=HOW_TUNED), plan.preferences.commit]
        preference = (PREFERRED, PREFERRED_HELD_OUT) if plan.recipe.preference else ()
        self.directory.stage("prompts", inputs, [f"prompts/{name}.parquet" for name in ("train", "heldout", *dict(sets), *preference)], self._work)

    def _work(self) -> dict[str, Any]:
        shop, recipe, folder = self.shop, self.shop.plan.recipe, self.shop.folder
        (folder / "run.json").unlink(missing_ok=True)  # images may have changed under an unchanged plan: `push` refuses a run without it
        for line in self._changes():
            shop.reporter.note(line)
        train, heldout, report = load_prompts(recipe.prompts, self._base, shop.encode, recipe.train.seed, shop.images)
        asked = {name: self._read_questions(spec, train) for name, spec in question_sets(recipe.evaluate)}
        saved = {"train": train, "heldout": heldout} | {name: prompts for name, (prompts, _) in asked.items()}
        saved |= self._read_preferences()
        for name, prompts in saved.items():
            save_prompts(folder / "prompts" / f"{name}.parquet", prompts, shop.encode)
        write_atomically(folder / "prompts" / READ_FROM, json.dumps(self._read_from).encode())
        shop.images.keep_only(name for prompts in saved.values() for prompt in prompts for name in prompt.images)
        for line in report.lines():
            shop.reporter.note(line)
        return report.as_dict() | {"questions": [counts for _, counts in asked.values()]}

    def _read_questions(self, spec: QuestionsSpec, train: list[Prompt]) -> tuple[list[Prompt], dict[str, Any]]:
        """A set of questions without those that are trained on, and what of it a card says. Raises InputError where none is left."""
        shop = self.shop
        found, _, report = load_prompts(spec, self._base, shop.encode, shop.plan.recipe.train.seed, shop.store(spec.image_pixels))
        kept = not_trained_on(found, train, spec.instruction)
        if not kept:
            raise InputError(f"{spec.dataset}: all of its {len(found)} questions are training prompts, so they would measure memory; name another file or split in `questions`")
        trained = [counted(len(found) - len(kept), "that is a training prompt", "that are training prompts")] if len(kept) < len(found) else []
        shown = replace(report, kept_train=len(kept), without_response=0)
        shop.reporter.note(f"{spec.dataset}: {'; '.join([*shown.lines('question'), *(f'left out: {line}' for line in trained)])}")
        return kept, {"kept": len(kept), "left_out": [*report.left_out(), *trained]}

    def _read_preferences(self) -> dict[str, list[Prompt]]:
        """The pairs of the preference stage, where the recipe has one: prompts whose answers are the preferred response and the other."""
        spec, shop = self.shop.plan.recipe.preference, self.shop
        if spec is None:
            return {}
        train, heldout, report = load_prompts(spec, self._base, shop.encode, shop.plan.recipe.train.seed)
        shop.reporter.note(f"{spec.dataset}: {'; '.join(report.lines('pair'))}")
        return {PREFERRED: train, PREFERRED_HELD_OUT: heldout}

    @property
    def _base(self) -> Path | None:
        """Folder that local data files are relative to; None for a recipe from the Hub, which may not name any."""
        return None if self.shop.plan.loaded.origin == "hub" else self.shop.plan.base_dir

    @cached_property
    def _read_from(self) -> dict[str, dict[str, Any]]:
        """The data as they lie there now: data set -> commit or digest, and data set -> image file -> its state."""
        plan = self.shop.plan
        sources = [plan.recipe.prompts, *(spec for _, spec in question_sets(plan.recipe.evaluate)), *filter(None, [plan.recipe.preference])]
        facts = zip(sources, plan.data, strict=True)
        images: dict[str, dict[str, list[int]]] = {}
        for spec in sources:
            path = local_file(spec, self._base)
            if found := state_of_files(path, spec) if path else {}:
                images.setdefault(spec.dataset, {}).update(found)
        return {"data": {spec.dataset: one.commit for spec, one in facts}, "images": images}

    def _changes(self) -> list[str]:
        """What is no longer as it was when the prompts were read into this run directory, a line for each data set."""
        try:
            before = json.loads((self.shop.folder / "prompts" / READ_FROM).read_text(encoding="utf-8"))
            data, images = before["data"], before["images"]
        except (OSError, ValueError, LookupError, TypeError):  # of an earlier version, or damaged: it only explains
            return []
        lines = [f"{name} changed since it was read" for name, state in self._read_from["data"].items() if data.get(name, state) != state]
        for name, now in self._read_from["images"].items():
            known = images.get(name, {})
            changed = [file for file, state in now.items() if known.get(file, state) != state]
            lines += [f"{name}: {_named(changed)} changed since {'it was' if len(changed) == 1 else 'they were'} read"] if changed else []
        return lines


def _named(files: list[str]) -> str:
    """The files, three of them by name."""
    more = f" and {counted(len(files) - 3, 'more image file')}" if len(files) > 3 else ""
    return "the image file " * (len(files) == 1) + ", ".join(files[:3]) + more
