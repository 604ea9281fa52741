"""A finished run's student with its adapter merged in: built, checked, and pushed after the adapter that its card names."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hubdistill.errors import InputError
from hubdistill.hub.base_publish import published_base, push_base
from hubdistill.hub.merged_card import MergedFacts, render_merged_card
from hubdistill.hub.methods import method_of
from hubdistill.hub.publish import Published
from hubdistill.hub.run_card import Place, drafts_of, license_of

NOT_YET = "0" * 40  # in the card that is checked before the adapter has a commit


@dataclass(frozen=True)
class Merged:
    """The merged model in a folder, and what its card will say."""

    folder: Path
    facts: MergedFacts


def merge(record: Mapping[str, Any], base: str, on_hub: bool, template: str | None, adapter: Path, folder: Path, repo: str) -> Merged:
    """Merge the adapter into its base. Raises InputError where that fails, and as `push_base` does for its files and for what
    is in the repository; nothing is sent."""
    from hubdistill.models.merged import build_merged
    from hubdistill.models.sources import find_model
    from hubdistill.specs import ModelSpec

    spec = ModelSpec(model=base, revision=record["student"]["commit"] if on_hub else None)
    try:
        build_merged(find_model(spec, folder.parent), adapter.absolute(), template, folder)
    except (ValueError, OSError, RuntimeError) as problem:
        raise InputError(f"the adapter cannot be merged into {base} ({problem}); publish it alone, without --merged-repo (`publish.merged_repo` in the recipe)") from problem
    facts = MergedFacts(repo=repo, adapter=repo, adapter_commit=NOT_YET, base=base, base_commit=None, license=license_of(record["student"]["license"]),
                        pipeline_tag=record["pipeline_tag"], drafts=drafts_of(record), method=method_of(record["loss"]))  # fmt: skip
    published_base(folder, repo, render_merged_card(replace(facts, base=repo)))
    return Merged(folder, facts)


def push_merged(merged: Merged, place: Place, adapter_commit: str, *, private: bool, resume_command: str) -> Published:
    """Push it beside the adapter, which is on the Hub at `place` by now."""
    assert place.repo, "the adapter was pushed"
    facts = replace(merged.facts, adapter=place.repo, adapter_commit=adapter_commit, base=place.base, base_commit=place.base_commit)
    done = push_base(merged.folder, facts.repo, private=private, card=render_merged_card(facts), resume_command=resume_command)
    shutil.rmtree(merged.folder)
    return done
