"""The cells of a comparison: a normal run directory for each method and seed, all on the responses that were sampled once.

`FOLDER/seed_S/shared` is a run up to the first responses of teacher and student. Every cell of the seed starts as a copy of
it, so its stages find their work done. Each cell trains on the same number of response tokens in a round: twice those of the
teacher's responses, which is what one pass over the pairs has when both models answer at the same length.
"""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubdistill.compare.methods import Method
from hubdistill.compare.steady import CELLS, pinned, require_ours, require_same
from hubdistill.errors import InputError, RecipeError
from hubdistill.files import write_atomically, write_json
from hubdistill.hub.asked import Asked
from hubdistill.models.sources import read_json
from hubdistill.plan import Plan, make_plan
from hubdistill.rundir import MARKER, RunDirectory

if TYPE_CHECKING:
    from hubdistill.run import Run
    from hubdistill.stages import Reporter

SHARED = "shared"
SAMPLED = "loss={preset: cald}"  # a loss that needs the responses of both
OWN_FILES = {MARKER, "recipe.yaml"}  # of each run directory


@dataclass(frozen=True)
class Comparison:
    """Methods and seeds on one recipe, in a folder. `methods[0]` is what the others are held against."""

    asked: Asked
    methods: tuple[Method, ...]
    seeds: int
    folder: Path

    @cached_property
    def plan(self) -> Plan:
        """Of the shared part, with the recipe's own seed. Raises RecipeError."""
        return self._plan([SAMPLED])

    @property
    def seed_numbers(self) -> list[int]:
        first = self.plan.recipe.train.seed
        return list(range(first, first + self.seeds))

    def _plan(self, overrides: Sequence[str]) -> Plan:
        """A plan that pushes nothing and runs in this process."""
        given = [*(self.asked.overrides or []), *overrides, "train.distributed={processes: 1}", "publish=null", "preference=null"]
        return make_plan(replace(self.asked, overrides=given).load())

    def _plan_run(self, overrides: Sequence[str]) -> Plan:
        """The same of a run, which may begin hours later: with the settings, models and data of `plan`. Raises InputError."""
        found = self._plan([*pinned(self.plan), *overrides])
        require_same(found, self.plan)
        return found

    @cached_property
    def settled(self) -> tuple[Method, ...]:
        """The methods, on the teacher's responses where the data set has none of its own. Raises InputError where two become the same."""
        lacking = self.plan.prompts.responses is False
        found = [one.on_teacher() if lacking and (preset := one.preset) and preset.fixed_responses == "data" else one for one in self.methods]
        losses = [self._plan(one.overrides).preset for one in found]
        for number, loss in enumerate(losses):
            for other in range(number):
                if replace(loss, name="") == replace(losses[other], name=""):
                    moved = any(found[one] != self.methods[one] for one in (number, other))
                    why = ", since the data set has no responses of its own" if moved else ""
                    raise InputError(f"--methods: '{found[number].name}' is here the same as '{found[other].name}'{why}; leave one out")
        return tuple(found)

    def check(self) -> None:
        """Refuse what cannot run, before anything does: every method's recipe is planned. Raises RecipeError, InputError, RunDirectoryError."""
        require_ours(self.folder)
        if self.plan.recipe.train.tokens is not None:
            raise RecipeError([f"{self.plan.loaded.path}: train.tokens: compare sets it, so that methods have equal shares; remove it"])
        if self.plan.recipe.train.prompts_per_round is not None:
            raise RecipeError([f"{self.plan.loaded.path}: train.prompts_per_round: methods are compared on all prompts in each round; remove it"])
        if not self.plan.recipe.evaluate:
            raise RecipeError([f"{self.plan.loaded.path}: evaluate: is empty, and there is nothing to compare by; write evaluate: [{{kind: divergence}}]"])
        if len(self.seed_numbers) > 1:
            self._plan([f"train.seed={self.seed_numbers[-1]}"])  # refuses one that is too large
        _ = self.settled

    def changes(self) -> list[str]:
        """What of the methods is not as their presets say, in words."""
        moved = [one.name for one, asked in zip(self.settled, self.methods, strict=True) if one != asked]
        return [f"the data set has no responses of its own: {' and '.join(moved)} train on the teacher's"] if moved else []

    def cell(self, method: Method, seed: int) -> Path:
        return self.folder / f"seed_{seed}" / method.folder

    def record(self) -> dict[str, Any]:
        """What is compared, for who reads the folder."""
        methods = [{"name": one.name, "overrides": list(one.overrides), "folder": one.folder} for one in self.settled]
        return {"recipe": self.plan.loaded.name, "teacher": self.plan.teacher.reference, "student": self.plan.student.reference, "seeds": self.seed_numbers, "methods": methods}

    def _begin(self) -> None:
        """Keep what is compared; where that is no longer what it was, the cells count as not done until they have been gone through again."""
        file, record = self.folder / CELLS, self.record() | {"of": self.plan.digest}
        if file.is_file() and read_json(file).get("of") != record["of"]:
            for old in self.folder.glob("seed_*/*/run.json"):
                old.unlink()  # `finish` writes it anew; stages whose inputs are the same are kept
        write_json(file, record)

    def run(self, reporter: Reporter) -> None:
        """Do every cell that is not done, seed by seed. Run again after an interruption, it goes on."""
        self.check()
        self._begin()
        for seed in self.seed_numbers:
            set_imports_aside()
            tokens = self._share(seed, reporter)
            for number, method in enumerate(self.settled, 1):
                reporter.note(f"seed {seed}, method {number} of {len(self.methods)}: {method.name}")
                folder = self.cell(method, seed)
                take_over(self.folder / f"seed_{seed}" / SHARED, folder)
                with self._opened(folder, [f"train.seed={seed}", f"train.tokens={tokens}", *method.overrides], reporter) as run:
                    run.distil()
                    run.finish()

    def _share(self, seed: int, reporter: Reporter) -> int:
        """Sample what all cells of a seed train and are measured on; -> response tokens of a round."""
        reporter.note(f"seed {seed}: what the methods share")
        with self._opened(self.folder / f"seed_{seed}" / SHARED, [f"train.seed={seed}", SAMPLED], reporter) as run:
            run.distil(until="sample", round=1)
            run.measure_before()
            return 2 * int(run.results()["round_1-teacher"]["tokens"])

    @contextmanager
    def _opened(self, folder: Path, overrides: Sequence[str], reporter: Reporter) -> Iterator[Run]:
        from hubdistill.run import Run

        with RunDirectory(folder, reporter.stage).locked() as directory:
            yield Run(self._plan_run(overrides), directory, reporter)


