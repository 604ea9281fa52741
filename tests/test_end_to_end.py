"""Whole runs over tiny models: what they leave, that any interruption changes nothing, and the way to the Hub and back."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import yaml

from hubdistill import files, rundir
from hubdistill.errors import InputError, RecipeError
from hubdistill.pairs.store import read_responses
from hubdistill.plan import make_plan
from hubdistill.recipe import load_recipe
from hubdistill.run import Run
from hubdistill.rundir import RunDirectory
from hubdistill.stages import Workshop
from hubdistill.teaching import Teaching
from tests import tiny
from tests.command import called, here, hub_client, hubdistill
from tests.hub_server import HubServer

STAGES = ["prompts", "round_1-teacher", "warmup", "round_1-student", "round_1-train", "round_2-student", "round_2-train", "evaluate"]
LEFT = ["recipe.yaml", "plan.json", "round_1", "round_2", "metrics.jsonl", "measurements.json", "README.md", "hub"]


def distil(recipe: Path, folder: Path, notes, *overrides: str, **until):
    """A run in this process; returns its folder."""
    plan = make_plan(load_recipe(recipe, overrides))
    with RunDirectory(folder, notes.stage).locked() as directory:
        Run(plan, directory, notes).distil(**until)
    return folder


def weights(run: Path, number: int = 2) -> bytes:
    return (run / f"round_{number}" / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A recipe and its run through the command line, made once."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = tiny.write_recipe(folder)
    done = hubdistill("run", "tiny.yaml", folder=folder)
    assert done.code == 0, done.err
    return recipe, folder / "runs" / "tiny", done


def test_a_run_leaves_what_it_promises(finished):
    recipe, run, done = finished
    assert all((run / name).exists() for name in LEFT)
    assert (run / "recipe.yaml").read_text() == recipe.read_text()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    numbers = [row["round"] for row in rows]
    assert numbers == sorted(numbers)
    assert set(numbers) == {0, 1, 2}
    assert next(row["beta"] for row in rows if row["round"] == 1) == 0.5
    assert rows[-1]["beta"] == 1.0
    for name in ("divergence", "gap", "alpha", "alpha_at_low", "alpha_at_high", "teacher_nll", "student_nll", "length"):
        assert all(f"{side}/{name}" in rows[-1] for side in ("teacher", "student"))
    assert not list(run.rglob("checkpoint-*"))
    assert "Next: hubdistill push runs/tiny --repo YOU/tiny --base-repo YOU/tiny-base" in done.out


def test_the_summary_and_the_card_say_what_was_measured(finished):
    _, run, done = finished
    rows = {(row["metric"], row["on"], row["subject"]): row for row in json.loads((run / "measurements.json").read_text())}
    kl = rows["kl", "teacher responses", "distilled"]
    assert kl["n"] == 4
    assert [one["against"] for one in kl["differences"]] == ["student", "warm-up"]
    assert f"distilled {kl['value']:.3f}" in done.out
    card = (run / "README.md").read_text()
    assert f"{kl['value']:.3f}" in card
    assert (run / "hub" / "README.md").read_text() == card
    front = yaml.safe_load(card.split("---")[1])
    assert "base_model" not in front, "the base is a folder of this machine"
    assert "[More Information Needed]" not in card


def test_the_sampled_ids_are_the_prompts_of_the_template_and_what_the_card_counts(finished):
    _, run, _ = finished
    tokenizer = tiny.make_tokenizer()
    teacher = read_responses(run / "round_1", "teacher")
    for row in teacher.rows():
        words = tokenizer.decode(list(row.prompt_ids))
        assert words.startswith("<|im_start|> user tell me about")
        assert words.endswith("<|im_end|> <|im_start|> assistant")
        assert 0 < len(row.response_ids) <= 8
    assert {"commit", "template", "sampling", "seed", "engine", "engine_version", "sha256"} <= teacher.manifest.keys()


def test_running_again_keeps_every_stage(finished):
    _, run, _ = finished
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors") if "hub" not in path.parts}
    again = here("run", "tiny.yaml", folder=run.parents[1])
    assert again.code == 0
    assert [line for line in again.err.splitlines() if "kept from before" in line] == [f"{name} kept from before" for name in STAGES]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_run_does_not_depend_on_when_it_was_interrupted(finished, tmp_path, notes, monkeypatch):
    recipe, run, _ = finished
    first = rundir.write_json

    class Stop(Exception):
        pass

    def stop_once(path, value):
        if path.parent.name == "stages" and path.stem not in interrupted:
            interrupted.append(path.stem)
            raise Stop
        first(path, value)

    interrupted: list[str] = []
    monkeypatch.setattr(rundir, "write_json", stop_once)
    for _ in STAGES:
        with pytest.raises(Stop):
            distil(recipe, tmp_path / "run", notes)
    distil(recipe, tmp_path / "run", notes)
    assert interrupted == STAGES
    assert weights(tmp_path / "run") == weights(run)
    assert (tmp_path / "run" / "measurements.json").read_bytes() == (run / "measurements.json").read_bytes()
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") == (run / "metrics.jsonl").read_text().count("\n")


def test_stages_one_by_one_make_the_same_adapter(finished, tmp_path, notes):
    recipe, run, _ = finished
    steps = [("prompts", None), ("warmup", None), ("sample", 1), ("train", 1), ("sample", 2), ("train", 2), ("evaluate", None)]
    for until, number in steps:
        distil(recipe, tmp_path / "run", notes, until=until, round=number)
    assert [name for name, what in notes.stages if what == "started"] == STAGES
    assert weights(tmp_path / "run") == weights(run)


def test_a_damaged_file_is_noticed_and_its_stage_done_again(finished, tmp_path, notes):
    recipe, run, _ = finished
    copy = shutil.copytree(run, tmp_path / "run")
    data = copy / "round_1" / "student.parquet"
    data.write_bytes(data.read_bytes()[:-20])
    distil(recipe, copy, notes)
    assert ("round_1-student", "redone") in notes.stages
    assert {name for name, what in notes.stages if what == "skipped"} == set(STAGES) - {"round_1-student"}
    assert weights(copy) == weights(run)


@pytest.mark.parametrize(
    ("override", "kept"),
    [
        ("evaluate=[{kind: divergence}]", STAGES[:-1]),
        ("train.tracker=none", STAGES),
        ("sampling.batch_size=3", [*STAGES[:-1]]),
        ("train.micro_batch=1", [*STAGES[:-1]]),
        ("train.gradient_checkpointing=true", [*STAGES[:-1]]),
        ("loss.alpha=0.05", STAGES[:4]),
        ("train.rounds=1", [name for name in STAGES[:-1] if name not in ("round_1-train", "round_2-student", "round_2-train")]),
        ("sampling.temperature=0.7", ["prompts", "warmup"]),
        ("student.dtype=float32", ["prompts", "round_1-teacher"]),
        ("train.seed=1", []),
    ],
)
def test_a_change_redoes_what_depends_on_it_and_nothing_else(finished, tmp_path, notes, override, kept):
    recipe, run, _ = finished
    distil(recipe, shutil.copytree(run, tmp_path / "run"), notes, override)
    assert [name for name, what in notes.stages if what == "skipped"] == kept


def test_another_number_format_is_sampled_anew(finished, tmp_path, notes):
    recipe, run, _ = finished
    copy = distil(recipe, shutil.copytree(run, tmp_path / "run"), notes, "teacher.dtype=bfloat16", until="sample", round=1)
    assert (copy / "round_1" / "teacher.parquet").read_bytes() != (run / "round_1" / "teacher.parquet").read_bytes()
    assert read_responses(copy / "round_1", "teacher").manifest["dtype"] == "bfloat16"


def test_prompts_are_rendered_once(finished, tmp_path, notes, monkeypatch):
    recipe, run, _ = finished
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "stages" / "round_2-student.json").unlink()
    shutil.rmtree(copy / "round_2")
    # As if the template wrote the date, and midnight had passed.
    monkeypatch.setattr(Workshop, "encode", lambda self, messages: [1, 2, 3])
    distil(recipe, copy, notes)
    assert weights(copy) == weights(run)


def test_the_warm_up_on_ground_truth_ends_turns_as_the_template_does_and_counts_what_it_leaves_out(tmp_path, notes):
    recipe = tiny.write_recipe(tmp_path, warmup={"kind": "sft", "responses": "ground_truth"})
    tokenizer = tiny.make_tokenizer()
    tokenizer.eos_token = "<unk>"
    tokenizer.save_pretrained(tmp_path / "teacher")
    rows = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    rows[0]["answer"], rows[1]["answer"] = "the cat sat on the mat and then it ran", ""
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = make_plan(load_recipe(recipe, ["prompts.heldout=0", "evaluate=[]"]))
    with RunDirectory(tmp_path / "run", notes.stage).locked() as directory:
        run = Run(plan, directory, notes)
        run.distil(until="prompts")
        found, counts = Teaching(run.shop, directory.processes, run._read("train"))._rows(None)
    assert counts == {"without_response": 1, "cut": 1, "outside_vocabulary": 0}
    assert len(found) == 11
    assert sorted(row.response_ids[-1] == 3 for row in found) == [False] + [True] * 10
    assert max(len(row.response_ids) for row in found) == 8


def test_a_shorter_recipe_in_the_same_directory_is_not_told_with_the_rounds_of_the_longer_one(finished, tmp_path, monkeypatch, capsys):
    _, run, _ = finished
    folder = tmp_path / "copy"
    shutil.copytree(run.parents[1], folder)
    monkeypatch.chdir(folder)
    code, _, err = called(monkeypatch, capsys, "run", "tiny.yaml", "train.rounds=1")
    assert code == 0, err
    card = (folder / "runs" / "tiny" / "README.md").read_text()
    assert "| rounds | 1, of" in card
    assert "round\\_2" not in card
    assert "round_2" not in json.dumps(json.loads((folder / "runs" / "tiny" / "run.json").read_text())["seconds"])


def test_the_evaluation_has_no_round_to_stop_at(tmp_path):
    tiny.write_recipe(tmp_path)
    done = hubdistill("evaluate", "tiny.yaml", "--round", "1", folder=tmp_path)
    assert done.code == 2
    assert "No such option" in done.err


def test_teacher_responses_can_be_sampled_anew_each_round(finished, tmp_path, notes):
    run = distil(finished[0], tmp_path / "run", notes, "sampling.resample_teacher=true")
    rounds = [read_responses(run / f"round_{number}", "teacher").table["response_ids"].to_pylist() for number in (1, 2)]
    assert rounds[0] != rounds[1]


def test_what_cannot_run_is_said_before_anything_is_sampled(finished, tmp_path, notes):
    recipe, _, _ = finished
    config = json.loads((recipe.parent / "student" / "config.json").read_text())
    for override, says in (("train.device=cuda", "this machine has no cuda"), ("teacher.device=xpu", "this machine has no xpu")):
        with pytest.raises(InputError, match=says):
            distil(recipe, tmp_path / "run", notes, override)
    plan = make_plan(load_recipe(recipe))
    other = dataclasses.replace(plan.student, config={**config, "model_type": "gpt2"})
    with RunDirectory(tmp_path / "run").locked() as directory, pytest.raises(RecipeError, match="GPT2LMHeadModel keeps its blocks"):
        Run(dataclasses.replace(plan, student=other), directory, notes).distil()
    assert notes.stages == []


def test_a_run_that_went_on_with_other_settings_is_not_published_with_the_old_record(finished, tmp_path, notes):
    recipe, run, _ = finished
    copy = distil(recipe, shutil.copytree(run, tmp_path / "run"), notes, "train.learning_rate=0.02", until="train", round=2)
    assert weights(copy) != weights(run)
    for command in (["card", copy], ["push", copy, "--repo", "me/x", "--base-repo", "me/x-base", "--dry-run"]):
        done = hubdistill(*command, folder=tmp_path)
        assert done.code == 2
        assert "hubdistill run" in done.err


def test_a_full_disk_is_said_and_loses_nothing(finished, tmp_path, notes, monkeypatch):
    recipe, run, _ = finished
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "stages" / "evaluate.json").unlink()
    monkeypatch.setattr(files.os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match=r"the disk is full; free some space and run the same command again, finished stages are kept"):
        distil(recipe, copy, notes)
    monkeypatch.undo()
    distil(recipe, copy, notes)
    assert (copy / "measurements.json").read_bytes() == (run / "measurements.json").read_bytes()


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hub with a tiny teacher, a tiny student and a data set."""
    from huggingface_hub import HfApi

    folder = tmp_path_factory.mktemp("hub")
    recipe = tiny.write_recipe(folder)
    with HubServer() as server:
        api = HfApi(endpoint=server.url, token="hf_seed")
        for name in ("teacher", "student"):
            (folder / name / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
            api.create_repo(f"org/{name}")
            api.upload_folder(repo_id=f"org/{name}", folder_path=folder / name)
        (folder / "data").mkdir()
        (folder / "data" / "train.jsonl").write_bytes((folder / "prompts.jsonl").read_bytes())
        api.create_repo("org/data", repo_type="dataset")
        api.upload_folder(repo_id="org/data", folder_path=folder / "data", repo_type="dataset")
        recipe.write_text(
            recipe.read_text().replace("./teacher", "org/teacher").replace("./student", "org/student").replace("prompts.jsonl", "org/data")
            + "publish: {repo: org/adapter, tag: v1}\n"
        )
        yield server, recipe


LOAD = """
import sys
exec(open("snippet.py").read().replace(', device_map="auto"', ""))
import torch
with torch.no_grad():
    torch.save(model(torch.arange(4, 28).reshape(2, 12)).logits, "logits.pt")
"""


def test_an_adapter_goes_to_the_hub_and_another_machine_reproduces_it(hub, tmp_path):
    import subprocess
    import sys

    import torch

    from hubdistill.models.lora import load_adapter

    server, recipe = hub
    repo = "org/adapter-xet"
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    env = {"HF_ENDPOINT": server.url, "HF_TOKEN": "hf_alice_write"}
    done = hubdistill("run", recipe, f"publish.repo={repo}", "-o", here / "run", folder=here, **env)
    assert done.code == 0, done.err
    assert f"Next: hubdistill pull {repo}" in done.out
    assert "hf_alice_write" not in done.out + done.err + "".join(path.read_text() for path in (here / "run").rglob("*.json*"))
    published = json.loads((here / "run" / "published.json").read_text())
    assert (published["visibility"], published["tag"]) == ("private", "v1")

    pulled = hubdistill("pull", repo, "--revision", "v1", "--base", "org/student", "--json", folder=there, **env)
    assert pulled.code == 0, pulled.err
    found = json.loads(pulled.out)
    assert (found["commit"], found["base"]) == (published["commit"], "org/student")
    assert (Path(found["folder"]) / "adapter_model.safetensors").read_bytes() == weights(here / "run")

    snippet = hubdistill("pull", repo, folder=there, **env).out.split("# merged")[0].split("# transformers and PEFT")[1]
    (there / "snippet.py").write_text(snippet)
    user = {"PATH": "", "HOME": str(there), "HF_HOME": str(there / "home" / "hf"), "OMP_NUM_THREADS": "1", **env}
    subprocess.run([sys.executable, "-c", LOAD], cwd=there, env=user, check=True, timeout=120)
    torch.set_num_threads(1)
    model = load_adapter(tiny.make_model(2), here / "run" / "round_2" / "adapter", trainable=False)
    with torch.no_grad():
        expected = model(torch.arange(4, 28).reshape(2, 12)).logits
    assert torch.equal(torch.load(there / "logits.pt"), expected)

    again = hubdistill("run", repo, "-o", there / "run", folder=there, **env)
    assert again.code == 0, again.err
    assert weights(there / "run") == weights(here / "run")
    assert json.loads((there / "run" / "measurements.json").read_text()) == json.loads((here / "run" / "measurements.json").read_text())


# The whole way above is long and goes by xet alone; here the command line meets both ways of large files.
@pytest.mark.parametrize("storage", [{}, {"HF_HUB_DISABLE_XET": "1"}], ids=["xet", "lfs"])
def test_a_local_base_is_pushed_beside_the_adapter_and_never_named_by_its_path(finished, hub, tmp_path, storage):
    server, _ = hub
    _, run, _ = finished
    repo = f"org/local-{'lfs' if storage else 'xet'}"
    env = {"HF_ENDPOINT": server.url, "HF_TOKEN": "hf_alice_write", **storage}
    refused = hubdistill("push", run, "--repo", repo, folder=tmp_path, **env)
    assert refused.code == 2
    assert "add --base-repo ORG/NAME" in refused.err
    done = hubdistill("push", run, "--repo", repo, "--base-repo", f"{repo}-base", "--public", folder=tmp_path, **env)
    assert done.code == 0, done.err
    pulled = json.loads(hubdistill("pull", repo, "--json", folder=tmp_path, **env).out)
    assert pulled["base"] == f"{repo}-base"
    assert (Path(pulled["folder"]) / "adapter_model.safetensors").read_bytes() == weights(run)
    texts = [path.read_text() for path in Path(pulled["folder"]).rglob("*") if path.suffix in (".md", ".json", ".yaml")]
    assert len(texts) >= 5
    card = (Path(pulled["folder"]) / "README.md").read_text()
    assert "The recipe names what was not published: `student`, `teacher`, `prompts.jsonl`" in card
    assert not [text for text in texts if str(run) in text or "/pytest-" in text]


def test_a_public_adapter_on_a_private_base_is_warned_of(finished, hub, tmp_path):
    from huggingface_hub import HfApi

    server, _ = hub
    HfApi(endpoint=server.url, token="hf_alice_write").create_repo("org/open", private=False)
    env = {"HF_ENDPOINT": server.url, "HF_TOKEN": "hf_alice_write"}
    done = hubdistill("push", finished[1], "--repo", "org/open", "--base-repo", "org/closed-base", folder=tmp_path, **env)
    assert done.code == 0, done.err
    assert "warning: org/open is public and its base org/closed-base is private" in done.err


def test_a_recipe_that_publishes_is_refused_before_training_without_a_token(hub, tmp_path):
    server, recipe = hub
    run = {"call": "command", "args": ["run", str(recipe), "-o", str(tmp_path / "run")]}
    found, _ = hub_client([run, {**run, "token": "hf_alice_read"}], tmp_path, tmp_path / "home", HF_ENDPOINT=server.url)
    for done, words in zip(found, ("not logged in", "read-only"), strict=True):
        assert done["ok"]["code"] == 2
        assert words in done["ok"]["err"]
    assert not (tmp_path / "run").exists()


def test_a_push_needs_no_network_to_be_shown(finished, tmp_path):
    _, run, _ = finished
    done = hubdistill("push", run, "--repo", "me/x", "--base-repo", "me/x-base", "--dry-run", folder=tmp_path)
    assert done.code == 0, done.err
    assert "adapter_model.safetensors" in done.out
    assert "me/x-base, pushed first" in done.out
    assert "base_model: me/x-base" in done.out


def test_the_directory_of_a_running_run_is_refused(finished, tmp_path, notes):
    recipe, _, _ = finished
    with RunDirectory(tmp_path / "run").locked():
        done = here("run", recipe, "-o", tmp_path / "run", folder=tmp_path)
        pushed = hubdistill("push", finished[1], "--repo", "me/x", "--base-repo", "me/x-base", "--dry-run", folder=tmp_path)
    assert pushed.code == 0, "another directory is free"
    assert done.code == 2
    assert "is in use by process" in done.err
    with RunDirectory(finished[1]).locked():
        held = [hubdistill(*command, folder=tmp_path) for command in (["card", finished[1]], ["push", finished[1], "--repo", "me/x", "--base-repo", "me/x-base", "--dry-run"])]
    assert [(one.code, "is in use by process" in one.err) for one in held] == [(2, True)] * 2


def test_a_base_is_pushed_only_when_nothing_of_the_adapter_will_be_refused(finished, hub, tmp_path):
    server, _ = hub
    run = shutil.copytree(finished[1], tmp_path / "my run")
    env = {"HF_ENDPOINT": server.url, "HF_TOKEN": "hf_alice_write"}

    def push(*options: str, repo: str = "org/late", base: str = "org/late-base"):
        return hubdistill("push", run, "--repo", repo, "--base-repo", base, *options, folder=tmp_path, **env)

    def refused(words: str, done) -> None:
        assert done.code == 2, done.err
        assert words in done.err
        assert not [name for _, name in server.state.repos if "late" in name]

    refused("cannot hold both", push(base="org/LATE"))
    refused("cannot hold both", push("--dry-run", base="org/late"))
    refused("cannot be a revision", push("--tag", "v 1"))
    refused("may not create repositories under bob", push(repo="bob/late"))
    refused(f"To resume: hubdistill push '{run}' --repo bob/late --base-repo org/late-base --tag v1 --revision trial --public --overwrite-card",
            push("--tag", "v1", "--revision", "trial", "--public", "--overwrite-card", repo="bob/late"))  # fmt: skip
    record = (run / "run.json").read_text()
    (run / "run.json").write_text(record.replace('"hardware": "', '"hardware": "hf_alice_write '))
    refused("looks like a secret", push())
    (run / "run.json").write_text(record)
    damaged = run / "round_2" / "adapter" / "adapter_model.safetensors"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-9])
    refused("adapter_model.safetensors", push())
    damaged.write_bytes(whole)

    assert push("--tag", "v1").code == 0
    assert push("--tag", "v1").code == 0  # nothing changed, neither here nor in the base
    repos = [server.state.repos["model", name] for name in ("org/late", "org/late-base")]
    commits = [len(repo.commits) for repo in repos]
    config = json.loads((Path(json.loads((run / "location.json").read_text())["base"]) / "config.json").read_text())
    base = shutil.copytree(json.loads((run / "location.json").read_text())["base"], tmp_path / "other")
    (base / "config.json").write_text(json.dumps(config | {"note": "changed"}))
    (run / "location.json").write_text(json.dumps(json.loads((run / "location.json").read_text()) | {"base": str(base)}))
    again = push("--tag", "v1")
    assert again.code == 2
    assert "--tag" in again.err
    assert [len(repo.commits) for repo in repos] == commits, "the changed base was not pushed either"


