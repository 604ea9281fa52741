"""From a finished run to a repository: what the run knows, as the facts of a card; staged locally, and pushed on request.

Everything is read back from run.json and measurements.json, so that `card` and `push` need neither models nor recipe.
"""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubdistill import __version__
from hubdistill.errors import InputError, MissingError
from hubdistill.evaluation.statistics import Measurement
from hubdistill.files import write_atomically, write_json
from hubdistill.hub import card as cards
from hubdistill.hub.base_publish import BaseFacts, push_base, render_base_card
from hubdistill.hub.names import CARD, CONFIG, MEASUREMENTS, RECIPE, RUN, TEMPLATE, WEIGHTS
from hubdistill.hub.publish import Published, push
from hubdistill.hub.staging import stage
from hubdistill.models.sources import read_json
from hubdistill.plan import Plan
from hubdistill.recipe import dump_resolved
from hubdistill.shipped import SHIPPED

PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "huggingface_hub")
REPRODUCE = "reproduce.yaml"  # the resolved recipe that goes into the repository


def write_record(path: Path, plan: Plan, seconds: Mapping[str, float], results: Mapping[str, Any], template: str | None) -> None:
    """Write run.json (what goes to the Hub: no path of this machine), location.json (what does not), and the recipe."""
    record = plan.as_dict() | {
        "name": plan.loaded.name,
        "seconds": dict(seconds),
        "stages": dict(results),
        "hardware": hardware(plan.recipe.train.device),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "target_facts": plan.target.facts(plan.recipe.target.options),
        "files_of_this_machine": files_of_this_machine(plan),
        "student_source": plan.student_source.reference,
        "student_source_commit": plan.student_source.commit,
    }
    write_json(path / "run.json", record)
    write_json(path / "location.json", {"base": plan.student.location, "kind": plan.student.kind, "chat_template": template})
    write_atomically(path / REPRODUCE, pinned_recipe(plan).encode())


def files_of_this_machine(plan: Plan) -> list[str]:
    """What the recipe names that only this machine has; without it nobody else can run the recipe as it is."""
    sources = (plan.teacher, plan.student_source, plan.prompts)
    return sorted({facts.reference for facts in sources if facts.kind == "local" and not facts.reference.startswith(SHIPPED)})


def pinned_recipe(plan: Plan) -> str:
    """The recipe with all values spelled out and every Hub revision pinned; without `publish`, so that who reruns it pushes nothing."""
    recipe = plan.recipe
    pins = {name: getattr(recipe, name).model_copy(update={"revision": facts.commit})
            for name, facts in (("teacher", plan.teacher), ("student", plan.student_source), ("prompts", plan.prompts)) if facts.kind == "hub"}  # fmt: skip
    header = f"# Made by hubdistill {__version__} from the recipe '{plan.loaded.name}': every default spelled out, every revision pinned.\n"
    return header + dump_resolved(recipe.model_copy(update={**pins, "publish": None}))


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


@dataclass(frozen=True)
class Place:
    """Where the adapter goes: `repo` None is a local folder; `base` is what its config names."""

    repo: str | None
    base: str
    base_commit: str | None
    tag: str | None = None


def card_facts(record: Mapping[str, Any], measurements: tuple[Measurement, ...], place: Place, adapter: Mapping[str, Any], template: bool) -> cards.CardFacts:
    """The facts of a card from what a run recorded. Pure."""
    prompts = record["prompts"]
    on_hub = prompts["kind"] == "hub"
    pushed = place.base != record["student_source"]
    return cards.CardFacts(
        name=(place.repo or record["name"]).rsplit("/", 1)[-1],
        repo=place.repo,
        base=cards.BaseModel(id=place.base, commit=place.base_commit, license=_license(record["student"]["license"]),
                             pushed_beside=pushed and place.repo is not None, made_of=record["student"]["reference"] if pushed else ""),
        teacher=cards.Teacher(name=record["teacher"]["reference"], commit=record["teacher"]["commit"], license=_license(record["teacher"]["license"])),
        data=cards.Data(name=Path(prompts["reference"]).name if not on_hub else prompts["reference"], hub_id=prompts["reference"] if on_hub else None,
                        commit=prompts["commit"] if on_hub else None, license=cards.License(id=prompts["license"])),
        rank=adapter["r"],
        lora_alpha=adapter["lora_alpha"],
        target_modules=tuple(sorted(adapter["target_modules"])),
        command=f"hubdistill run {place.repo}" if place.repo else f"hubdistill run {record['name']}",
        missing=tuple(Path(name).name for name in record["files_of_this_machine"]) if place.repo else (),
        revision=place.tag,
        loss=_loss_rows(record),
        training=_training_rows(record),
        measurements=measurements,
        notes=tuple(record["warnings"]),
        limitations=_limitations(record),
        hardware=record["hardware"],
        seconds=record["seconds"],
        versions={"hubdistill": record["hubdistill"], **record["versions"]},
        chat_template_file=template,
    )  # fmt: skip


