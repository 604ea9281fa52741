"""The wheel is whole: built from the checkout and put elsewhere, it finds its recipes, their data and its card."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests import tiny
from tests.command import ROOT, hubdistill


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like site-packages that holds the wheel's files alone."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("hubdistill-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_it_holds_what_the_checkout_ships_and_no_test(site: Path) -> None:
    for folder in ("recipes", "model_cards"):
        shipped = {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts}
        assert {path.relative_to(site / "hubdistill") for path in (site / "hubdistill" / folder).rglob("*") if path.is_file()} == shipped
    assert sorted(path.name.split("-")[0] for path in site.iterdir()) == ["hubdistill", "hubdistill"]
    (about,) = site.glob("*.dist-info/METADATA")
    assert "License-Expression: Apache-2.0" in about.read_text()


def test_a_copy_of_the_quickstart_is_distilled_from_there(site: Path, tmp_path: Path) -> None:
    """With tiny models, and few of its prompts."""
    listed = hubdistill("recipes", folder=tmp_path, PYTHONPATH=str(site))
    assert "quickstart" in listed.out
    copied = hubdistill("recipes", "quickstart", "--copy", "mine.yaml", folder=tmp_path, PYTHONPATH=str(site))
    assert copied.code == 0, copied.err
    tiny.write_recipe(tmp_path)
    changes = ("teacher.model=./teacher", "student.model=./student", "student.layers=1", "train.device=cpu", "prompts.count=8", "prompts.heldout=4", "prompts.max_tokens=32", "sampling.max_tokens=8")
    done = hubdistill("run", "mine.yaml", *changes, folder=tmp_path, PYTHONPATH=str(site))
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "runs" / "mine" / "plan.json").read_text())["prompts"]["rows"] == 700
    assert (tmp_path / "runs" / "mine" / "hub" / "README.md").is_file()
