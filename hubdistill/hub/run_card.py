"""The facts of a card, from what a run recorded in run.json and measurements.json. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hubdistill.evaluation.gate import verdict_of
from hubdistill.evaluation.questions import SCORE, names_of, set_of
from hubdistill.evaluation.statistics import Measurement
from hubdistill.hub import card as cards
from hubdistill.hub.methods import method_of
from hubdistill.hub.snippets import DRAFT_TOKENS, Drafts
from hubdistill.pairs.prompt_report import counted
from hubdistill.tasks.catalog import TASKS, title_of

DIVERGENCES = {"skl": "skew KL", "srkl": "skew reverse KL", "jsd": "generalised JSD", "kl": "KL", "rkl": "reverse KL", "tv": "total variation", "nll": "cross-entropy"}
FIXED = {"teacher": "teacher", "data": "data set", "interleaved": "interleaved"}  # whose responses stand beside the student's
MANY = 10  # rounds that are no longer told one by one
SKEWED = {"skl", "srkl", "jsd"}  # those with an alpha


@dataclass(frozen=True)
class Place:
    """Where the adapter goes: `repo` None is a local folder; `base` is what its config names."""

    repo: str | None
    base: str
    base_commit: str | None
    revision: str | None = None  # tag or branch that holds it, where it is not on main
    merged: str | None = None  # repository of the model with the adapter merged in


def card_facts(record: Mapping[str, Any], measurements: tuple[Measurement, ...], place: Place, adapter: Mapping[str, Any], template: bool) -> cards.CardFacts:
    """The facts of a card from what a run recorded. Pure."""
    pushed = place.base != record["student_source"]
    return cards.CardFacts(
        name=(place.repo or record["name"]).rsplit("/", 1)[-1],
        repo=place.repo,
        base=cards.BaseModel(id=place.base, commit=place.base_commit, license=license_of(record["student"]["license"]),
                             pushed_beside=pushed and place.repo is not None, made_of=record["student"]["reference"] if pushed else ""),
        teacher=cards.Teacher(name=record["teacher"]["reference"], commit=record["teacher"]["commit"], license=license_of(record["teacher"]["license"])),
        data=_data(record["prompts"]),
        questions=dict(zip(names_of([one["reference"] for one in record["questions"]]), _questions(record), strict=True)) | _benchmarks(record, measurements),
        rank=adapter["r"],
        lora_alpha=adapter["lora_alpha"],
        target_modules=_modules(adapter["target_modules"], record["recipe"]["lora"]),
        pipeline_tag=record["pipeline_tag"],
        vllm=record["pipeline_tag"] == "text-generation",  # which image models it serves with adapters was not checked
        command=_command(place, record),
        method=method_of(record["loss"]),
        missing=tuple(Path(name).name for name in record["files_of_this_machine"]) if place.repo else (),
        revision=place.revision,
        loss=_loss_rows(record),
        training=_training_rows(record),
        measurements=measurements,
        gate=verdict_of(record, measurements).text,
        by_length=tuple(record.get("by_length", ())),
        notes=tuple(record["warnings"]),
        limitations=_limitations(record),
        hardware=record["hardware"],
        seconds=record["seconds"],
        versions={"hubdistill": record["hubdistill"], **record["versions"]},
        chat_template_file=template,
        quantization=record["quantization"],
        merge_advice=_merge_advice(record["quantization"]),
        merged=place.merged,
        drafts=drafts_of(record),
    )  # fmt: skip


def drafts_of(record: Mapping[str, Any]) -> Drafts | None:
    """Whose drafter the student is, where that is what it was trained for."""
    if record["recipe"]["target"]["kind"] != "drafter":
        return None
    asked = [one["draft_tokens"] for one in record["recipe"]["evaluate"] if one["kind"] == "acceptance"]
    teacher = record["teacher"]
    return Drafts(verifier=teacher["reference"], commit=teacher["commit"] if teacher["kind"] == "hub" else None, tokens=asked[0] if asked else DRAFT_TOKENS)


def _merge_advice(quantization: Mapping[str, Any] | None) -> str:
    if quantization is None:
        return ""
    kind = str(quantization["bnb_4bit_quant_type"]).upper()
    return (f"Serve it unmerged, on the base in {kind}: the adapter makes up for what {kind} rounds away. Merged into the 4-bit base it would be rounded with it; merged into "
            f"the full-precision base it would correct errors that this base does not make. Neither was measured.")  # fmt: skip


def _data(found: Mapping[str, Any]) -> cards.Data:
    name, on_hub = found["reference"], found["kind"] == "hub"
    return cards.Data(name=name if on_hub else Path(name).name, hub_id=name if on_hub else None, commit=found["commit"] if on_hub else None,
                      license=cards.License(id=found["license"]))  # fmt: skip


def _questions(record: Mapping[str, Any]) -> list[cards.Data]:
    """The sets of questions, each with how many were asked, and how."""
    specs = [one for one in record["recipe"]["evaluate"] if one["questions"]]
    counts = record["stages"]["prompts"]["questions"]
    return [replace(_data(found), asked=_asked(spec, count)) for found, spec, count in zip(record["questions"], specs, counts, strict=True)]


def _benchmarks(record: Mapping[str, Any], measurements: Sequence[Measurement]) -> dict[str, cards.Data]:
    """The benchmarks, each with where its questions are from, how many were asked, and by what."""
    asked, found = {set_of(one.on): one for one in measurements if one.metric == SCORE}, dict[str, cards.Data]()
    for spec in record["recipe"]["evaluate"]:
        if spec["kind"] != "benchmark" or (title := title_of(spec["task"], spec["dataset"])) not in asked:
            continue
        one, own = asked[title], TASKS[spec["task"]].hub if spec["dataset"] is None else None
        data = cards.Data(name=own.dataset, hub_id=own.dataset, commit=own.revision) if own else cards.Data(name=Path(spec["dataset"]).name)
        by = "lm-eval" if TASKS[spec["task"]].harness else "EvalPlus's prompt and sanitiser"
        found[title] = replace(data, asked=f"{counted(one.n, 'question')} by {by}, {one.decoding}")
    return found


def _asked(spec: Mapping[str, Any], count: Mapping[str, Any]) -> str:
    left_out = f" (left out: {', '.join(count['left_out'])})" if count["left_out"] else ""
    instruction = " ".join(spec["questions"]["instruction"].split())
    return f"{counted(count['kept'], 'question')}{left_out}, answers of at most {counted(spec['max_tokens'], 'token')}" + (f", after each question: “{instruction}”" if instruction else "")


def _command(place: Place, record: Mapping[str, Any]) -> str:
    """The recipe in a repository has the overrides in it; the one of this machine does not."""
    if place.repo is None:
        return shlex.join(["hubdistill", "run", record["name"], *record["overrides"]])
    return shlex.join(["hubdistill", "run", place.repo, *(["--revision", place.revision] if place.revision else [])])


def license_of(found: Mapping[str, str]) -> cards.License:
    """The license as a model's card states it."""
    return cards.License(id=found.get("license"), name=found.get("license_name"), link=found.get("license_link"))


