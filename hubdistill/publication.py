"""From a finished run to a repository: what the run knows, as the facts of a card; staged locally, and pushed on request.

Everything is read back from run.json and measurements.json, so that `card` and `push` need neither models nor recipe.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hubdistill.errors import HubdistillError, InputError, MissingError
from hubdistill.evaluation.questions import OF_TYPE, RIGHT_ANSWERS
from hubdistill.evaluation.statistics import Measurement
from hubdistill.files import write_atomically, write_json
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
from hubdistill.hub.names import CARD, CONFIG, MEASUREMENTS, RECIPE, RUN, TEMPLATE, WEIGHTS, require_repo
from hubdistill.hub.publish import Published, check_arguments, check_push, preview, push
from hubdistill.hub.reproduce import files_of_this_machine, pinned_recipe, public_names
from hubdistill.hub.run_card import Place, card_facts, license_of
from hubdistill.hub.staging import stage
from hubdistill.models.sources import read_json
from hubdistill.plan import Plan
from hubdistill.specs import PublishSpec

PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "huggingface_hub")
RECORDED = {"name", "prompts", "questions", "quantization", "teacher", "student", "student_source", "student_source_commit", "rounds", "recipe", "stages", "seconds", "loss", "beta",
            "warnings", "hardware", "versions", "hubdistill", "target_facts", "pipeline_tag", "files_of_this_machine"}  # fmt: skip  # what a card is made of
SHOWN = ("gap_closed", "perplexity", "kl", "agreement", "rouge_l", "vqa_accuracy", "exact_match")  # metrics that `run` ends with; of questions the whole set
REPRODUCE = "reproduce.yaml"  # the resolved recipe that goes into the repository


def write_record(path: Path, plan: Plan, seconds: Mapping[str, float], results: Mapping[str, Any], template: str | None) -> None:
    """Write run.json (what goes to the Hub: no path of this machine), location.json (what does not), and the recipe."""
    names = public_names(plan)
    record = plan.as_dict() | {
        "name": plan.loaded.name,
        "overrides": [override_without_paths(override, names) for override in plan.loaded.overrides],
        "seconds": dict(seconds),
        "stages": dict(results),
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
    """How the student was loaded, whole, for the code that the card shows: bitsandbytes would compute in float32 unless told."""
    if plan.quantization is None:
        return None
    from hubdistill.models.load import pick_device
    from hubdistill.models.quantized import compute_dtype

    compute = compute_dtype(plan.recipe.student.dtype, pick_device(plan.recipe.train.device))
    return plan.quantization | {"bnb_4bit_compute_dtype": str(compute).removeprefix("torch.")}


def hardware(device: str) -> str:
    """What the run ran on, in words."""
    import torch

    from hubdistill.models.load import pick_device

    chosen = pick_device(device)
    if chosen.type == "cuda":
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(chosen)}"
    model = next((line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine())
    return f"{torch.get_num_threads()} threads of {model}" if chosen.type == "cpu" else str(chosen)


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []


def load_run(path: Path) -> tuple[dict[str, Any], tuple[Measurement, ...]]:
    """run.json and measurements.json of a finished run. Raises MissingError when it has not been evaluated yet, InputError for damaged files."""
    for name in ("run.json", "measurements.json", "location.json"):
        if not (path / name).is_file():
            raise MissingError(f"{path} holds no finished run ({name} is missing); finish it: hubdistill run RECIPE --output {path}")
    with _undamaged(path / "measurements.json"):
        rows = json.loads((path / "measurements.json").read_text(encoding="utf-8"))
        measurements = tuple(Measurement.from_dict(row) for row in rows)
    with _undamaged(path / "run.json"):
        record = read_json(path / "run.json")
        if missing := sorted(RECORDED - record.keys()):
            raise KeyError(missing[0])
    return record, measurements


@contextmanager
def _undamaged(file: Path) -> Iterator[None]:
    """What a file that is not what hubdistill wrote makes of the code that reads it, as an InputError."""
    try:
        yield
    except HubdistillError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError) as problem:
        what = f"{problem} is missing" if isinstance(problem, KeyError) else problem
        raise InputError(f"{file} is damaged ({what}); write it again: hubdistill run RECIPE --output {file.parent}, finished stages are kept") from problem


def _location(path: Path) -> tuple[str, bool, str | None]:
    """The base's place (Hub id or folder), whether it is on the Hub, and the chat template that the adapter needs."""
    with _undamaged(path / "location.json"):
        found = read_json(path / "location.json")
        return found["base"], found["kind"] == "hub", found["chat_template"]


