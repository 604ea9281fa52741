"""The recipe that a command is asked for: a file, a shipped recipe, or the one of an adapter on the Hub."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hubdistill.errors import InputError

if TYPE_CHECKING:
    from hubdistill.recipe import LoadedRecipe


@dataclass(frozen=True)
class Asked:
    """The recipe as the command line names it."""

    reference: str
    overrides: list[str] | None = None
    allow_remote_code: bool = False
    revision: str | None = None

    def load(self) -> LoadedRecipe:
        """A recipe by file, by shipped name, or from the adapter repository that it made."""
        # Here and not above: `hubdistill --help` needs none of them.
        from hubdistill.hub.pull import fetch_recipe
        from hubdistill.recipe import load_recipe
        from hubdistill.shipped import find_recipe

        reference, given = self.reference, self.overrides or []
        # os.path and not Path: that one raises for a name that is too long for a file.
        if not os.path.isfile(reference):
            shipped = find_recipe(reference)
            if not shipped and not reference.endswith((".yaml", ".yml")) and reference.count("/") == 1 and not os.path.exists(reference):
                fetched = fetch_recipe(reference, self.revision)
                return load_recipe(fetched, given, origin="hub", allow_remote_code=self.allow_remote_code, name=reference.split("/")[1])
            self._refuse_revision()
            if shipped:
                return load_recipe(shipped, given, origin="shipped", allow_remote_code=True, name=reference.removesuffix(".yaml"))
        self._refuse_revision()
        return load_recipe(reference, given, allow_remote_code=True)

    def _refuse_revision(self) -> None:
        if self.revision is not None:
            raise InputError(f"--revision is for a recipe on the Hub, and {self.reference} is none; leave it out, or name ORG/NAME")

    def run_command(self, output: Path | None) -> str:
        """`hubdistill run` of the same recipe, in the same directory."""
        words = ["hubdistill", "run", self.reference, *(self.overrides or []), *(["-o", str(output)] if output else [])]
        words += [*(["--revision", self.revision] if self.revision else []), *(["--allow-remote-code"] if self.allow_remote_code else [])]
        return shlex.join(words)
