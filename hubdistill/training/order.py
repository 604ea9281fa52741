"""In which order training takes its rows: one shuffle an epoch, the same whatever number of processes shares it.

An optimiser step holds the same rows in any number of processes: micro-batches are dealt out in turn. Where they do not
come out even, some processes get one of nobody, and go through the motions with weight 0: a process that stayed away
would leave the others waiting. (accelerate's loaders start over with the first rows instead, which then count twice.)

Where the rows' lengths are known, those of a step are cut into its micro-batches by length: rows of like length lie together,
so that little is padded, and no micro-batch is wider than it must be; many short rows make one, or a few long ones. What an
optimiser step holds, and so what is learnt, does not change.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import TrainingArguments

NOBODY = -1


class Order(Sampler[list[int]]):
    """Micro-batches of row numbers of process `rank` of `size`; [NOBODY] where it has none. Each pass is another epoch.

    The shuffle is that of accelerate's SeedableRandomSampler, which transformers' Trainer uses by itself.
    """

    def __init__(self, rows: int, batch: int, seed: int, rank: int = 0, size: int = 1, *, lengths: Sequence[int] | None = None, step: int = 1):
        """`step`: micro-batches in an optimiser step, over all processes; `lengths`: tokens of each row."""
        self.rows, self.batch, self.seed, self.rank, self.size = rows, batch, seed, rank, size
        self.lengths, self.step = lengths, step
        self.epoch = 0

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(self.rows, generator=torch.Generator().manual_seed(self.seed + self.epoch)).tolist()
        self.epoch += 1
        held = self.batch * (1 if self.lengths is None else self.step)  # rows that are cut up together
        batches = [micro for start in range(0, self.rows, held) for micro in self._cut(order[start : start + held])]
        batches += [[NOBODY]] * (-len(batches) % self.size)
        return iter(batches[self.rank :: self.size])

    def _cut(self, rows: list[int]) -> list[list[int]]:
        return [rows] if self.lengths is None else by_length(rows, self.lengths, -(-len(rows) // self.batch))

    def __len__(self) -> int:
        return -(-self.rows // (self.batch * self.size))


def by_length(rows: Sequence[int], lengths: Sequence[int], groups: int) -> list[list[int]]:
    """`rows` in so many groups, longest first, of which the widest (rows times its longest) is as narrow as can be.

    So none is wider than the widest of equal groups in any order. There are as many rows as groups, or more.
    """
    ordered = sorted(rows, key=lambda row: -lengths[row])
    low, high = lengths[ordered[0]], lengths[ordered[0]] * -(-len(ordered) // groups)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_packed(ordered, lengths, middle)) <= groups else (middle + 1, high)
    found = _packed(ordered, lengths, high)
    while len(found) < groups:  # each step has its number of micro-batches, which the processes count on
        most = max(range(len(found)), key=lambda number: len(found[number]))
        half = len(found[most]) // 2
        found[most : most + 1] = [found[most][:half], found[most][half:]]
    return found


def _packed(ordered: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Rows, longest first, in as few groups of at most `budget` tokens with padding as there can be; a row alone may have more."""
    found: list[list[int]] = []
    for row in ordered:
        if found and lengths[found[-1][0]] * (len(found[-1]) + 1) <= budget:
            found[-1].append(row)
        else:
            found.append([row])
    return found


class WithNobody(Dataset[Any]):
    """Rows by number; nobody is None."""

    def __init__(self, rows: Sequence[Any]):
        self.rows = rows

    def __getitem__(self, number: int) -> Any:
        return None if number == NOBODY else self.rows[number]

    def __len__(self) -> int:
        return len(self.rows)


END = object()


def made_ahead(items: Iterator[Any], count: int) -> Generator[Any]:
    """The same items in the same order; a thread takes up to `count` more than were asked for. What it raises is raised at its place."""
    thread = ThreadPoolExecutor(1, "ahead")
    try:
        waiting = deque(thread.submit(next, items, END) for _ in range(count + 1))
        while (item := waiting.popleft().result()) is not END:
            yield item
            waiting.append(thread.submit(next, items, END))
    finally:
        thread.shutdown(cancel_futures=True)


class WorksAhead:
    """Mixed into a Trainer, has the micro-batches of its next optimiser step made in a thread while one is trained: that is when images are
    read and resized. Not in a DataLoader's processes: those hand tensors over in /dev/shm, of which a container has 64 MB. And not in a
    loader of our own: accelerate's `skip_first_batches` puts a plain one in its place when training is resumed.
    """

    works_ahead = True
    _made: tuple[Any, Generator[Any]] | None = None  # of which iterator

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        if self.works_ahead and (self._made is None or self._made[0] is not epoch_iterator):
            self._made = epoch_iterator, made_ahead(epoch_iterator, num_batches)
        return super().get_batch_samples(self._made[1] if self._made else epoch_iterator, num_batches, device)  # type: ignore[misc]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, and end the thread: a Trainer takes no more than it needs, so what it takes from does not end by itself."""
        try:
            return super().train(*args, **kwargs)  # type: ignore[misc]
        finally:
            if self._made:
                self._made[1].close()
            self._made = None


def loader(rows: Any, collate: Callable[[Sequence[Any]], Any], arguments: TrainingArguments, lengths: Sequence[int]) -> DataLoader[Any]:
    """What a Trainer with these arguments takes its micro-batches from; `lengths` are the rows' in tokens. `collate` gets [None] for nobody."""
    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    order = Order(len(rows), arguments.per_device_train_batch_size, seed, arguments.process_index, arguments.world_size,
                  lengths=lengths, step=arguments.gradient_accumulation_steps * arguments.world_size)  # fmt: skip
    return DataLoader(WithNobody(rows), batch_sampler=order, collate_fn=collate)
