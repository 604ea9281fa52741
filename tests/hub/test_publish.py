"""Publishing against a real HTTP Hub, large files by Xet and by LFS; every call in the client's own process."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
import yaml

from tests.hub.conftest import ALICE, BASE, BOB, COMMIT, READER
from tests.hub_server import HubServer, validate_card

EXPECTED = {
    ".gitattributes",
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "hubdistill/recipe.yaml",
    "hubdistill/run.json",
    "hubdistill/measurements.json",
}
HAND_MADE = b"---\nlicense: mit\ntags: [mine]\nwidget:\n- text: Hi\n---\n\n# My words\n\nPlease keep them.\n"


def push(repo: str, folder: Path, **kwargs):
    return {"call": "push", "kwargs": {"folder": str(folder), "repo": repo, **kwargs}}


def tree(hub: HubServer, repo: str, ref: str = "refs/heads/main"):
    found = hub.state.repos[("model", repo)]
    return found.commits[found.refs[ref]].tree


def put(hub: HubServer, repo: str, files: dict[str, bytes], *, private: bool = False) -> None:
    """Create or change a repository on the server, behind the client's back."""
    from tests.hub_server import Entry, Repo, git_blob_sha

    found = hub.state.repos.setdefault(("model", repo), Repo(repo, "model", private=private))
    head = found.refs.get("refs/heads/main")
    old = found.commits[head].tree if head else {}
    new = {name: Entry(len(data), git_blob_sha(data), None, data) for name, data in files.items()}
    found.add_commit("refs/heads/main", head, "by hand", "", "alice", {**old, **new})


def test_new_repository_then_again_then_pulled(hub, client, staged, storage):
    (first, again, pulled), log = client(
        [
            push("org/new", staged, tag="v0.1"),
            push("org/new", staged, tag="v0.1"),
            {"call": "pull", "args": ["org/new", "v0.1"]},
        ],
        **storage,
    )
    repo = hub.state.repos[("model", "org/new")]
    assert first["ok"]["created"]
    assert first["ok"]["visibility"] == "private"
    assert repo.private
    assert set(repo.commits[first["ok"]["commit"]].tree) == EXPECTED
    assert len(repo.commits) == 2  # the Hub's initial commit and exactly one of ours
    assert repo.refs["refs/tags/v0.1"] == first["ok"]["commit"] == again["ok"]["commit"] == pulled["ok"]["commit"]
    assert not again["ok"]["created"]
    weights = tree(hub, "org/new")["adapter_model.safetensors"]
    assert weights.sha256 == hashlib.sha256((staged / "adapter_model.safetensors").read_bytes()).hexdigest()
    assert bool(hub.state.xet_by_sha) == (not storage)  # the large file went the way that was asked for
    config = json.loads(tree(hub, "org/new")["adapter_config.json"].data)
    assert (config["base_model_name_or_path"], config["revision"]) == (BASE, COMMIT)
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert validate_card(tree(hub, "org/new")["README.md"].data.decode()) == ([], [])
    assert (pulled["ok"]["base"], pulled["ok"]["rank"]) == (BASE, 4)
    assert not re.search("hf_alice|hf_bob", log)


def test_existing_card_keeps_its_words_and_visibility(hub, client, staged, storage):
    put(hub, "org/old", {"README.md": HAND_MADE})
    (done, over), _ = client([push("org/old", staged), push("org/old", staged, overwrite_card=True)], **storage)
    assert done["ok"]["visibility"] == "public"  # asked for private, and left as it was
    assert not hub.state.repos[("model", "org/old")].private
    repo = hub.state.repos[("model", "org/old")]
    card = repo.commits[done["ok"]["commit"]].tree["README.md"].data.decode()
    metadata = yaml.safe_load(card.split("---")[1])
    assert "# My words\n\nPlease keep them." in card
    assert "A LoRA adapter for" in card
    assert metadata["license"] == "mit"
    assert metadata["widget"] == [{"text": "Hi"}]
    assert {"mine", "lora"} <= set(metadata["tags"])
    assert metadata["base_model"] == BASE
    assert b"My words" not in repo.commits[over["ok"]["commit"]].tree["README.md"].data


