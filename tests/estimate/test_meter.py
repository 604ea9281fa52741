"""Peaks of memory, against blocks of a known size."""

from __future__ import annotations

import sys

import pytest

from hubdistill.estimate.compared import compared
from hubdistill.estimate.meter import measured, resident
from hubdistill.plan import make_plan
from hubdistill.recipe import load_recipe
from tests import tiny

SIZE = 200 * 2**20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="main memory is measured on Linux")
def test_the_peak_is_that_of_the_block_alone():
    with measured() as large:
        block = bytearray(SIZE)
        block[:: 4096] = b"x" * len(block[::4096])
        del block
    with measured() as small:
        pass
    assert large.main - small.main == pytest.approx(SIZE, rel=0.1)
    assert small.main == pytest.approx(resident(), rel=0.1)
    assert large.as_dict().keys() >= {"main"}


def test_of_several_rounds_the_largest_counts(tmp_path):
    plan = make_plan(load_recipe(tiny.write_recipe(tmp_path)))
    memory = {"prompts": {"main": 9}, "round_1-train": {"main": 5}, "round_2-train": {"main": 7}, "round_1-student": {"main": 3}, "warmup": {}, "evaluate": {"device": 4}}
    found = {row["stage"]: row["measured"] for row in compared(plan, memory)}
    assert found == {"training": 7, "the student answers": 3}
    assert all(row["predicted"] > 2**20 for row in compared(plan, memory))