def test_what_is_published_names_models_by_name_and_not_by_path(finished, hub, tmp_path):
    from hubdistill.publication import write_record

    server, _ = hub
    recipe, run, _ = finished
    run = shutil.copytree(run, tmp_path / "run")
    folder = recipe.parent
    given = [f"teacher.model={folder}/teacher", f"student.model=../{folder.name}/student", f"prompts.dataset={folder}/prompts.jsonl"]
    plan = make_plan(load_recipe(recipe, [f"teacher.model={folder}/x", *given]))
    results = {path.stem: json.loads(path.read_text())["result"] for path in (run / "stages").glob("*.json")}
    write_record(run, plan, {}, results, None)
    shutil.rmtree(run / "hub")
    env = {"HF_ENDPOINT": server.url, "HF_TOKEN": "hf_alice_write"}
    assert hubdistill("card", run, folder=tmp_path).code == 0
    done = hubdistill("push", run, "--repo", "org/named", "--base-repo", "org/named-base", folder=tmp_path, **env)
    assert done.code == 0, done.err
    for name in ("org/named", "org/named-base"):
        repo = server.state.repos["model", name]
        for path, entry in repo.commits[repo.refs["refs/heads/main"]].tree.items():
            text = (entry.data or b"").decode()
            assert str(folder.parent) not in text, path
            assert folder.name not in text, path
    recipe = yaml.safe_load((run / "reproduce.yaml").read_text())
    assert (recipe["teacher"]["model"], recipe["student"]["model"], recipe["prompts"]["dataset"]) == ("./teacher", "./student", "prompts.jsonl")
    record = json.loads((run / "run.json").read_text())
    assert record["overrides"][1:] == ["teacher.model=./teacher", "student.model=./student", "prompts.dataset=prompts.jsonl"]
    assert sorted(record["files_of_this_machine"]) == ["./student", "./teacher", "prompts.jsonl"]