def test_pull_request_branch_and_pull_request_of_a_stranger(hub, client, staged, storage):
    put(hub, "org/open", {"README.md": HAND_MADE})
    steps = [
        push("org/open", staged, create_pr=True),
        push("org/open", staged, revision="refs/pr/1"),
        push("org/open", staged, revision="trial"),
        push("org/open", staged, create_pr=True) | {"token": BOB},
        push("org/open", staged) | {"token": BOB},
    ]
    (pr, same_pr, branch, stranger, refused), _ = client(steps, **storage)
    repo = hub.state.repos[("model", "org/open")]
    assert (pr["ok"]["pr"], stranger["ok"]["pr"]) == (1, 2)
    assert pr["ok"]["url"].endswith("/org/open/discussions/1")
    assert set(tree(hub, "org/open")) == {"README.md"}  # main is untouched
    assert repo.refs["refs/pr/1"] == pr["ok"]["commit"] == same_pr["ok"]["commit"]
    assert repo.refs["refs/heads/trial"] == branch["ok"]["commit"]
    assert set(tree(hub, "org/open", "refs/heads/trial")) == EXPECTED - {".gitattributes"}
    assert refused["error"] == "HubError"
    assert "may not do this on org/open" in refused["message"]


def test_busy_hub_is_retried_and_a_failing_one_keeps_the_files(hub, client, staged, storage):
    def fault(path: str, status: int, times: int, **more):
        return {"call": "fault", "kwargs": {"path": path, "status": status, "times": times, **more}}

    steps = [
        fault("/repos/create", 503, 1),
        fault("/validate-yaml", 502, 1),
        fault("/preupload/", 429, 1, headers={"Retry-After": "1"}),
        fault("/commit/", 503, 2),
        fault("/tag/", 500, 1),
        push("org/busy", staged, tag="v1"),
        fault("/commit/", 503, 40),
        push("org/down", staged, resume_command="hubdistill push runs/x org/down"),
    ]
    results, _ = client(steps, **storage)
    done, failed = results[5], results[7]
    repo = hub.state.repos[("model", "org/busy")]
    assert len(repo.commits) == 2
    assert repo.refs["refs/tags/v1"] == done["ok"]["commit"]
    assert all(f["times"] == 0 for f in hub.state.faults[:5])  # every fault was met
    assert failed["error"] == "HubError"
    assert "HTTP 503" in failed["message"]
    assert failed["message"].endswith(f"kept in {staged}. To resume: hubdistill push runs/x org/down")
    assert (staged / "adapter_model.safetensors").is_file()
    assert len(hub.state.repos[("model", "org/down")].commits) == 1


def test_stale_parent_is_refused(hub, client, staged, storage):
    """Somebody commits between our reading of the card and our commit: the server does it when preupload arrives."""
    put(hub, "org/race", {"README.md": HAND_MADE})

    class Intruder(dict):
        """A fault that never fires; looking at it changes the repository once."""

        def get(self, key, default=None):
            if hub.log[-1]["path"].endswith("/preupload/main") and not self.get_done:
                self.get_done = True
                put(hub, "org/race", {"README.md": HAND_MADE + b"More words.\n"})
            return "NEVER"

        get_done = False

    hub.state.faults.append(Intruder(times=1, path="."))
    (raced,), _ = client([push("org/race", staged, resume_command="again")], **storage)
    assert raced["error"] == "HubError"
    assert "somebody else has changed org/race" in raced["message"]
    assert raced["message"].endswith("To resume: again")
    assert b"More words" in tree(hub, "org/race")["README.md"].data


def test_tags_never_move(hub, client, staged):
    put(hub, "org/tagged", {"README.md": HAND_MADE})
    repo = hub.state.repos[("model", "org/tagged")]
    repo.refs["refs/tags/v1"] = old = repo.refs["refs/heads/main"]
    put(hub, "org/tagged", {"more.txt": b"x"})
    repo.refs["refs/tags/v2"] = repo.refs["refs/heads/main"]
    commits = len(repo.commits)
    steps = [
        push("org/tagged", staged, tag="v1"),
        push("org/tagged", staged, tag="v2"),
        push("org/tagged", staged, tag="v3", create_pr=True),
    ]
    (early, late, with_pr), _ = client(steps)
    assert (early["error"], with_pr["error"]) == ("InputError", "InputError")
    assert repo.refs["refs/tags/v1"] == old
    assert late["error"] == "InputError"
    assert len(repo.commits) == commits  # refused before the commit


def test_server_without_xet_says_what_to_do(client, staged, tmp_path):
    with HubServer(xet=False) as plain:
        (failed,), _ = client([push("org/noxet", staged)], HF_ENDPOINT=plain.url)
        (done,), _ = client([push("org/noxet", staged)], HF_ENDPOINT=plain.url, HF_HUB_DISABLE_XET="1")
    assert "Rerun with HF_HUB_DISABLE_XET=1" in failed["message"]
    assert "ok" in done


