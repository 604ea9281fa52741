"""The order of the rows: that of the Trainer's own loader, dealt out so that each step holds the same rows in any number of processes."""

from __future__ import annotations

import threading
from itertools import combinations, pairwise

import pytest
from accelerate.data_loader import SeedableRandomSampler

from hubdistill.training.order import NOBODY, Order, WorksAhead, by_length, made_ahead


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


def area(batch, lengths):
    return len(batch) * max(lengths[row] for row in batch)


@pytest.mark.parametrize("rows", [1, 5, 8, 21, 24])
@pytest.mark.parametrize("size", [1, 2])
def test_lengths_change_how_a_step_is_cut_and_not_what_it_holds(rows, size):
    lengths = [(7 * row * row + 3) % 50 + 1 for row in range(rows)]
    batch, each = 2, 4 // size
    plain = [list(Order(rows, batch, 1, rank, size)) for rank in range(size)]
    cut = [list(Order(rows, batch, 1, rank, size, lengths=lengths, step=each * size)) for rank in range(size)]
    assert [len(share) for share in cut] == [len(share) for share in plain]
    for start in range(0, len(plain[0]), each):
        steps = [[micro for share in shares for micro in share[start : start + each]] for shares in (plain, cut)]
        held = [sorted(row for micro in step for row in micro if row != NOBODY) for step in steps]
        assert held[0] == held[1]
        before, after = ([area(micro, lengths) for micro in step if micro != [NOBODY]] for step in steps)
        assert max(after) <= max(before)
        assert sum(after) <= sum(before)


def test_groups_are_as_narrow_as_any_cut_of_the_sorted_rows_can_be():
    lengths = [9, 1, 2, 8, 1, 1, 7, 3]
    ordered = sorted(range(8), key=lambda row: -lengths[row])
    for groups in range(1, 9):
        found = by_length(range(8), lengths, groups)
        assert [row for group in found for row in group] == ordered
        assert len(found) == groups
        cuts = combinations(range(1, 8), groups - 1)
        best = min(max(area(ordered[a:b], lengths) for a, b in pairwise((0, *cut, 8))) for cut in cuts)
        assert max(area(group, lengths) for group in found) == best


def test_the_same_rows_in_two_passes_and_after_a_resume():
    settings = {"lengths": [3, 9, 1, 4, 4, 8, 2], "step": 2}
    first, again = Order(7, 2, 5, **settings), Order(7, 2, 5, **settings)
    assert [list(first), list(first)] == [list(again), list(again)]


def test_items_are_made_while_another_is_at_work_and_no_more_than_asked():
    made, enough = [], threading.Event()

    def items():
        for number in range(9):
            made.append(number)
            if len(made) == 3:
                enough.set()
            yield number

    found = made_ahead(items(), 2)
    assert next(found) == 0
    assert enough.wait(30)  # the consumer asks for nothing, and two more are made all the same
    assert made == [0, 1, 2]
    assert list(found) == list(range(1, 9))


def test_an_error_ahead_is_raised_at_its_place():
    def items():
        yield from "ab"
        raise ValueError("row 3 has no image")

    found = made_ahead(items(), 5)
    assert [next(found), next(found)] == ["a", "b"]
    with pytest.raises(ValueError, match="row 3"):
        next(found)


def test_who_stops_early_leaves_no_thread():
    before = set(threading.enumerate())
    found = made_ahead(iter(range(10**9)), 3)
    next(found)
    (thread,) = set(threading.enumerate()) - before
    found.close()
    assert not thread.is_alive()


class Takes:
    """What a Trainer does with the batches of an optimiser step."""

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        return [item for _, item in zip(range(num_batches), epoch_iterator, strict=False)], device


    def train(self, items):
        self.get_batch_samples(items, 2, "cpu")
        self.seen = [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]
        raise KeyboardInterrupt


class Ahead(WorksAhead, Takes):
    pass


def test_no_thread_outlives_training_however_it_ends():
    trainer, before = Ahead(), set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        trainer.train(iter(range(9)))
    (thread,) = set(trainer.seen) - before
    assert not thread.is_alive()


def test_a_trainer_has_its_next_step_made_while_it_is_at_work():
    made, enough = [], threading.Event()

    def epoch(first):
        for number in range(first, first + 5):
            made.append(number)
            if number == 3:
                enough.set()
            yield number

    trainer, items = Ahead(), epoch(0)
    assert trainer.get_batch_samples(items, 2, "cpu") == ([0, 1], "cpu")
    assert enough.wait(30)  # nobody has asked for 2 and 3
    assert [trainer.get_batch_samples(items, number, "cpu")[0] for number in (2, 1)] == [[2, 3], [4]]
    items = epoch(10)  # the next one
    assert trainer.get_batch_samples(items, 2, "cpu")[0] == [10, 11]
    assert trainer.get_batch_samples(items, 9, "cpu")[0] == [12, 13, 14]
    assert made == [*range(5), *range(10, 15)]


def test_a_trainer_that_does_not_work_ahead_takes_what_it_needs_alone():
    trainer, items = Ahead(), iter(range(5))
    trainer.works_ahead = False
    assert trainer.get_batch_samples(items, 2, "cpu")[0] == [0, 1]
    assert list(items) == [2, 3, 4]
