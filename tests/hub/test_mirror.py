"""The mirror of a run: what is finished goes to a private repository and comes back whole, or not at all."""

import hashlib
import json

import pytest

from hubdistill.hub.mirror import SIGN
from tests.hub.conftest import ALICE
from tests.hub.test_publish import put, tree

SAMPLE = {"outputs": ["round_1/teacher.parquet"], "files": {"round_1/teacher.parquet": "responses"}}
TRAIN = {"outputs": ["round_1/adapter", "round_1/optimizer.pt"],
         "files": {"round_1/adapter/adapter_config.json": "{}", "round_1/adapter/adapter_model.safetensors": "weights", "round_1/optimizer.pt": "moments"}}  # fmt: skip
STAGES = {"sample": SAMPLE, "train": TRAIN}


@pytest.fixture
def repo(request):
    """A repository for each test."""
    return f"org/state-{hashlib.sha1(request.node.name.encode()).hexdigest()[:8]}"


def step(folder, repo, stages, **kwargs):
    return {"call": "mirrored", "kwargs": {"folder": str(folder), "repo": repo, "stages": stages, **kwargs}}


def down(repo, times):
    return {"call": "fault", "kwargs": {"method": "POST", "path": f"{repo}/commit/main", "status": 500, "times": times}}


def content(hub, repo, name):
    entry = tree(hub, repo)[name]
    return entry.data if entry.data is not None else hub.state.lfs_path(entry.sha256).read_bytes()


def check_both(a, b, hub, repo, results):
    first, again, other = results
    assert first["ok"] == {"fetched": [], "said": [["sample", "started"], ["train", "started"]], "notes": []}
    assert again["ok"]["fetched"] == []  # what is finished here is not fetched
    assert other["ok"] == {"fetched": ["sample", "train"], "said": [["sample", "skipped"], ["train", "skipped"]], "notes": []}
    for name in (*SAMPLE["files"], *TRAIN["files"], "stages/sample.json", "stages/train.json"):
        assert (b / name).read_bytes() == (a / name).read_bytes() == content(hub, repo, name)
    assert {path.name for path in b.iterdir()} == {"round_1", "stages"}
    found = hub.state.repos[("model", repo)]
    assert found.private
    assert [commit.title for commit in found.commits.values()][-2:] == ["Stage sample", "Stage train"]  # the rerun and the other machine sent nothing