def final_adapter(path: Path, record: Mapping[str, Any]) -> Path:
    """Folder of the adapter after the last round."""
    return path / f"round_{record['rounds']}" / "adapter"


def build(path: Path, place: Place, folder: Path) -> Path:
    """Render the card and stage the repository in `folder`; README.md also lands in the run directory."""
    record, measurements = load_run(path)
    template = _location(path)[2]
    adapter = final_adapter(path, record)
    config = read_json(adapter / CONFIG)
    with _undamaged(path / "run.json"):
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
    base, on_hub, _ = _location(path)
    place = Place(repo=None, base=base, base_commit=record["student"]["commit"] if on_hub else None)
    return build(path, place, path / "hub")


def check_repositories(repo: str, base_repo: str | None) -> None:
    """Raise InputError for names that cannot be repositories, and for one repository that would hold adapter and base."""
    for name in filter(None, (repo, base_repo)):
        require_repo(name)
    if base_repo and repo.casefold() == base_repo.casefold():  # to the Hub both are one name
        raise InputError(f"{repo} cannot hold both the adapter and its base; name another repository with --base-repo (`publish.base_repo` in the recipe)")


def _destination(path: Path, repo: str, base_repo: str | None, revision: str | None) -> tuple[Place, Path | None]:
    """Where the adapter goes, and the folder of its base if that is pushed too; InputError where that is impossible."""
    check_repositories(repo, base_repo)
    record = load_run(path)[0]
    base, on_hub, _ = _location(path)
    if any("/" in name.removeprefix("./") or "~" in name for name in record["files_of_this_machine"]):
        raise InputError(f"{path} is of an earlier version and names paths of this machine; write it again: hubdistill run RECIPE --output {path}, finished stages are kept")
    if not on_hub and base_repo is None:
        raise InputError(f"the adapter's base is {record['student']['reference']}, which is not on the Hub; add --base-repo ORG/NAME to push it too")
    if on_hub and base.casefold() == repo.casefold():
        raise InputError(f"{repo} is the adapter's base, and the adapter would replace its card; name another repository with --repo (`publish.repo` in the recipe)")
    if on_hub:
        return Place(repo=repo, base=base, base_commit=record["student"]["commit"], revision=revision), None
    return Place(repo=repo, base=str(base_repo), base_commit=None, revision=revision), Path(base)


def _shown_revision(revision: str | None, tag: str | None) -> str | None:
    """What the card pins: the tag, else a branch beside main; a pull request is merged into main."""
    return tag or (None if revision is None or revision == "main" or revision.startswith("refs/pr/") else revision)


def publish(path: Path, repo: str, *, base_repo: str | None, private: bool, tag: str | None, create_pr: bool = False,
            revision: str | None = None, overwrite_card: bool = False) -> Published:  # fmt: skip
    """Push the base (where it is not on the Hub), then the adapter with its card, pinned to that base's commit.

    Whatever can be refused is refused before the base is pushed.
    """
    check_arguments(repo, revision, create_pr, tag)
    place, own_base = _destination(path, repo, base_repo, _shown_revision(revision, tag))
    resume = _push_command(path, repo, base_repo, private=private, create_pr=create_pr, tag=tag, revision=revision, overwrite_card=overwrite_card)
    options: dict[str, Any] = {"private": private, "create_pr": create_pr, "tag": tag, "revision": revision,
                               "overwrite_card": overwrite_card, "resume_command": resume}  # fmt: skip
    folder = build(path, place, path / "staged")
    base: Published | None = None
    if own_base:
        card = _base_card(place.base, load_run(path)[0])
        check_base_files(own_base, place.base, card)
        check_access(place.base, private=private)
        if tag:  # the same base at the same commit is what an unchanged push under this tag would name
            build(path, replace(place, base_commit=published_base(own_base, place.base, card)), folder)
        check_push(folder, repo, **options)
        base = push_base(own_base, place.base, private=private, card=card, resume_command=resume)
        place = replace(place, base_commit=base.commit)
        build(path, place, folder)
    done = push(folder, repo, **options)
    if base and (base.visibility, done.visibility) == ("private", "public"):  # repositories that are there keep their visibility
        done = replace(done, warnings=(*done.warnings, f"{repo} is public and its base {place.base} is private, so others cannot load it; make the base public in its settings"))
    shutil.rmtree(folder)
    write_json(path / "published.json", {"repo": repo, "commit": done.commit, "url": done.url, "visibility": done.visibility, "base": place.base, "base_commit": place.base_commit, "pr": done.pr, "tag": done.tag})
    return done


