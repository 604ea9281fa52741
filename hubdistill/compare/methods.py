"""What `compare` compares: methods by the name of their loss preset, with changes to it where they are asked for.

    hubdistill compare quickstart --methods distillm2,distillm2:loss.beta=paper,gkd
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches

from hubdistill.errors import InputError
from hubdistill.files import digest_of
from hubdistill.losses.contrastive import PRESETS, LossPreset

RECIPE = "recipe"  # the loss as the recipe has it
SHOWN = "distillm2, gkd, kd, seqkd"
LONGEST = 100  # characters of a run directory's name; file systems take 255 bytes, and files in it have names of their own


@dataclass(frozen=True)
class Method:
    """A loss to compare. `overrides` make a recipe's loss into it; `name` is what the user wrote."""

    name: str
    overrides: tuple[str, ...]

    @property
    def folder(self) -> str:
        """Its run directory's name."""
        name = re.sub(r"[^\w.-]+", "-", self.name)
        return name if len(name) <= LONGEST else f"{name[: LONGEST - 13]}-{digest_of(self.name)[:12]}"

    @property
    def preset(self) -> LossPreset | None:
        """The preset it starts from; None for the recipe's own loss."""
        return PRESETS.get(self.name.partition(":")[0])

    def on_teacher(self) -> Method:
        """The same with the teacher's responses in place of the data set's."""
        return Method(self.name, (*self.overrides, "loss.fixed_responses=teacher"))


def parse_methods(text: str) -> tuple[Method, ...]:
    """`NAME[:loss.KEY=VALUE]...`, separated by commas that are in no brackets; the first is what the others are held against.

    Raises InputError for a name that is no preset, a change of anything but the loss, or a method that is there twice.
    """
    found = [_method(one.strip()) for one in re.split(r",(?![^\[\]]*\])", text) if one.strip()]
    if not found:
        raise InputError(f"--methods names no method; write for example --methods {SHOWN}")
    for method in found:
        if [other.folder for other in found].count(method.folder) > 1:
            raise InputError(f"--methods: '{method.name}' is there twice; leave one out")
    return tuple(found)


def _method(text: str) -> Method:
    name, *changes = text.split(":")
    if name != RECIPE and name not in PRESETS:
        near = get_close_matches(name, [*PRESETS, RECIPE], 1)
        hint = f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(PRESETS)}, or {RECIPE} for the recipe's own loss"
        raise InputError(f"--methods: '{name}' is no method; {hint}")
    for change in changes:
        if not re.fullmatch(r"loss\.\w+=.+", change) or change.startswith("loss.preset="):
            raise InputError(f"--methods: '{change}' is no change of the loss, and methods differ in nothing else; write for example {name}:loss.beta=paper")
    # The whole block: what the recipe says of its own loss, such as an alpha, is not meant for this one.
    return Method(text, (*(() if name == RECIPE else (f"loss={{preset: {name}}}",)), *changes))