def set_imports_aside() -> None:
    """Keep what was imported out of garbage collections: dozens of them would each walk the millions of objects of torch and
    transformers, which takes longer than training a small model."""
    gc.collect()
    gc.freeze()


def take_over(source: Path, folder: Path) -> None:
    """Give a run directory the files of another, as hard links where the disk has them; what is already the same stays.

    Every file of a run is replaced whole and never written into, so a link is as good as a copy.
    """
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        if path.is_dir() or any(part.startswith(".") for part in name.parts) or str(name) in OWN_FILES:
            continue
        target = folder / name
        if target.exists() and target.samefile(path):
            continue
        if not (folder / MARKER).exists():  # marks the directory as ours
            write_atomically(folder / MARKER, (source / MARKER).read_bytes())
        target.parent.mkdir(parents=True, exist_ok=True)
        _link(path, target)


def _link(path: Path, target: Path) -> None:
    new = target.with_name(f".{target.name}.new")
    new.unlink(missing_ok=True)
    try:
        os.link(path, new)
    except OSError:
        shutil.copy2(path, new)
    os.replace(new, target)


def described(comparison: Comparison) -> dict[str, Any]:
    """What would be done, for --dry-run."""
    plan = comparison.plan
    return {
        "recipe": plan.loaded.name,
        "folder": str(comparison.folder),
        "methods": {one.name: list(one.overrides) for one in comparison.settled},
        "seeds": comparison.seed_numbers,
        "prompts_at_most": plan.most_prompts,
        "heldout": plan.recipe.prompts.heldout,
        "rounds": plan.recipe.train.rounds,
        "tokens_per_round_at_most": None if plan.most_prompts is None else 2 * plan.most_prompts * plan.recipe.sampling.max_tokens,
        "runs": [str(comparison.cell(one, seed)) for seed in comparison.seed_numbers for one in comparison.settled],
    }