def _push_command(path: Path, repo: str, base_repo: str | None, *, private: bool, create_pr: bool, tag: str | None, revision: str | None, overwrite_card: bool) -> str:
    given = [("--base-repo", base_repo), ("--tag", tag), ("--revision", revision)]
    flags = [("--public", not private), ("--pr", create_pr), ("--overwrite-card", overwrite_card)]
    words = ["hubdistill", "push", str(path), "--repo", repo, *(word for name, value in given if value for word in (name, value))]
    return shlex.join([*words, *(name for name, on in flags if on)])


def _base_card(repo: str, record: Mapping[str, Any]) -> str:
    return render_base_card(BaseFacts(repo=repo, source=record["student_source"], source_commit=record["student_source_commit"],
                                      how=f"{record['student']['reference']}.", license=license_of(record["student"]["license"]), pipeline_tag=record["pipeline_tag"]))  # fmt: skip


def publish_as_recipe(path: Path, spec: PublishSpec) -> Published:
    """`publish` with what the recipe says."""
    return publish(path, spec.repo, base_repo=spec.base_repo, private=spec.private, tag=spec.tag)


def preview_text(path: Path, repo: str, *, base_repo: str | None, private: bool, tag: str | None, revision: str | None = None, create_pr: bool = False) -> str:
    """What a push would send, and the card it would send; needs no network. The base's commit is not known yet."""
    check_arguments(repo, revision, create_pr, tag)
    place, own_base = _destination(path, repo, base_repo, _shown_revision(revision, tag))
    folder = build(path, place, path / "staged")
    found = preview(folder, repo, private=private, tag=tag, revision=revision, create_pr=create_pr)
    lines = [f"{found.repo} on {found.endpoint}, revision {found.revision}, {found.visibility} if it is new"]
    lines += [f"  {name}  {size:,} bytes" for name, size in found.files]
    if own_base:
        lines.append(f"{place.base}, pushed first")
        lines += [f"  {file.name}  {file.stat().st_size:,} bytes" for file in base_files(own_base)]
    text = (folder / CARD).read_text(encoding="utf-8")
    shutil.rmtree(folder)
    build_local(path)
    return "\n".join([*lines, "", "README.md:", text])


def summary(path: Path, record: Mapping[str, Any], measurements: tuple[Measurement, ...], done: Published | None) -> dict[str, Any]:
    """What `run` ends with, as data."""
    chosen = [row for row in measurements if row.subject == "distilled" and row.metric in SHOWN and OF_TYPE not in row.on]
    by_key = {(row.metric, row.on, row.subject): row for row in measurements}
    base_missing = not _location(path)[1]
    name = record["name"].replace("/", "-")
    following = f"hubdistill push {shlex.quote(str(path))} --repo YOU/{name}" + (f" --base-repo YOU/{name}-base" if base_missing else "")
    return {
        "run": str(path),
        "adapter": str(path / "hub"),
        "card": str(path / "README.md"),
        "time": cards.duration(sum(record["seconds"].values())),
        "prompts": next((row.n for row in chosen if row.metric not in RIGHT_ANSWERS), 0),
        "results": [_result_line(row, by_key) + (f"   (n = {row.n})" if row.metric in RIGHT_ANSWERS else "") for row in chosen],
        "measurements": [row.as_dict() for row in measurements],
        "repo": done.repo if done else None,
        "url": done.url if done else None,
        "commit": done.commit if done else None,
        "visibility": done.visibility if done else None,
        "next": f"hubdistill pull {done.repo}" if done else following,
    }


def _result_line(row: Measurement, by_key: Mapping[tuple[str, str, str], Measurement]) -> str:
    before = [by_key[key] for subject in ("student", "warm-up") if (key := (row.metric, row.on, subject)) in by_key]
    steps = " -> ".join(f"{one.subject} {one.value:.3f}" for one in [*before, row])
    difference = row.differences[-1] if row.differences else None
    change = f"   ({difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}] against {difference.against})" if difference else ""
    change = change or f"   [{row.low:.3f}, {row.high:.3f}]" * (not before)  # a share of what was before has nothing to stand against
    return f"{row.metric} on {row.on}, {row.unit}, {row.better} is better: {steps}{change}"