def _modules(saved: list[str] | str, lora: Mapping[str, Any]) -> tuple[str, ...]:
    """What the adapter sits on: the names of layers, and of the towers where it is a pattern of paths (models/layers.py)."""
    if isinstance(saved, list):
        return tuple(sorted(saved))
    names = re.findall(r"\(\?:([^()]+)\)", saved)[-1].replace("\\", "").split("|")
    towers = [text for key, text in (("vision_tower", "the vision tower"), ("projector", "the projector")) if lora[key]]
    return (*sorted(names), *towers)


def _loss_rows(record: Mapping[str, Any]) -> dict[str, str]:
    loss, beta = record["loss"], record["beta"]
    curriculum = "constant" if loss["anchor"] == "off" else f"curriculum from round 2, clipped to [{loss['alpha_low']:g}, {loss['alpha_high']:g}], {loss['anchor']} anchor"
    on_teacher, on_student = (DIVERGENCES[kind] for kind in loss["kinds"])
    fixed = FIXED[loss["fixed_responses"]]
    whose = {"round": "student responses", "replay": "student responses of all rounds so far", "initial": "student responses of round 1", "interleaved": "interleaved responses"}
    parts = [f"{on_teacher} on {fixed} responses"] * (loss["beta"] != "full") + [f"{on_student} on {whose[loss['student_responses']]}"] * (loss["beta"] != "off")
    if loss["preference"] != "off":
        against = "teacher" if loss["preference"] == "teacher" else "student before the round"
        return {"loss": f"{loss['name']}: {fixed} responses preferred to {whose[loss['student_responses']]}, likelihoods held against the {against}'s", "lambda": f"{loss['strength']:g}"} | _interleaved(loss)
    gradient = " and by policy gradient what each token leads to" if loss.get("policy_gradient") else ""  # runs of before there was one have no such field
    return {
        "loss": f"{loss['name']}: {', '.join(parts)}{gradient}",
        **_interleaved(loss),
        "alpha": "none" if not SKEWED & set(loss["kinds"]) else f"{loss['alpha']:g}, {curriculum}",
        "beta": f"{loss['beta']}, {beta[0]['first']:.2f} to {beta[-1]['last']:.2f}",
        "mixture gradient": loss["mix_grad"],
        "reduction": loss["reduction"],
    }