def _license(found: Mapping[str, str]) -> cards.License:
    return cards.License(id=found.get("license"), name=found.get("license_name"), link=found.get("license_link"))


def _loss_rows(record: Mapping[str, Any]) -> dict[str, str]:
    loss, beta = record["loss"], record["beta"]
    curriculum = "constant" if loss["anchor"] == "off" else f"curriculum from round 2, clipped to [{loss['alpha_low']:g}, {loss['alpha_high']:g}], {loss['anchor']} anchor"
    return {
        "loss": f"{loss['name']}: skew KL on teacher responses, skew reverse KL on student responses",
        "alpha": f"{loss['alpha']:g}, {curriculum}",
        "beta": f"{loss['beta']}, {beta[0]['first']:.2f} to {beta[-1]['last']:.2f}",
        "mixture gradient": loss["mix_grad"],
        "reduction": loss["reduction"],
    }


def _training_rows(record: Mapping[str, Any]) -> dict[str, str]:
    recipe, stages = record["recipe"], record["stages"]
    train, sampling, warmup = recipe["train"], recipe["sampling"], recipe["warmup"]
    rounds = [row for name, row in stages.items() if name.endswith("-train")]
    pairs = [row["pairs"] for row in rounds]
    teacher_said = "anew each round" if sampling["resample_teacher"] else "once, before round 1, and kept"
    return record["target_facts"] | {
        "prompts": f"{stages['prompts']['kept_train']} for training, {stages['prompts']['kept_heldout']} held out",
        "sampling": f"temperature {sampling['temperature']:g}, top-p {sampling['top_p']:g}, at most {sampling['max_tokens']} tokens; teacher responses {teacher_said}",
        "warm-up": "none" if warmup["kind"] == "none" else f"{warmup['epochs']:g} epochs of SFT on {warmup['responses'].replace('_', ' ')} responses, {stages['warmup']['rows']} rows",
        "rounds": f"{len(rounds)}, of {', '.join(map(str, pairs))} pairs and {', '.join(str(row['steps']) for row in rounds)} steps of {train['pairs_per_step']} pairs",
        "left out": f"{sum(row['empty'] for row in rounds)} pairs with an empty response",
        "cut at the length limit": f"{sum(row['truncated_teacher'] for row in rounds)} teacher and {sum(row['truncated_student'] for row in rounds)} student responses (no end token is added)",
        "learning rate": f"{train['learning_rate']:g}, cosine over all rounds, 10 % warm-up",
        "seed": str(train["seed"]),
    }


def _limitations(record: Mapping[str, Any]) -> tuple[str, ...]:
    limit = record["recipe"]["sampling"]["max_tokens"]
    return (
        f"Trained and measured on responses of at most {limit} tokens; longer ones were not looked at.",
        "The adapter imitates its teacher, and so also the teacher's mistakes.",
    )


def load_run(path: Path) -> tuple[dict[str, Any], tuple[Measurement, ...]]:
    """run.json and measurements.json of a finished run. Raises MissingError when it has not been evaluated yet."""
    import json

    for name in ("run.json", "measurements.json", "location.json"):
        if not (path / name).is_file():
            raise MissingError(f"{path} holds no finished run ({name} is missing); finish it: hubdistill run RECIPE --output {path}")
    rows = json.loads((path / "measurements.json").read_text(encoding="utf-8"))
    return read_json(path / "run.json"), tuple(Measurement.from_dict(row) for row in rows)


def final_adapter(path: Path, record: Mapping[str, Any]) -> Path:
    """Folder of the adapter after the last round."""
    return path / f"round_{record['rounds']}" / "adapter"


def build(path: Path, place: Place, folder: Path) -> Path:
    """Render the card and stage the repository in `folder`; README.md also lands in the run directory."""
    record, measurements = load_run(path)
    adapter = final_adapter(path, record)
    template = read_json(path / "location.json")["chat_template"]
    facts = card_facts(record, measurements, place, read_json(adapter / CONFIG), template is not None)
    text = cards.render_card(facts)
    files = {CONFIG: adapter / CONFIG, WEIGHTS: adapter / WEIGHTS, RECIPE: path / REPRODUCE, RUN: path / "run.json", MEASUREMENTS: path / "measurements.json"}
    if template is not None:
        write_atomically(path / TEMPLATE, template.encode())
        files[TEMPLATE] = path / TEMPLATE
    stage(files, text, folder, base=place.base, base_commit=place.base_commit, local=place.repo is None)
    write_atomically(path / CARD, text.encode())
    return folder


