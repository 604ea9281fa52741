"""The order of the rows: that of the Trainer's own loader, dealt out so that each step holds the same rows in any number of processes."""

from __future__ import annotations

import pytest
from accelerate.data_loader import SeedableRandomSampler

from hubdistill.training.order import NOBODY, Order


@pytest.mark.parametrize("rows", [1, 7, 10])
def test_the_shuffle_is_the_one_that_the_trainer_uses_by_itself(rows):
    theirs = SeedableRandomSampler(range(rows), data_seed=5)
    ours = Order(rows, 3, 5)
    for _ in range(3):  # epochs
        assert [number for batch in ours for number in batch] == list(theirs)


@pytest.mark.parametrize("rows", [1, 4, 9, 10, 11, 12, 13])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_step_holds_the_same_rows_in_several_processes(rows, size):
    batch, each = 2, 2  # of rows; micro-batches of a process in a step
    alone = list(Order(rows, batch, 1))
    shares = [list(Order(rows, batch, 1, rank, size)) for rank in range(size)]
    assert {len(share) for share in shares} == {len(Order(rows, batch, 1, 0, size))}
    steps = [alone[start : start + each * size] for start in range(0, len(alone), each * size)]
    for number, step in enumerate(steps):
        together = [micro for share in shares for micro in share[number * each : (number + 1) * each]]
        assert sorted(row for micro in step for row in micro) == sorted(row for micro in together for row in micro if row != NOBODY)
        assert all(micro == [NOBODY] for micro in together if NOBODY in micro)