def test_a_branch_is_named_wherever_the_adapter_is_fetched(finished, hub, tmp_path):
    from huggingface_hub import HfApi

    from hubdistill.hub.run_card import Place, card_facts

    server, recipe = hub
    _, run, _ = finished
    env = {"HF_ENDPOINT": server.url, "HF_TOKEN": "hf_alice_write"}
    done = hubdistill("push", run, "--repo", "org/branch", "--base-repo", "org/branch-base", "--revision", "trial", folder=tmp_path, **env)
    assert done.code == 0, done.err
    assert done.out.endswith("Next: hubdistill pull org/branch --revision trial\n")
    repo = server.state.repos["model", "org/branch"]
    card = repo.commits[repo.refs["refs/heads/trial"]].tree["README.md"].data.decode()
    assert '"org/branch", revision="trial"' in card
    record = json.loads((run / "run.json").read_text()) | {"files_of_this_machine": []}
    place = Place(repo="org/branch", base="org/branch-base", base_commit=None, revision="trial")
    facts = card_facts(record, (), place, {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}, False)
    assert facts.command == "hubdistill run org/branch --revision trial"

    published = "".join(line for line in recipe.read_text().splitlines(keepends=True) if not line.startswith("publish"))
    api = HfApi(endpoint=server.url, token="hf_alice_write")
    api.upload_file(path_or_fileobj=published.encode(), path_in_repo="hubdistill/recipe.yaml", repo_id="org/branch", revision="trial")
    planned = hubdistill("plan", "org/branch", "--revision", "trial", folder=tmp_path, **env)
    assert planned.code == 0, planned.err
    assert planned.out.endswith("Next: hubdistill run org/branch --revision trial\n")
    elsewhere = hubdistill("plan", "org/branch", folder=tmp_path, **env)
    assert elsewhere.code == 2
    assert "holds no hubdistill/recipe.yaml" in elsewhere.err


@pytest.mark.parametrize(
    ("name", "content"),
    [("run.json", "{}"), ("run.json", "[]"), ("run.json", "nonsense"), ("measurements.json", '[{"metric": "kl"}]'), ("measurements.json", "{"), ("location.json", "{}")],
)
def test_a_damaged_record_is_told_with_the_command_that_writes_it_again(finished, tmp_path, name, content):
    from hubdistill.errors import InputError
    from hubdistill.publication import build_local

    run = shutil.copytree(finished[1], tmp_path / "run")
    (run / name).write_text(content)
    with pytest.raises(InputError, match=rf"{name} .*(hubdistill run RECIPE --output|run the command again)"):
        build_local(run)