def test_finished_stages_come_back_on_another_machine_and_are_not_done_again(service, repo, tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    check_both(a, b, service.hub, repo, service.call(step(a, repo, STAGES), step(a, repo, STAGES), step(b, repo, STAGES)))


@pytest.mark.slow
def test_the_same_without_xet(hub, client, tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    results, _ = client([step(a, "org/state", STAGES), step(a, "org/state", STAGES), step(b, "org/state", STAGES)], HF_HUB_DISABLE_XET="1")
    check_both(a, b, hub, "org/state", results)


def test_a_stage_with_other_inputs_replaces_its_files_and_deletes_those_that_are_gone(service, repo, tmp_path):
    fewer = {**TRAIN, "inputs": "other", "files": {"round_1/adapter/adapter_config.json": "other", "round_1/optimizer.pt": "new"}, "without": ["round_1/adapter"]}
    _, done = service.call(step(tmp_path / "a", repo, {"train": TRAIN}), step(tmp_path / "b", repo, {"train": fewer}))
    assert done["ok"]["said"] == [["train", "started"]]
    assert set(tree(service.hub, repo)) == {".gitattributes", SIGN, "stages/train.json", *fewer["files"]}
    assert content(service.hub, repo, "round_1/adapter/adapter_config.json") == b"other"


@pytest.mark.parametrize("name", ["round_1/optimizer.pt", "round_1/adapter/adapter_config.json"])
def test_what_arrives_otherwise_than_its_manifest_says_is_done_again(service, repo, tmp_path, name):
    service.call(step(tmp_path / "a", repo, STAGES))
    put(service.hub, repo, {name: b"something else"})
    (done,) = service.call(step(tmp_path / "b", repo, STAGES))
    assert done["ok"]["fetched"] == ["sample"]
    assert done["ok"]["said"] == [["sample", "skipped"], ["train", "started"]]
    assert done["ok"]["notes"] == ["train: the mirror's files are damaged or not all there; it is done again"]
    assert content(service.hub, repo, name) == (tmp_path / "a" / name).read_bytes()  # and sent again


def test_a_manifest_that_names_files_elsewhere_or_none_is_left_out(service, repo, tmp_path):
    service.call(step(tmp_path / "a", repo, {"sample": SAMPLE}))
    manifest = json.loads(content(service.hub, repo, "stages/sample.json"))
    bad = [{"../outside": ""}, {"/etc/passwd": ""}, {"a/../../outside": ""}, {".lock": ""}, {"": ""}, [7], {}, "round_1", None]
    put(service.hub, repo, {f"stages/bad-{i}.json": json.dumps(manifest | {"outputs": outputs}).encode() for i, outputs in enumerate(bad)})
    put(service.hub, repo, {"stages/bad-text.json": b"{", "stages/bad-list.json": b"[]"})
    (tmp_path / "outside").write_text("mine")
    (done,) = service.call(step(tmp_path / "b", repo, {}))
    assert done["ok"]["fetched"] == ["sample"]
    assert len(done["ok"]["notes"]) == len(bad) + 2
    assert (tmp_path / "outside").read_text() == "mine"
    assert {path.relative_to(tmp_path / "b").as_posix() for path in (tmp_path / "b").rglob("*") if path.is_file()} == {"stages/sample.json", *SAMPLE["files"]}


def test_a_hub_that_fails_stops_no_run_and_gets_the_stage_with_the_next_one(service, repo, tmp_path):
    (done,) = service.call(step(tmp_path / "a", repo, {"sample": {**SAMPLE, "meanwhile": [down(repo, 1)]}, "train": TRAIN}))
    (note,) = done["ok"]["notes"]
    assert note.startswith(f"warning: sample is not in {repo} yet; the run goes on, and it is tried again: ")
    assert {"stages/sample.json", "stages/train.json"} <= tree(service.hub, repo).keys()


def test_a_run_whose_last_stages_never_arrived_says_so(service, repo, tmp_path):
    (done,) = service.call(step(tmp_path / "a", repo, {"sample": {**SAMPLE, "meanwhile": [down(repo, 99)]}, "train": TRAIN}))
    assert done["error"] == "HubError"
    assert done["message"] == f"{repo} lacks sample, train; they are kept in {tmp_path / 'a'}, run the same command again to send them"


def test_two_runs_do_not_write_to_one_mirror(service, repo, tmp_path):
    other = step(tmp_path / "b", repo, {"train": TRAIN})
    (done,) = service.call(step(tmp_path / "a", repo, {"sample": {**SAMPLE, "meanwhile": [other]}}))
    assert done["error"] == "RunDirectoryError"
    assert f"another run writes to {repo}; stop one of them" in done["message"]
    assert "stages/sample.json" not in tree(service.hub, repo)


def test_the_token_and_paths_of_this_machine_are_not_sent(service, repo, tmp_path):
    private = {"token": (ALICE, "holds the Hub token"), "run": (f"{tmp_path}/a/models/tiny", "names a path of this machine"),
               "home": (f"{service.home}/models/x", "names a path of this machine"), "cache": (f"{service.home}/hubdistill/pruned", "names a path of this machine")}  # fmt: skip
    stages = {name: {"outputs": [name], "files": {f"{name}/adapter_config.json": json.dumps({"base": text})}} for name, (text, _) in private.items()}
    (done,) = service.call(step(tmp_path / "a", repo, {**stages, "sample": SAMPLE}))
    assert done["message"].startswith(f"{repo} lacks token, run, home, cache; ")
    (again,) = service.call(step(tmp_path / "a", repo, {**stages, "sample": SAMPLE}, close=False))
    for name, (_, why) in private.items():
        assert any(f"{name}/adapter_config.json {why}" in note for note in again["ok"]["notes"])
    assert set(tree(service.hub, repo)) == {".gitattributes", SIGN, "stages/sample.json", *SAMPLE["files"]}
    sent = b"".join(body for _, body in service.hub.state.bodies)
    assert b"stages/sample.json" in sent
    assert not [text for text, _ in private.values() if text.encode() in sent]
    assert ALICE not in service.said()
