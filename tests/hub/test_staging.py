"""The staging folder: only what is allowed, nothing secret, nothing of this machine; all or nothing."""

from __future__ import annotations

import json
import logging
import os
import stat
from pathlib import Path

import httpx2
import pytest

from hubdistill.errors import InputError, MissingError, RunDirectoryError
from hubdistill.hub.failures import UNREAD, retrying
from hubdistill.hub.publish import push
from hubdistill.hub.pull import pull
from hubdistill.hub.secrets import RedactingFilter, find_secrets
from hubdistill.hub.staging import replacing, stage
from tests.hub.conftest import ALICE, BASE, COMMIT, WEIGHTS, config, safetensors
from tests.hub.example_card import FACTS, render_card

CARD = render_card(FACTS)


def put_together(run_files, folder, **changes):
    return stage(run_files, changes.pop("card", CARD), folder, **{"base": BASE, "base_commit": COMMIT, **changes})


def test_config_is_rewritten_and_stable(run_files, tmp_path):
    first = (put_together(run_files, tmp_path / "a") / "adapter_config.json").read_bytes()
    shuffled = dict(reversed(config(target_modules=["q_proj", "v_proj"], base_model_name_or_path="/other").items()))
    run_files["adapter_config.json"].write_text(json.dumps(shuffled))
    second = (put_together(run_files, tmp_path / "b") / "adapter_config.json").read_bytes()
    assert first == second
    assert b"/somewhere" not in first + second
    assert json.loads(first) == config(
        base_model_name_or_path=BASE, revision=COMMIT, target_modules=["q_proj", "v_proj"]
    )


def test_files_are_copies_that_others_may_read(run_files, staged):
    for name, source in run_files.items():
        assert not os.path.samefile(source, staged / name)
        assert stat.S_IMODE((staged / name).stat().st_mode) & 0o044
    assert (staged / "adapter_model.safetensors").read_bytes() == run_files["adapter_model.safetensors"].read_bytes()


@pytest.mark.parametrize(
    "name",
    ["training_args.bin", "optimizer.pt", "../x", "/etc/passwd", "hubdistill/../x", "README.md", "tokenizer.json"],
)
def test_other_files_are_refused(run_files, tmp_path, name):
    extra = tmp_path / "extra"
    extra.write_text("x")
    with pytest.raises(InputError, match="may not be published"):
        put_together({**run_files, name: extra}, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_symlinks_are_refused_before_and_after_staging(run_files, staged, tmp_path):
    secret = tmp_path / "hostname"
    secret.write_text("{}")
    link = tmp_path / "link.json"
    link.symlink_to(secret)
    with pytest.raises(InputError, match="symlink"):
        put_together({**run_files, "hubdistill/run.json": link}, tmp_path / "s")
    (staged / "hubdistill" / "run.json").unlink()
    (staged / "hubdistill" / "run.json").symlink_to(secret)
    with pytest.raises(InputError, match="symlink"):
        push(staged, "alice/x")


SECRETS = {
    "hf": "hf_" + "abcdefghijklmnopqrstuvwxyzABCDEFGH",
    "aws": "AKIA" + "ABCDEFGHIJKLMNOP",
    "openai": "sk-" + "proj-abcdefghijklmnopqrst",
    "github": "ghp_" + "abcdefghijklmnopqrstuvwxyz0123456789",
    "google": "AIza" + "abcdefghijklmnopqrstuvwxyz_012345-7",
    "key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "current": ALICE,
}


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize(
    "name", ["hubdistill/run.json", "hubdistill/recipe.yaml", "README.md", "adapter_model.safetensors"]
)
def test_secrets_are_found_and_never_printed(run_files, tmp_path, kind, name):
    secret, card = SECRETS[kind], CARD
    if name == "README.md":
        card = CARD.replace("Made with", secret + " Made with")
    elif name.endswith("safetensors"):
        run_files[name].write_bytes(safetensors(WEIGHTS, {"note": secret}))
    else:
        run_files[name].write_text(f"# one\n# two {secret}\n")
    with pytest.raises(InputError) as caught:
        put_together(run_files, tmp_path / "s", card=card, token=ALICE)
    line = (
        CARD[: CARD.index("Made with")].count("\n") + 1
        if name == "README.md"
        else 1
        if name.endswith("safetensors")
        else 2
    )
    assert f"{name}:{line}: looks like a secret" in str(caught.value)
    assert secret not in str(caught.value)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "text",
    [
        "1" * 40,
        "task-oriented-dialogue-with-many-words",
        "risk-aware-abcdefghijklmnopqrstuvw",
        "hf_hub_download",
        "hf_home",
        "HF_TOKEN=***",
    ],
)
def test_ordinary_words_are_no_secrets(text):
    assert find_secrets(text, file="x", token="abc") == []