def build_local(path: Path) -> Path:
    """The folder laid out as the repository would be, with the base by its place on this machine if it is not on the Hub."""
    location, record = read_json(path / "location.json"), load_run(path)[0]
    on_hub = location["kind"] == "hub"
    place = Place(repo=None, base=location["base"], base_commit=record["student"]["commit"] if on_hub else None)
    return build(path, place, path / "hub")


def publish(path: Path, repo: str, *, base_repo: str | None, private: bool, tag: str | None, **options: Any) -> Published:
    """Push the base (where it is not on the Hub), then the adapter with its card, pinned to that base's commit."""
    location, record = read_json(path / "location.json"), load_run(path)[0]
    resume = f"hubdistill push {path} --repo {repo}" + (f" --base-repo {base_repo}" if base_repo else "")
    if location["kind"] == "hub":
        base, commit = location["base"], record["student"]["commit"]
    elif base_repo is None:
        raise InputError(f"the adapter's base is {record['student']['reference']}, which is not on the Hub; add --base-repo ORG/NAME to push it too")
    else:
        base, commit = base_repo, _push_base(Path(location["base"]), base_repo, record, private, resume)
    folder = build(path, Place(repo=repo, base=base, base_commit=commit, tag=tag), path / "staged")
    done = push(folder, repo, private=private, tag=tag, resume_command=resume, **options)
    shutil.rmtree(folder)
    write_json(path / "published.json", {"repo": repo, "commit": done.commit, "url": done.url, "visibility": done.visibility, "base": base, "base_commit": commit, "pr": done.pr, "tag": done.tag})
    return done


def _push_base(folder: Path, repo: str, record: Mapping[str, Any], private: bool, resume: str) -> str:
    facts = BaseFacts(repo=repo, source=record["student_source"], source_commit=record["student_source_commit"],
                      how=f"{record['student']['reference']}.", license=_license(record["student"]["license"]))  # fmt: skip
    return push_base(folder, repo, private=private, card=render_base_card(facts), resume_command=resume).commit


def preview_text(path: Path, repo: str, *, base_repo: str | None, private: bool, tag: str | None, **options: Any) -> str:
    """What a push would send, and the card it would send; needs no network. The base's commit is not known yet."""
    from hubdistill.hub.base_publish import base_files
    from hubdistill.hub.publish import preview

    location, record = read_json(path / "location.json"), load_run(path)[0]
    on_hub = location["kind"] == "hub"
    if not on_hub and base_repo is None:
        raise InputError(f"the adapter's base is {record['student']['reference']}, which is not on the Hub; add --base-repo ORG/NAME to push it too")
    place = Place(repo=repo, base=location["base"] if on_hub else str(base_repo), base_commit=record["student"]["commit"] if on_hub else None, tag=tag)
    folder = build(path, place, path / "staged")
    found = preview(folder, repo, private=private, tag=tag, **options)
    lines = [f"{found.repo} on {found.endpoint}, revision {found.revision}, {found.visibility} if it is new"]
    lines += [f"  {name}  {size:,} bytes" for name, size in found.files]
    if not on_hub:
        lines.append(f"{base_repo}, pushed first")
        lines += [f"  {file.name}  {file.stat().st_size:,} bytes" for file in base_files(Path(location["base"]))]
    text = (folder / CARD).read_text(encoding="utf-8")
    shutil.rmtree(folder)
    build_local(path)
    return "\n".join([*lines, "", "README.md:", text])


def summary(path: Path, record: Mapping[str, Any], measurements: tuple[Measurement, ...], done: Published | None) -> dict[str, Any]:
    """What `run` ends with, as data."""
    chosen = [row for row in measurements if row.subject == "distilled" and row.metric in ("kl", "agreement", "rouge_l")]
    by_key = {(row.metric, row.on, row.subject): row for row in measurements}
    base_missing = read_json(path / "location.json")["kind"] != "hub"
    name = record["name"].replace("/", "-")
    following = f"hubdistill push {path} --repo YOU/{name}" + (f" --base-repo YOU/{name}-base" if base_missing else "")
    return {
        "run": str(path),
        "adapter": str(path / "hub"),
        "card": str(path / "README.md"),
        "time": cards.duration(sum(record["seconds"].values())),
        "prompts": chosen[0].n if chosen else 0,
        "results": [_result_line(row, by_key) for row in chosen],
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
    return f"{row.metric} on {row.on}, {row.unit}, {row.better} is better: {steps}{change}"
