"""The files of the container image: what .ci/image, which builds it, does not see, and what its checks must refuse."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import hubdistill
from hubdistill.hub.launch import IMAGE
from tests.command import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROBLEMS = runpy.run_path(str(ROOT / "docker" / "check_config.py"))["problems"]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder like site-packages with three distributions, one of a version that pip cannot read."""
    for name, version in (("torch", "2.14.0+cu130"), ("Flash_Attn", "3.0"), ("python-apt", "2.4.0ubuntu4")):
        distribution(tmp_path / "site", name, version)
    return tmp_path / "site"


def distribution(site: Path, name: str, version: str) -> None:
    folder = site / f"{name}.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def base(site: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """docker/base.py as the Dockerfile runs it, in a Python that has the distributions of `site` as well as ours."""
    return subprocess.run([sys.executable, str(ROOT / "docker" / "base.py"), *map(str, arguments)], env={"PYTHONPATH": str(site)}, capture_output=True, text=True, check=False)


def test_the_constraints_are_the_base_s_versions_and_ours_for_the_rest(site: Path, tmp_path: Path) -> None:
    pins = tmp_path / "pins.txt"
    pins.write_text("# tested with\ntorch==2.13.0\nflash.attn==1\nnot_there==7 ; platform_system == 'Linux'\n")
    done = base(site, "record", tmp_path / "base.txt", pins)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "base.txt").read_text().splitlines()
    assert {"torch==2.14.0+cu130", "flash-attn==3.0", f"pytest=={pytest.__version__}"} <= set(lines)
    assert lines[lines.index("# not in the base") + 1 :] == ["not_there==7 ; platform_system == 'Linux'"]
    assert not [line for line in lines if line.startswith("python-apt")]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda site: None, None),
        (lambda site: distribution(site, "new", "1"), None),
        (lambda site: distribution(site, "torch", "2.14.0"), "torch: 2.14.0+cu130 in the base, 2.14.0 now"),
        (lambda site: (site / "torch.dist-info" / "METADATA").unlink(), "torch: 2.14.0+cu130 in the base, "),
    ],
    ids=["nothing", "another one beside it", "the same version built otherwise", "gone"],
)
def test_a_replaced_distribution_of_the_base_ends_the_build(site: Path, tmp_path: Path, change, said) -> None:
    (tmp_path / "pins.txt").write_text("")
    base(site, "record", tmp_path / "base.txt", tmp_path / "pins.txt")
    change(site)
    done = base(site, "compare", tmp_path / "base.txt")
    assert done.returncode == (1 if said else 0)
    assert (said or "") in done.stderr


def test_one_version_and_one_name_everywhere() -> None:
    assert re.search(r"^ARG VERSION=(.+)$", DOCKERFILE, re.MULTILINE)[1] == hubdistill.__version__  # type: ignore[index]
    assert f"--tag {IMAGE} ." in DOCKERFILE
    assert yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["hubdistill"]["image"] == IMAGE
    assert set(re.findall(r"ghcr\.io/[\w./-]+:[\w.-]*\w", (ROOT / "docs" / "docker.md").read_text())) == {IMAGE}


def test_the_context_holds_what_is_copied_and_nothing_else() -> None:
    copied = {word for line in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()}
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == copied
    assert all((ROOT / name).exists() for name in copied)


def test_no_file_of_the_image_holds_a_token() -> None:
    service = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["hubdistill"]
    assert service["environment"] == ["HF_TOKEN"]  # a name alone: its value comes from who runs it
    assert "TOKEN" not in DOCKERFILE


def good() -> dict[str, object]:
    labels = {"org.opencontainers.image.version": "1", "org.opencontainers.image.revision": "abc"}
    return {"Entrypoint": ["hubdistill"], "Cmd": ["--help"], "User": "1000", "WorkingDir": "/work", "Volumes": {"/cache": {}}, "Labels": labels, "Env": ["PATH=/bin"]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, []),
        ({"User": ""}, ["User is '', not '1000'"]),
        ({"Entrypoint": ["vllm", "serve"]}, ["Entrypoint is ['vllm', 'serve'], not ['hubdistill']"]),
        ({"Env": ["HF_TOKEN=x", "PIP_INDEX_URL=x"]}, ["HF_TOKEN is set in the image", "PIP_INDEX_URL is set in the image"]),
    ],
)
def test_a_wrong_configuration_is_told(change, said) -> None:
    assert PROBLEMS(good() | change, "1", "abc") == said


def test_another_version_in_the_labels_is_told() -> None:
    (problem,) = PROBLEMS(good(), "2", "abc")
    assert problem.startswith("Labels is ")
