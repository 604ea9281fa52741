"""What may be a repository id, a commit and a revision on the Hub; and the files of an adapter repository."""

from __future__ import annotations

import re

from hubdistill.errors import InputError

_PART = r"[A-Za-z0-9_](?:[\w.-]*[\w])?"
_ID = re.compile(rf"(?:{_PART}/)?{_PART}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REVISION = re.compile(r"[A-Za-z0-9_][\w./-]*", re.ASCII)

WEIGHTS, CONFIG, TEMPLATE, CARD = "adapter_model.safetensors", "adapter_config.json", "chat_template.jinja", "README.md"
RECIPE, RUN, MEASUREMENTS = "hubdistill/recipe.yaml", "hubdistill/run.json", "hubdistill/measurements.json"
FILES = (CARD, CONFIG, WEIGHTS, TEMPLATE, RECIPE, RUN, MEASUREMENTS)  # all that an adapter repository may hold


def is_hub_id(value: object) -> bool:
    """Whether `value` can be a Hub repository: NAME or ORG/NAME, by the client's own rules."""
    if not isinstance(value, str) or len(value) > 96 or value.endswith(".git"):
        return False
    return bool(_ID.fullmatch(value)) and "--" not in value and ".." not in value


def is_commit(value: object) -> bool:
    """Whether `value` is a full 40-digit commit."""
    return isinstance(value, str) and bool(_COMMIT.fullmatch(value))


def require_repo(repo: str) -> None:
    """Raise InputError unless `repo` is ORG/NAME."""
    if not is_hub_id(repo) or "/" not in repo:
        raise InputError(
            f"{repo!r} is not a Hub repository. Use ORG/NAME: letters, digits, '-', '_' and '.', at most 96 characters, without '--' or '..'."
        )


def require_revision(revision: str | None) -> None:
    """Raise InputError unless `revision` is None or can be a branch, tag, commit or pull request."""
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise InputError(f"{revision!r} cannot be a revision. Use a branch, a tag, a commit, or refs/pr/N.")


def check_base(base: str, commit: str | None) -> None:
    """Raise InputError unless an adapter's base can be named on the Hub."""
    if not is_hub_id(base):
        raise InputError(
            f"the base model {base!r} is not on the Hub, so nobody could load the adapter. "
            "Set `publish.base_repo: ORG/NAME` in the recipe, or pass `--base-repo ORG/NAME`: the base is then pushed beside the adapter."
        )
    if commit is not None and not is_commit(commit):
        raise InputError(
            f"the base model's revision {commit!r} is not a full commit. Plan the run again, so that {base} is pinned to one."
        )