def whose_responses(loss: Mapping[str, Any]) -> tuple[str, str]:
    """Who gave the fixed responses and those on the student's side, in a word each."""
    return FIXED[loss["fixed_responses"]], "interleaved" if loss["student_responses"] == "interleaved" else "student"


def _interleaved(loss: Mapping[str, Any]) -> dict[str, str]:
    """How responses came about that both models write; a run of before they could be has no such fields."""
    sides = zip((loss["beta"] != "full", loss["beta"] != "off"), (loss["fixed_responses"], loss["student_responses"]), strict=True)
    if not any(trained and whose == "interleaved" for trained, whose in sides):
        return {}
    rule = {
        "top_k": "where it is among the teacher's {top_k} most likely",
        "typical": "where it has a probability above min(epsilon^2, epsilon exp(-entropy)) under the teacher, epsilon {epsilon:g}",
        "mixed": "but for a share of {teacher_share:g} that is drawn",
    }[loss["acceptance"]]
    return {"interleaved responses": f"written by both, anew each round: the student's token {rule.format(**loss)}, else the teacher's"}


def _training_rows(record: Mapping[str, Any]) -> dict[str, str]:
    recipe, stages = record["recipe"], record["stages"]
    train, sampling, warmup = recipe["train"], recipe["sampling"], recipe["warmup"]
    rounds = [row for name, row in stages.items() if name.endswith("-train")]
    pairs = [row["pairs"] for row in rounds]
    teacher_said = "anew each round" if sampling["resample_teacher"] else "once, before round 1, and kept"
    teacher_said += f", by a server (as {sampling['server']['model'] or record['teacher']['reference']})" if sampling.get("server") else ""
    if not any(name.endswith("-teacher") for name in stages):
        teacher_said = "none, for it trains on none"
    lost = sum(row.get("unusable", 0) for name, row in stages.items() if name.endswith("-teacher"))
    one_sided = record["loss"]["beta"] in ("off", "full")
    unit, fixed = "responses" if one_sided else "pairs", FIXED[record["loss"]["fixed_responses"]]
    budget = f", {unit} repeated or left out for about {train['tokens']:,} response tokens a round" if train.get("tokens") else ""
    before = {"measured before training": note} if (note := stages.get("before-training", {}).get("note")) else {}
    return record["target_facts"] | before | {
        "prompts": f"{stages['prompts']['kept_train']} for training, {stages['prompts']['kept_heldout']} held out",
        "sampling": f"temperature {sampling['temperature']:g}, top-p {sampling['top_p']:g}, at most {sampling['max_tokens']} tokens; teacher responses {teacher_said}",
        "warm-up": "none" if warmup["kind"] == "none" else f"{warmup['epochs']:g} epochs of SFT on {warmup['responses'].replace('_', ' ')} responses, {stages['warmup']['rows']} rows",
        "rounds": f"{len(rounds)}, of {_told(pairs)} {unit} and {_told([row['steps'] for row in rounds])} steps of {train['pairs_per_step'] * (2 if one_sided else 1)} {unit}" + budget,
        "left out": f"{sum(row['empty'] for row in rounds)} {unit if not one_sided else 'prompts'} with an empty response" + (f" ({counted(lost, 'answer')} of the server could not be read as tokens)" if lost else ""),
        "cut at the length limit": f"{sum(row['truncated_teacher'] for row in rounds)} {fixed} and {sum(row['truncated_student'] for row in rounds)} student responses (no end token is added)",
        **_preference_row(record),
        "learning rate": f"{train['learning_rate']:g}, cosine over all rounds, 10 % warm-up",
        "seed": str(train["seed"]),
    }


def _preference_row(record: Mapping[str, Any]) -> dict[str, str]:
    spec, done = record["recipe"].get("preference"), record["stages"].get("preference")
    if not spec or not done:
        return {}
    data = _data(record["preferences"])
    return {"preference tuning": f"after the last round, DPO held against the distilled student: beta {spec['beta']:g}, {counted(done['pairs'], 'pair')} of {data.label}, {counted(done['steps'], 'step')}, learning rate {spec['learning_rate']:g}"}


def _told(numbers: Sequence[int]) -> str:
    """Numbers of rounds; of many, the smallest and the largest."""
    return ", ".join(map(str, numbers)) if len(numbers) <= MANY else f"{min(numbers)} to {max(numbers)}"


def _limitations(record: Mapping[str, Any]) -> tuple[str, ...]:
    limit = record["recipe"]["sampling"]["max_tokens"]
    return (
        f"Trained and measured on responses of at most {limit} tokens; longer ones were not looked at.",
        "The adapter imitates its teacher, and so also the teacher's mistakes.",
    )
