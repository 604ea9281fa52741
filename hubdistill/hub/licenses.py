"""The license of a model or data set, as its own card on the Hub states it."""

from __future__ import annotations

from typing import Any

from hubdistill.hub.card import License
from hubdistill.hub.failures import explained, retrying


def fetch_license(repo: str, *, revision: str | None = None, repo_type: str = "model") -> License:
    """License facts of `repo` at `revision`; all None where the card states none. Raises MissingError or HubError."""
    from huggingface_hub import HfApi

    with explained(repo, f"read the license of {repo}"):
        info = retrying(lambda: HfApi().repo_info(repo, revision=revision, repo_type=repo_type))
    data: Any = getattr(info, "card_data", None) or {}
    return License(
        id=_text(data.get("license")), name=_text(data.get("license_name")), link=_text(data.get("license_link"))
    )


def _text(value: Any) -> str | None:
    if isinstance(value, list):  # several licenses: only one that is the same for all can be inherited
        value = value[0] if len(value) == 1 else None
    return value if isinstance(value, str) and value else None
