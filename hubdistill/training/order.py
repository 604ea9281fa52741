"""In which order training takes its rows: one shuffle an epoch, the same whatever number of processes shares it.

An optimiser step holds the same rows in any number of processes: micro-batches are dealt out in turn. Where they do not
come out even, some processes get one of nobody, and go through the motions with weight 0: a process that stayed away
would leave the others waiting. (accelerate's loaders start over with the first rows instead, which then count twice.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import TrainingArguments

NOBODY = -1


class Order(Sampler[list[int]]):
    """Micro-batches of row numbers of process `rank` of `size`; [NOBODY] where it has none. Each pass is another epoch.

    The shuffle is that of accelerate's SeedableRandomSampler, which transformers' Trainer uses by itself.
    """

    def __init__(self, rows: int, batch: int, seed: int, rank: int = 0, size: int = 1):
        self.rows, self.batch, self.seed, self.rank, self.size = rows, batch, seed, rank, size
        self.epoch = 0

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(self.rows, generator=torch.Generator().manual_seed(self.seed + self.epoch)).tolist()
        self.epoch += 1
        batches = [order[start : start + self.batch] for start in range(0, self.rows, self.batch)]
        batches += [[NOBODY]] * (-len(batches) % self.size)
        return iter(batches[self.rank :: self.size])

    def __len__(self) -> int:
        return -(-self.rows // (self.batch * self.size))


class WithNobody(Dataset[Any]):
    """Rows by number; nobody is None."""

    def __init__(self, rows: Sequence[Any]):
        self.rows = rows

    def __getitem__(self, number: int) -> Any:
        return None if number == NOBODY else self.rows[number]

    def __len__(self) -> int:
        return len(self.rows)


def loader(rows: Any, collate: Callable[[Sequence[Any]], Any], arguments: TrainingArguments) -> DataLoader[Any]:
    """What a Trainer with these arguments takes its micro-batches from. `collate` gets [None] for nobody."""
    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    order = Order(len(rows), arguments.per_device_train_batch_size, seed, arguments.process_index, arguments.world_size)
    return DataLoader(WithNobody(rows), batch_sampler=order, collate_fn=collate)