def test_check_access_asks_before_training(hub, client):
    put(hub, "org/there", {"README.md": HAND_MADE}, private=True)
    put(hub, "bob/secret", {"README.md": HAND_MADE}, private=True)

    def check(repo: str, token: str = ALICE):
        return {"call": "check_access", "args": [repo], "token": token}

    steps = [
        check("org/there"),
        check("alice/new"),
        check("org/x", READER),
        check("org/x", "hf_wrong_token"),
        check("bob/secret"),
        check("bob/x"),
        check("just-a-name"),
        check("org/a--b"),
    ]
    (there, new, reader, wrong, private, foreign, name, dashes), log = client(steps)
    assert (there["ok"]["exists"], there["ok"]["visibility"], there["ok"]["user"]) == (True, "private", "alice")
    assert (new["ok"]["exists"], new["ok"]["visibility"]) == (False, "private")
    assert "read-only" in reader["message"]
    assert "invalid or has expired" in wrong["message"]
    assert "HF_TOKEN takes precedence" in wrong["message"]
    for refused in (private, foreign):
        assert "may not create repositories under bob" in refused["message"]
    assert (name["error"], dashes["error"]) == ("InputError", "InputError")
    assert not any(entry["method"] != "GET" for entry in hub.log)  # nothing was written
    assert not re.search("hf_alice|hf_wrong", log)


