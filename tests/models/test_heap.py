"""Freed blocks of memory go back to the system: measured on a heap with holes, in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Blocks of 4 MiB, every second one freed: glibc keeps them once it has learnt that blocks of this size come again.
HOLES = """
import sys, torch
from hubdistill.estimate.meter import resident
from hubdistill.models.heap import return_freed, return_large_blocks
if sys.argv[1] == "at once":
    assert return_large_blocks()
for _ in range(2):
    blocks = [torch.ones(2**20) for _ in range(50)]
    before = resident()
    blocks = blocks[1::2]
if sys.argv[1] == "when asked":
    return_freed()
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's")
def test_freed_blocks_go_back_at_once_or_when_asked():
    ways = ("never", "when asked", "at once")
    kept, trimmed, returned = (int(subprocess.run([sys.executable, "-c", HOLES, way], capture_output=True, text=True, check=True).stdout) for way in ways)
    assert min(trimmed, returned) > 95 * 2**20  # 25 blocks of 4 MiB
    assert kept < returned / 4
