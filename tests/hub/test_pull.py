"""Pulling: pinned, checked, from the cache without a connection; refused repositories; each failure has its own words."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hubdistill.errors import InputError, MissingError, RunDirectoryError
from hubdistill.hub.pull import fetch_recipe, pull, usage
from tests.hub.conftest import ALICE, BASE, BOB, COMMIT, WEIGHTS, config, safetensors
from tests.hub.test_publish import put

GOOD = {
    "adapter_config.json": json.dumps(config(base_model_name_or_path=BASE, revision=COMMIT)).encode(),
    "adapter_model.safetensors": safetensors(WEIGHTS),
    "hubdistill/recipe.yaml": b"target: {kind: text}\n",
    "README.md": b"---\npipeline_tag: image-text-to-text\n---\n",
    "chat_template.jinja": b"{{ messages }}",
}


def fetch(ref: str, *args, **kwargs):
    return {"call": "pull", "args": [ref, *args], "kwargs": kwargs}


def recipe(ref: str, *args):
    return {"call": "fetch_recipe", "args": [ref, *args]}


def test_pinned_copied_and_offline_afterwards(hub, client, tmp_path):
    put(hub, "org/good", GOOD)
    repo = hub.state.repos[("model", "org/good")]
    old = repo.refs["refs/tags/v1"] = repo.refs["refs/heads/main"]
    put(hub, "org/good", {"hubdistill/recipe.yaml": b"target: {kind: vlm}\n", "training_args.bin": b"pickle"})
    steps = [
        fetch("org/good", "v1"),
        recipe("org/good", "v1"),
        fetch("org/good", output=str(tmp_path / "out")),
        fetch("org/good", None, None, "org/other"),
    ]
    (pinned, text, copied, other), _ = client(steps)
    assert (pinned["ok"]["commit"], pinned["ok"]["base"], pinned["ok"]["base_revision"]) == (old, BASE, COMMIT)
    assert Path(text["ok"]).read_text() == "target: {kind: text}\n"
    assert copied["ok"]["commit"] == repo.refs["refs/heads/main"]
    out = {p.relative_to(tmp_path / "out").as_posix(): p for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert out.keys() == GOOD.keys()  # nothing else, so no pickle
    assert not any(p.is_symlink() for p in out.values())
    assert out["adapter_model.safetensors"].read_bytes() == GOOD["adapter_model.safetensors"]
    assert "is an adapter for org/tiny-base, not for org/other" in other["message"]
    asked = len(hub.log)
    warm = [fetch("org/good", "v1"), recipe("org/good", "v1"), fetch("org/good", old)]
    for env in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        (again, text, by_commit), _ = client(warm, **env)
        assert (again["ok"], by_commit["ok"]) == (pinned["ok"], pinned["ok"])
        assert Path(text["ok"]).read_text() == "target: {kind: text}\n"
    (cold,), _ = client([fetch("org/good")], home="empty", HF_HUB_OFFLINE="1")
    assert cold["error"] == "HubError"
    assert "HF_HUB_OFFLINE" in cold["message"]
    (down,), _ = client([fetch("org/good")], home="empty", HF_ENDPOINT="http://127.0.0.1:9")
    assert "could not be reached" in down["message"]
    assert len(hub.log) == asked


def test_each_refusal_has_its_own_words(hub, client):
    for name in ("org/gated", "org/private", "org/fine"):
        put(hub, name, GOOD, private=name == "org/private")
    hub.state.repos[("model", "org/gated")].gated = "manual"
    put(hub, "org/empty", {"README.md": b"hello"})
    steps = [
        fetch("org/gated"),
        fetch("org/private"),
        fetch("org/missing"),
        fetch("org/fine", "no-such-branch"),
        fetch("org/fine") | {"token": "hf_wrong_token"},
        fetch("org/empty") | {"token": ALICE},
        recipe("org/empty"),
        fetch("org/private"),
    ]
    (gated, private, missing, branch, wrong, empty, none, member), log = client(steps, token=BOB)
    assert (
        gated["message"]
        == f"access to org/gated is gated: accept the terms at {hub.url}/org/gated with the account of your token, then retry."
    )
    for found in (private, missing):
        assert found["error"] == "MissingError"
        assert "does not exist" in found["message"]
        assert "or it is private" in found["message"]
    assert "org/fine has no such revision" in branch["message"]
    assert "invalid or has expired" in wrong["message"]
    assert "no adapter_model.safetensors" in empty["message"]
    assert "was not published by hubdistill" in none["message"]
    assert "ok" in member
    assert not re.search("hf_alice|hf_bob|hf_wrong", log)


def test_a_hub_with_a_problem(hub, client):
    put(hub, "org/good", GOOD)
    hub.state.faults.append({"path": "/api/models/org/good/revision/", "status": 503, "times": 2})
    (first,), _ = client([fetch("org/good", "main")])
    folder = Path(first["ok"]["folder"])
    hub.state.faults.append({"path": "/api/models/", "status": 500, "times": 1000})
    (cold,), _ = client([fetch("org/good")], home="empty")
    assert "HTTP 500" in cold["message"]
    (cached,), _ = client([fetch("org/good", "main")])
    assert cached["ok"] == first["ok"]
    assert folder.is_dir()


@pytest.mark.parametrize("mode", [{}, {"HF_HUB_DISABLE_XET": "1"}], ids=["xet", "lfs"])
def test_damaged_weights_in_the_cache_are_fetched_again(hub, client, staged, mode):
    (_, first), _ = client(
        [{"call": "push", "kwargs": {"folder": str(staged), "repo": "org/good"}}, fetch("org/good")], **mode
    )
    weights = Path(first["ok"]["folder"]) / "adapter_model.safetensors"
    good = weights.read_bytes()
    blob = weights.resolve()
    blob.chmod(0o644)
    blob.write_bytes(good[:-1] + b"\xff")
    (again,), log = client([fetch("org/good")], **mode)
    assert weights.read_bytes() == good
    assert again["ok"] == first["ok"]
    assert "is damaged and is fetched again" in log


HOSTILE: dict[str, tuple[dict[str, bytes | None], str]] = {
    "pickle": ({"adapter_model.safetensors": None, "adapter_model.bin": b"\x80\x04"}, "can run code when it loads"),
    "traversal": ({"../evil.txt": b"x"}, "outside the folder"),
    "windows-traversal": ({"a\\..\\..\\evil.txt": b"x"}, "outside the folder"),
    "large-config": ({"adapter_config.json": b" " * (1 << 20) + b"{}"}, "more than the 1048576"),
    "large-recipe": ({"hubdistill/recipe.yaml": b"#" * (300 << 10)}, "more than the 262144"),
    "code": (
        {
            "adapter_config.json": json.dumps(
                config(base_model_name_or_path=BASE, auto_mapping={"parent_library": "os"})
            ).encode()
        },
        "auto_mapping: is not allowed",
    ),
    "local-base": (
        {"adapter_config.json": json.dumps(config(base_model_name_or_path="/etc/model")).encode()},
        "is not a model on the Hub",
    ),
}


def test_hostile_repositories_are_refused_and_nothing_is_written(hub, client, tmp_path):
    for name, (files, _) in HOSTILE.items():
        put(hub, f"org/{name}", {k: v for k, v in {**GOOD, **files}.items() if v is not None})
    steps = [fetch(f"org/{name}", output=str(tmp_path / "out")) for name in HOSTILE]
    results, _ = client([*steps, recipe("org/large-recipe")])
    for result, (name, (_, words)) in zip(results, HOSTILE.items(), strict=False):
        assert result.get("error") == "InputError", name
        assert words in result["message"], name
    assert "is no recipe" in results[-1]["message"]
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("evil*"))
    assert not list((tmp_path / "home").rglob("*.bin"))


def lay_out(folder: Path, **changes: bytes) -> Path:
    for name, content in {**GOOD, **changes}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def test_local_folder_and_its_usage(tmp_path):
    got = pull(str(lay_out(tmp_path / "mine")), expect_base=BASE)
    assert (got.repo, got.commit, got.rank) == (None, None, 4)
    assert got.recipe == fetch_recipe(str(tmp_path / "mine")) == tmp_path / "mine/hubdistill/recipe.yaml"
    text = usage(got)
    assert f'AutoModelForImageTextToText.from_pretrained("{BASE}", revision="{COMMIT}"' in text
    assert f'PeftModel.from_pretrained(base, "{tmp_path}/mine")' in text
    assert f"--chat-template {tmp_path}/mine/chat_template.jinja" in text
    assert "--max-lora-rank" not in text  # rank 4 fits vLLM's default of 16


def test_usage_of_a_hub_adapter_pins_its_commit(hub, client):
    put(hub, "org/good", GOOD | {"README.md": b"x"})
    (text,), _ = client([{"call": "usage", "args": ["org/good"]}])
    commit = hub.state.repos[("model", "org/good")].refs["refs/heads/main"]
    assert f'PeftModel.from_pretrained(base, "org/good", revision="{commit}")' in text["ok"]
    assert f"hf download org/good --revision {commit} --local-dir ./good" in text["ok"]
    compile(text["ok"].split("# vLLM")[0], "usage", "exec")


def test_local_folders_that_are_refused(tmp_path):
    linked = lay_out(tmp_path / "linked")
    (linked / "adapter_config.json").rename(tmp_path / "elsewhere.json")
    (linked / "adapter_config.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(InputError, match="is a symlink"):
        pull(str(linked))
    shelf = lay_out(tmp_path / "shelf")
    (shelf / "hubdistill").rename(tmp_path / "kept")
    (shelf / "hubdistill").symlink_to(tmp_path / "kept")
    with pytest.raises(InputError, match="is a symlink"):
        fetch_recipe(str(shelf))
    with pytest.raises(InputError, match="neither a folder nor a Hub repository"):
        pull(str(tmp_path / "nowhere"))
    (tmp_path / "bare").mkdir()
    with pytest.raises(MissingError, match="not a LoRA adapter"):
        pull(str(tmp_path / "bare"))


def test_output_never_replaces_other_files(tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.tex").write_text("mine")
    source = lay_out(tmp_path / "mine")
    with pytest.raises(RunDirectoryError, match=r"thesis\.tex"):
        pull(str(source), output=taken)
    assert [p.name for p in taken.iterdir()] == ["thesis.tex"]
    pull(str(source), output=tmp_path / "out")
    (source / "chat_template.jinja").unlink()
    pull(str(source), output=tmp_path / "out")  # ours may be replaced
    assert not (tmp_path / "out" / "chat_template.jinja").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "out", "taken"]  # no leftovers


def test_storage_that_fails_while_pulling(hub, client, staged, storage):
    client([{"call": "push", "kwargs": {"folder": str(staged), "repo": "org/good"}}], **storage)
    hub.state.faults.append({"path": "/_cdn/|/_xet/|/_xorb/", "status": 403, "times": 1000})
    (failed,), _ = client([fetch("org/good")], home="empty", **storage)
    assert failed["error"] == "HubError"
    assert "HTTP 403" in failed["message"]
