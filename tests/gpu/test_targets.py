"""The smoke recipes on an accelerator, from the command line; `make gpu-check` runs these."""

from __future__ import annotations

import json

import pytest
import torch

from tests.command import hubdistill

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("target", ["vlm", "int4", "drafter"])
def test_a_smoke_recipe(tmp_path, target):
    done = hubdistill("run", f"smoke/{target}", "train.device=cuda", "--output", "run", folder=tmp_path)
    assert done.code == 0, done.err
    rows = json.loads((tmp_path / "run" / "measurements.json").read_text())
    assert {"student", "distilled"} <= {row["subject"] for row in rows}
    memory = [row["value"] for row in rows if row["metric"] == "memory" and row["subject"] == "student"]
    assert bool(memory) == (target == "int4")
    if target == "drafter":
        assert all(row["value"] == 1 for row in rows if row["metric"] == "same_text")
