"""From a finished run to a repository: what the run knows, as the facts of a card; staged locally, and pushed on request.

Everything is read back from run.json and measurements.json, so that `card` and `push` need neither models nor recipe.
"""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hubdistill.destination import check_repositories, destination
from hubdistill.evaluation.gate import verdict_of
from hubdistill.evaluation.lengths import measured_by_length
from hubdistill.files import write_atomically, write_json
from hubdistill.finished import final_adapter, load_run, location, require_gate, undamaged
from hubdistill.hub import card as cards
from hubdistill.hub.access import check_access
from hubdistill.hub.base_publish import (
    BaseFacts,
    base_files,
    check_base_files,
    published_base,
    push_base,
    render_base_card,
)
from hubdistill.hub.failures import hub_token
from hubdistill.hub.local_names import override_without_paths, without_paths
from hubdistill.hub.names import CARD, CONFIG, MEASUREMENTS, RECIPE, RUN, TEMPLATE, WEIGHTS
from hubdistill.hub.publish import Published, check_arguments, check_push, preview, push
from hubdistill.hub.reproduce import files_of_this_machine, pinned_recipe, public_names
from hubdistill.hub.run_card import Place, card_facts, license_of
from hubdistill.hub.staging import stage
from hubdistill.merging import Merged, merge, push_merged
from hubdistill.models.hardware import hardware
from hubdistill.models.sources import read_json
from hubdistill.plan import Plan
from hubdistill.specs import PublishSpec

PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "huggingface_hub")
REPRODUCE = "reproduce.yaml"  # the resolved recipe that goes into the repository


def write_record(path: Path, plan: Plan, seconds: Mapping[str, float], results: Mapping[str, Any], template: str | None,
                 memory: Mapping[str, Mapping[str, int]] | None = None) -> None:  # fmt: skip
    """Write run.json (what goes to the Hub: no path of this machine), location.json (what does not), and the recipe."""
    from hubdistill.estimate.compared import compared, times  # runs models without memory

    names = public_names(plan)
    record = plan.as_dict() | {
        "name": plan.loaded.name,
        "overrides": [override_without_paths(override, names) for override in plan.loaded.overrides],
        "seconds": dict(seconds),
        "stages": dict(results),
        "memory": compared(plan, memory or {}),
        "time": times(plan, seconds),
        "by_length": measured_by_length(path, plan.recipe.train.seed) if results.get("evaluate", {}).get("measurements") else [],
        "hardware": hardware(plan.recipe.train.device),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "quantization": _quantization(plan),
        "target_facts": plan.target.facts(plan.recipe.target.options),
        "pipeline_tag": plan.target.modality.pipeline_tag,
        "files_of_this_machine": files_of_this_machine(plan),
        "student_source": plan.student_source.reference,
        "student_source_commit": plan.student_source.commit,
    }
    write_json(path / "run.json", without_paths(record, names))
    write_json(path / "location.json", {"base": plan.student.location, "kind": plan.student.kind, "chat_template": template})
    write_atomically(path / REPRODUCE, pinned_recipe(plan).encode())


def _quantization(plan: Plan) -> dict[str, Any] | None:
    """How the student was loaded, whole."""
    if plan.quantization is None:
        return None
    from hubdistill.models.hardware import pick_device
    from hubdistill.models.quantized import how_loaded

    return how_loaded(plan.student, plan.recipe.student.dtype, pick_device(plan.recipe.train.device), plan.quantization)


def build(path: Path, place: Place, folder: Path) -> Path:
    """Render the card and stage the repository in `folder`; README.md also lands in the run directory."""
    record, measurements = load_run(path)
    template = location(path).template
    adapter = final_adapter(path, record)
    config = read_json(adapter / CONFIG)
    with undamaged(path / "run.json"):
        text = cards.render_card(card_facts(record, measurements, place, config, template is not None))
    files = {CONFIG: adapter / CONFIG, WEIGHTS: adapter / WEIGHTS, RECIPE: path / REPRODUCE, RUN: path / "run.json", MEASUREMENTS: path / "measurements.json"}
    if template is not None:
        write_atomically(path / TEMPLATE, template.encode())
        files[TEMPLATE] = path / TEMPLATE
    stage(files, text, folder, base=place.base, base_commit=place.base_commit, local=place.repo is None, token=hub_token() if place.repo else None)
    write_atomically(path / CARD, text.encode())
    return folder


def build_local(path: Path) -> Path:
    """The folder laid out as the repository would be, with the base by its place on this machine if it is not on the Hub."""
    record = load_run(path)[0]
    found = location(path)
    place = Place(repo=None, base=found.base, base_commit=record["student"]["commit"] if found.on_hub else None)
    return build(path, place, path / "hub")


def _shown_revision(revision: str | None, tag: str | None) -> str | None:
    """What the card pins: the tag, else a branch beside main; a pull request is merged into main."""
    return tag or (None if revision is None or revision == "main" or revision.startswith("refs/pr/") else revision)


