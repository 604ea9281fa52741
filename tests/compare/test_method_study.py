"""The study of methods runs, and goes on seed by seed, on tiny models."""

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.command import ROOT


@pytest.mark.slow
def test_the_study_reports_after_each_seed(tmp_path: Path):
    rows = [{"prompt": f"Write {number} words.", "reference": "one two three"} for number in range(16)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny = ["teacher={model: toy:llama}", "student={model: toy:llama, layers: 1}", "prompts.count=8", "prompts.heldout=4", "sampling.max_tokens=8", "train.pairs_per_step=4", "train.micro_batch=2"]
    command = [sys.executable, ROOT / "benchmarks" / "method_study.py", tmp_path / "prompts.jsonl", "--output", tmp_path / "study", "--methods", "distillm2,sft"]
    for seeds in (1, 2):
        done = subprocess.run([*command, "--seeds", str(seeds), *tiny], capture_output=True, text=True, check=False, cwd=tmp_path,
                              env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"})  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert f"2 methods, seeds {', '.join(map(str, range(seeds)))}" in done.stdout
    assert "| distillm2 | student responses |" in (tmp_path / "study" / "alphas.md").read_text()
    assert "the data set's" in done.stdout
    drawn = [ElementTree.parse(file).getroot() for file in (tmp_path / "study").glob("*.svg")]
    assert len(drawn) == 8  # six metrics, the curves of both sides
    assert all(root.find("{*}rect").get("fill") == "#fff" for root in drawn)
