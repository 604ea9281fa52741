"""The Triton kernels without a GPU, and what happens where Triton does not work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hubdistill.losses import chunked
from hubdistill.losses.chunked import chunked_divergence
from hubdistill.losses.rows import EAGER
from tests.losses import plain


def test_in_the_interpreter():
    """Triton reads the variable when it is imported, and would not run on a GPU afterwards: a process of its own."""
    pytest.importorskip("triton")
    file = Path(__file__).with_name("interpreted.py")
    command = [sys.executable, "-m", "pytest", str(file), "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_cpu_never_asks_for_triton():
    assert not chunked.usable(torch.zeros(2, 3))
    assert chunked.row_functions(torch.zeros(2, 3)) is EAGER


def test_where_triton_fails_torch_does_the_work(monkeypatch):
    case = plain.make_case([3, 4], [0, 1], dtype=torch.float32)
    arguments = (case.responses, case.student, case.teacher, case.weights, 0.1)
    expected, _ = chunked_divergence(*arguments)
    monkeypatch.setattr(chunked, "usable", lambda logits: True)
    monkeypatch.setitem(sys.modules, "hubdistill.losses.fused", None)  # importing it fails
    chunked._fused.cache_clear()
    try:
        with pytest.warns(UserWarning, match="without Triton's kernels"):
            found, _ = chunked_divergence(*arguments)
        assert torch.equal(found, expected)
    finally:
        chunked._fused.cache_clear()
