"""Extra memory of the loss stays flat in the number of tokens; each size in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys, torch
from hubdistill.losses.chunked import Head, Responses, chunked_divergence

def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024

def run(tokens, vocab, width, dtype):
    heads = [Head(torch.randn(vocab, width, dtype=dtype)) for _ in range(2)]
    hidden = [torch.randn(tokens, width, dtype=dtype) for _ in range(2)]
    count = tokens // 8
    flags = torch.arange(count) % 2 == 1
    responses = Responses(hidden[0].requires_grad_(), hidden[1], torch.zeros(tokens, dtype=torch.int64), [8] * count, flags)
    weights = torch.ones(tokens)
    before = peak()
    rule = lambda teacher, student, from_student: torch.full_like(teacher, 0.1)
    loss, _ = chunked_divergence(responses, *heads, weights, rule, budget_bytes=16 * 2**20)
    loss.backward()
    return peak() - before

dtype = getattr(torch, sys.argv[2])
run(16, 64, 16, dtype)
print(run(int(sys.argv[1]), 32768, 16, dtype))
"""


def extra_mib(tokens: int, dtype: str) -> float:
    command = [sys.executable, "-c", SCRIPT, str(tokens), dtype]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from Linux's /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_is_flat_in_tokens(dtype):
    """128 and 1024 tokens under a budget of 64 rows (16 MiB): one model's logits would be 16 and 128 MiB."""
    few, many = extra_mib(128, dtype), extra_mib(1024, dtype)
    assert 8 < few < 64  # the buffers are there, and were measured
    assert many - few < 12