def test_without_token_offline_or_hub_and_the_preview_needs_none(hub, client, staged):
    steps = [
        {"call": "check_access", "args": ["org/x"]},
        push("org/x", staged),
        {"call": "preview", "kwargs": {"folder": str(staged), "repo": "org/x"}},
    ]
    (check, pushed, preview), _ = client(steps, token=None)
    assert "not logged in" in check["message"]
    assert "hf auth login" in pushed["message"]
    assert (
        dict(preview["ok"]["files"])["adapter_model.safetensors"]
        == (staged / "adapter_model.safetensors").stat().st_size
    )
    assert {name for name, _ in preview["ok"]["files"]} == EXPECTED - {".gitattributes"}
    (check, pushed, preview), _ = client(steps, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in check["message"]
    assert f"kept in {staged}" in pushed["message"]
    assert "ok" in preview
    assert hub.log == []  # neither touched the network
    (check, pushed, _), _ = client(steps, HF_ENDPOINT="http://127.0.0.1:9")
    assert "could not be reached" in check["message"]
    assert f"kept in {staged}" in pushed["message"]


def test_push_checks_the_folder_again(hub, client, staged):
    (staged / "hubdistill" / "run.json").write_text(f'{{"argv": "--token={ALICE}"}}')
    (token,), log = client([push("org/x", staged)])
    assert token["message"].startswith("hubdistill/run.json:1: looks like a secret (the current Hub token)")
    (staged / "hubdistill" / "run.json").write_text("{}")
    (staged / "training_args.bin").write_bytes(b"x")
    (extra,), more = client([push("org/x", staged)])
    assert "training_args.bin" in extra["message"]
    assert ALICE not in log + more
    assert hub.log == []


def test_no_token_reaches_the_server_outside_the_header(hub, client, staged, storage):
    client([push("org/clean", staged)], **storage)
    assert all(ALICE not in json.dumps(entry) for entry in hub.log)
    for path in hub.state.root.rglob("*"):
        assert not path.is_file() or ALICE.encode() not in path.read_bytes()
    for entry in tree(hub, "org/clean").values():
        assert ALICE.encode() not in (entry.data or b"")


def test_unencrypted_endpoint_is_named():
    from hubdistill.hub import failures

    def warning(url: str) -> str | None:
        import huggingface_hub.constants as constants

        before, constants.ENDPOINT = constants.ENDPOINT, url
        try:
            return failures.endpoint_warning()
        finally:
            constants.ENDPOINT = before

    assert "not encrypted" in (warning("http://hub.example.org") or "")
    assert "not encrypted" in (warning("http://127.evil.org") or "")
    assert all(
        warning(url) is None
        for url in ("https://huggingface.co", "http://127.0.0.1:8900", "http://localhost:1", "http://[::1]:8")
    )


def test_storage_that_fails(hub, client, staged, storage):
    """The client repeats storage requests itself for 23 seconds; here it is refused, which it does not repeat."""
    hub.state.faults.append({"path": "/_lfs/|/_xet/", "status": 403, "times": 1000})
    (refused,), _ = client([push("org/store", staged)], **storage)
    assert refused["error"] == "HubError"
    assert "large files" in refused["message"]
    assert "HTTP 403" in refused["message"]
    hub.state.faults[:] = [{"path": "xet-write-token|objects/batch", "status": 401, "times": 1000}]
    (token,), _ = client([push("org/store", staged)], **storage)
    assert "HF_HUB_DISABLE_XET" in token["message"] if not storage else "invalid or has expired" in token["message"]
    assert "no Xet storage" not in token["message"]
    hub.state.faults.clear()
    (done,), _ = client([push("org/store", staged)], **storage)
    assert set(tree(hub, "org/store")) == EXPECTED
    assert "ok" in done


@pytest.mark.slow
def test_storage_that_stays_down_ends_in_words(hub, client, staged):
    hub.state.faults.append({"path": "/_lfs/", "status": 500, "times": 1000})
    (failed,), _ = client([push("org/store", staged)], HF_HUB_DISABLE_XET="1")
    assert "HTTP 500" in failed["message"]
    tried = 1000 - hub.state.faults[0]["times"]
    assert 1 < tried <= 12  # once through the client's own retries, not once for each of ours


def test_a_tag_is_pushed_again_only_where_nothing_changes(hub, client, staged):
    """Before the commit: else main's card would pin, under that tag, weights that are not those beside it."""
    again = [push("org/kept", staged, tag="v1"), push("org/kept", staged, tag="v1")]
    (first, same), _ = client(again)
    assert first["ok"]["commit"] == same["ok"]["commit"]
    (staged / "hubdistill" / "run.json").write_text('{"seed": 1}\n')
    (changed, free), _ = client([push("org/kept", staged, tag="v1"), push("org/kept", staged, tag="v2")])
    assert changed["error"] == "InputError"
    assert "hubdistill/run.json would change" in changed["message"]
    assert "`--tag`, or `publish.tag`" in changed["message"]
    repo = hub.state.repos[("model", "org/kept")]
    assert repo.commits[free["ok"]["commit"]].parent == first["ok"]["commit"]  # the refused push left no commit
    assert repo.refs["refs/tags/v1"] == first["ok"]["commit"]


def test_files_of_an_earlier_adapter_go_and_those_of_people_stay(hub, client, staged, storage):
    (staged / "chat_template.jinja").write_text("{{ messages }}")
    client([push("org/changed", staged)], **storage)
    put(hub, "org/changed", {"notes.txt": b"mine"})
    (staged / "chat_template.jinja").unlink()
    (done,), _ = client([push("org/changed", staged)], **storage)
    assert "ok" in done, done
    assert set(tree(hub, "org/changed")) == EXPECTED | {"notes.txt"}


def test_results_of_an_earlier_push_do_not_outlive_it(hub, client, staged):
    index = "model-index:\n- name: results\n  results: []\n- name: theirs\n  results: []\n"
    put(hub, "org/results", {"README.md": HAND_MADE.replace(b"widget:", index.encode() + b"widget:")})
    client([push("org/results", staged)])
    metadata = yaml.safe_load(tree(hub, "org/results")["README.md"].data.decode().split("---")[1])
    assert "results" not in [entry["name"] for entry in metadata["model-index"]]
    assert "theirs" in [entry["name"] for entry in metadata["model-index"]]


def test_what_would_be_refused_is_refused_without_writing(hub, client, staged):
    put(hub, "org/there", {"README.md": HAND_MADE})
    repo = hub.state.repos[("model", "org/there")]
    repo.refs["refs/tags/v1"] = repo.refs["refs/heads/main"]

    def check(name: str, **kwargs):
        return {"call": "check_push", "kwargs": {"folder": str(staged), "repo": name, **kwargs}}

    (free, new, tagged, branch), _ = client(
        [check("org/there"), check("org/new"), check("org/there", tag="v1"), check("org/there", revision="trial")]
    )
    (stranger, request, reader), _ = client(
        [
            check("org/there") | {"token": BOB},
            check("org/there", create_pr=True) | {"token": BOB},
            check("org/there") | {"token": READER},
        ]
    )
    assert all("ok" in answer for answer in (free, new, branch, request))
    assert tagged["error"] == "InputError"
    assert "may not do this" in stranger["message"]
    assert "read-only" in reader["message"]
    assert not any(entry["method"] == "POST" and "validate-yaml" not in entry["path"] for entry in hub.log)
    assert ("model", "org/new") not in hub.state.repos


def test_a_model_is_not_pushed_beside_what_would_be_loaded_in_its_place():
    from types import SimpleNamespace

    from hubdistill.errors import InputError
    from hubdistill.hub.changes import refuse_shadowing

    def there(*names: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(rfilename=name) for name in ("README.md", *names)]

    shards = {"model-00001-of-00002.safetensors": b"", "model.safetensors.index.json": b""}
    refuse_shadowing("me/a", there("model.safetensors"), {"model.safetensors": b""})
    refuse_shadowing("me/a", there("model-00001-of-00002.safetensors", "adapter_model.safetensors"), {"model.safetensors": b""})
    for holds, contents in (("adapter_config.json", {"model.safetensors": b""}), ("model.safetensors", shards)):
        with pytest.raises(InputError, match=f"me/a holds {holds}, which would be loaded instead of the model that is pushed; delete it there, or name another repository"):
            refuse_shadowing("me/a", there(holds), contents)
