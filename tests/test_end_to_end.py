"""Whole runs over tiny models: what they leave, that any interruption changes nothing, and the way to the Hub and back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from hubdistill import files, rundir
from hubdistill.pairs.store import read_responses
from hubdistill.plan import make_plan
from hubdistill.recipe import load_recipe
from hubdistill.run import Run
from hubdistill.rundir import RunDirectory
from tests import tiny
from tests.command import hubdistill
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
    again = hubdistill("run", "tiny.yaml", folder=run.parents[1])
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


def test_a_shorter_recipe_in_the_same_directory_is_not_told_with_the_rounds_of_the_longer_one(finished, tmp_path):
    _, run, _ = finished
    folder = tmp_path / "copy"
    shutil.copytree(run.parents[1], folder)
    done = hubdistill("run", "tiny.yaml", "train.rounds=1", folder=folder)
    assert done.code == 0, done.err
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


@pytest.mark.parametrize("storage", [{}, {"HF_HUB_DISABLE_XET": "1"}], ids=["xet", "lfs"])
def test_an_adapter_goes_to_the_hub_and_another_machine_reproduces_it(hub, tmp_path, storage):
    import subprocess
    import sys

    import torch

    from hubdistill.models.lora import load_adapter

    server, recipe = hub
    repo = f"org/adapter-{'lfs' if storage else 'xet'}"
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    env = {"HF_ENDPOINT": server.url, "HF_TOKEN": "hf_alice_write", **storage}
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


def test_a_local_base_is_pushed_beside_the_adapter_and_never_named_by_its_path(finished, hub, tmp_path):
    server, _ = hub
    _, run, _ = finished
    env = {"HF_ENDPOINT": server.url, "HF_TOKEN": "hf_alice_write"}
    refused = hubdistill("push", run, "--repo", "org/local", folder=tmp_path, **env)
    assert refused.code == 2
    assert "add --base-repo ORG/NAME" in refused.err
    done = hubdistill("push", run, "--repo", "org/local", "--base-repo", "org/local-base", "--public", folder=tmp_path, **env)
    assert done.code == 0, done.err
    pulled = json.loads(hubdistill("pull", "org/local", "--json", folder=tmp_path, **env).out)
    assert pulled["base"] == "org/local-base"
    texts = [path.read_text() for path in Path(pulled["folder"]).rglob("*") if path.suffix in (".md", ".json", ".yaml")]
    assert len(texts) >= 5
    card = (Path(pulled["folder"]) / "README.md").read_text()
    assert "The recipe names what was not published: `student`, `teacher`, `prompts.jsonl`" in card
    assert not [text for text in texts if str(run) in text or "/pytest-" in text]


def test_a_recipe_that_publishes_is_refused_before_training_without_a_token(hub, tmp_path):
    server, recipe = hub
    for token, words in (({}, "not logged in"), ({"HF_TOKEN": "hf_alice_read"}, "read-only")):
        done = hubdistill("run", recipe, "-o", tmp_path / "run", folder=tmp_path, HF_ENDPOINT=server.url, **token)
        assert done.code == 2
        assert words in done.err
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
        done = hubdistill("run", recipe, "-o", tmp_path / "run", folder=tmp_path)
    assert done.code == 2
    assert "is in use by process" in done.err