def publish(path: Path, repo: str, *, base_repo: str | None, private: bool, tag: str | None, create_pr: bool = False,
            revision: str | None = None, overwrite_card: bool = False, merged_repo: str | None = None, force: bool = False) -> Published:  # fmt: skip
    """Push the base (where it is not on the Hub), then the adapter with its card, pinned to that base's commit; then the
    model with the adapter merged in, if it has a repository.

    Whatever can be refused is refused before the base is pushed. Raises GateError for a student that became worse, unless `force`.
    """
    check_arguments(repo, revision, create_pr, tag)
    place, own_base = destination(path, repo, base_repo, _shown_revision(revision, tag), merged_repo, on_main=not create_pr and revision in (None, "main"))
    resume = _push_command(path, repo, base_repo, merged_repo, private=private, create_pr=create_pr, tag=tag, revision=revision, overwrite_card=overwrite_card, force=force)
    if not force:
        require_gate(path, f"{resume} --force")
    merged = _merged(path, place, private=private)
    options: dict[str, Any] = {"private": private, "create_pr": create_pr, "tag": tag, "revision": revision,
                               "overwrite_card": overwrite_card, "resume_command": resume}  # fmt: skip
    folder = build(path, place, path / "staged")
    base: Published | None = None
    if own_base:
        card = _base_card(place.base, load_run(path)[0])
        check_base_files(own_base, place.base, card)
        check_access(place.base, private=private)
        there = published_base(own_base, place.base, card)
        if tag:  # the same base at the same commit is what an unchanged push under this tag would name
            build(path, replace(place, base_commit=there), folder)
        check_push(folder, repo, **options)
        base = push_base(own_base, place.base, private=private, card=card, resume_command=resume)
        place = replace(place, base_commit=base.commit)
        build(path, place, folder)
    done = push(folder, repo, **options)
    shutil.rmtree(folder)
    whole = push_merged(merged, place, done.commit, private=private, resume_command=resume) if merged else None
    beside = [one for one in (base, whole) if one]
    named = ((base, "base"), (whole, "merged model"))
    hidden = [(word, one.repo) for one, word in named if one and (one.visibility, done.visibility) == ("private", "public")]  # repositories that are there keep their visibility
    done = replace(done, warnings=(*done.warnings, *(warning for one in beside for warning in one.warnings if warning not in done.warnings),
                                   *(f"{repo} is public and its {word} {one} is private, so others cannot load it; make the {word} public in its settings" for word, one in hidden)))  # fmt: skip
    done = replace(done, beside=tuple(one.url for one in beside))
    write_json(path / "published.json", {"repo": repo, "commit": done.commit, "url": done.url, "visibility": done.visibility, "base": place.base, "base_commit": place.base_commit, "pr": done.pr, "tag": done.tag, "merged": merged_repo})
    return done


def _merged(path: Path, place: Place, *, private: bool) -> Merged | None:
    """The merged model in a folder of the run, checked; None where nobody asked for it."""
    if not place.merged:
        return None
    record, found = load_run(path)[0], location(path)
    check_access(place.merged, private=private)
    return merge(record, found.base, found.on_hub, found.template, final_adapter(path, record), path / "merged", place.merged)


def _push_command(path: Path, repo: str, base_repo: str | None, merged_repo: str | None, *, private: bool, create_pr: bool, tag: str | None, revision: str | None, overwrite_card: bool, force: bool) -> str:
    given = [("--base-repo", base_repo), ("--merged-repo", merged_repo), ("--tag", tag), ("--revision", revision)]
    flags = [("--public", not private), ("--pr", create_pr), ("--overwrite-card", overwrite_card), ("--force", force)]
    words = ["hubdistill", "push", str(path), "--repo", repo, *(word for name, value in given if value for word in (name, value))]
    return shlex.join([*words, *(name for name, on in flags if on)])


def _base_card(repo: str, record: Mapping[str, Any]) -> str:
    return render_base_card(BaseFacts(repo=repo, source=record["student_source"], source_commit=record["student_source_commit"],
                                      how=f"{record['student']['reference']}.", license=license_of(record["student"]["license"]), pipeline_tag=record["pipeline_tag"]))  # fmt: skip


def publish_as_recipe(path: Path, spec: PublishSpec) -> Published:
    """`publish` with what the recipe says."""
    return publish(path, spec.repo, base_repo=spec.base_repo, private=spec.private, tag=spec.tag, merged_repo=spec.merged_repo)


def announce(spec: PublishSpec, note: Callable[[str], None]) -> None:
    """Say where a run will be published; raises before it begins where that is impossible."""
    check_repositories(spec.repo, spec.base_repo, spec.merged_repo)
    for repo in filter(None, (spec.repo, spec.base_repo, spec.merged_repo)):
        access = check_access(repo, private=spec.private)
        note(f"will publish to {repo} ({access.visibility}) as {access.user}")


def preview_text(path: Path, repo: str, *, base_repo: str | None, private: bool, tag: str | None, revision: str | None = None, create_pr: bool = False,
                 merged_repo: str | None = None) -> str:  # fmt: skip
    """What a push would send, and the card it would send; needs no network. The base's commit is not known yet."""
    check_arguments(repo, revision, create_pr, tag)
    place, own_base = destination(path, repo, base_repo, _shown_revision(revision, tag), merged_repo, on_main=not create_pr and revision in (None, "main"))
    folder = build(path, place, path / "staged")
    found = preview(folder, repo, private=private, tag=tag, revision=revision, create_pr=create_pr)
    lines = [f"{found.repo} on {found.endpoint}, revision {found.revision}, {found.visibility} if it is new"]
    lines += [f"  {name}  {size:,} bytes" for name, size in found.files]
    if own_base:
        lines.append(f"{place.base}, pushed first")
        lines += [f"  {file.name}  {file.stat().st_size:,} bytes" for file in base_files(own_base)]
    lines += [f"{place.merged}, merged and pushed last"] if place.merged else []
    verdict = verdict_of(*load_run(path))
    lines.append(f"gate: {verdict.text}{'; the push is refused without --force' if verdict.refuses else ''}")
    text = (folder / CARD).read_text(encoding="utf-8")
    shutil.rmtree(folder)
    build_local(path)
    return "\n".join([*lines, "", "README.md:", text])