def test_logs_are_redacted(caplog):
    caplog.handler.addFilter(RedactingFilter(ALICE))
    logging.getLogger("x").warning("sent %s and %s", ALICE, SECRETS["hf"])
    assert caplog.messages == ["sent *** and ***"]


@pytest.mark.parametrize("base", ["/models/tiny", "./tiny", "pypi:some-package"])
def test_a_local_base_is_refused_with_the_remedy(run_files, tmp_path, base):
    with pytest.raises(InputError, match=r"publish\.base_repo: ORG/NAME.*--base-repo"):
        put_together(run_files, tmp_path / "s", base=base, base_commit=None)


def test_a_folder_that_looks_like_an_id_is_a_local_base(run_files, tmp_path, monkeypatch):
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="not on the Hub"):
        put_together(run_files, tmp_path / "s", base="models/tiny", base_commit=None)


def test_a_branch_is_no_commit(run_files, tmp_path):
    with pytest.raises(InputError, match="not a full commit"):
        put_together(run_files, tmp_path / "s", base_commit="main")


def test_what_is_missing_is_named(run_files, tmp_path):
    run_files["hubdistill/run.json"].unlink()
    with pytest.raises(MissingError, match=r"hubdistill/run\.json"):
        put_together(run_files, tmp_path / "s")
    with pytest.raises(MissingError, match=r"adapter_model\.safetensors"):
        put_together({"adapter_config.json": run_files["adapter_config.json"]}, tmp_path / "s")


def test_staging_again_replaces_ours_and_never_another_folder(run_files, staged, tmp_path):
    run_files.pop("hubdistill/measurements.json")
    put_together(run_files, staged)
    assert not (staged / "hubdistill/measurements.json").exists()
    (staged / "notes.txt").write_text("mine")
    with pytest.raises(RunDirectoryError, match=r"notes\.txt"):
        put_together(run_files, staged)
    assert (staged / "notes.txt").read_text() == "mine"


def test_a_folder_that_stays_here_may_name_a_base_of_this_machine(run_files, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    folder = put_together(run_files, tmp_path / "hub", base=str(base), base_commit=None, local=True)
    assert pull(str(folder)).base == str(base)
    with pytest.raises(InputError, match="not a model on the Hub"):
        push(folder, "alice/x")


def test_staging_is_all_or_nothing(run_files, tmp_path):
    folder = put_together(run_files, tmp_path / "published" / "adapter")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    run_files["adapter_model.safetensors"].write_bytes(b"damaged")
    with pytest.raises(InputError, match="damaged"):
        put_together(run_files, folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["adapter"]


def test_places_that_cannot_hold_an_adapter_are_told_with_the_fix(staged, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "afile").write_text("x")
    monkeypatch.chdir(tmp_path / "empty")
    for place in (".", "..", tmp_path / "empty"):
        with pytest.raises(RunDirectoryError, match="Choose a new folder"):
            pull(str(staged), output=Path(place))
    with pytest.raises(RunDirectoryError, match="a part of the path is a file; choose another place with --output"):
        pull(str(staged), output=tmp_path / "afile" / "x")
    with pytest.raises(RunDirectoryError, match="too long"):
        pull(str(staged), output=tmp_path / ("x" * 300))
    assert [path.name for path in (tmp_path / "empty").iterdir()] == []


def test_a_readme_of_ones_own_is_no_adapter_to_replace(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "README.md").write_text("my own notes")
    with pytest.raises(RunDirectoryError, match=r"holds README\.md"), replacing(folder):
        pass
    assert (folder / "README.md").read_text() == "my own notes"
    (folder / "adapter_config.json").write_text("{}")
    with replacing(folder) as new:
        (new / "README.md").write_text("a card")
    assert [path.name for path in folder.iterdir()] == ["README.md"]


@pytest.mark.parametrize(("error", "tries"), [(httpx2.ConnectError, 3), (httpx2.ReadTimeout, 1)])
def test_what_is_not_safe_to_repeat_is_repeated_only_where_it_did_not_arrive(error, tries):
    made = []

    def open_pull_request():
        made.append(1)
        raise error("gone")

    with pytest.raises(error):
        retrying(open_pull_request, delays=(0, 0), statuses=UNREAD)
    assert len(made) == tries
    made.clear()
    with pytest.raises(error):
        retrying(open_pull_request, delays=(0, 0))
    assert len(made) == 3
