"""The targets a recipe can name, explicitly."""

from hubdistill.targets import drafter, int4, text, vlm
from hubdistill.targets.base import Target

TARGETS: tuple[Target, ...] = (text.TARGET, vlm.TARGET, int4.TARGET, drafter.TARGET)


def target_named(kind: str) -> Target:
    """The target of that name; recipes are checked against TARGETS before."""
    return next(target for target in TARGETS if target.name == kind)
