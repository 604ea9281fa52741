"""How the rows of a loss call are cut: into tiles for the matrix products, and blocks for the cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hubdistill.losses.budget import fitting, usual_budget
from hubdistill.losses.head import compute_dtype

BLOCK_ENTRIES = 2**20  # of an inner block on CPU: small enough for the cache, large enough for several threads


@dataclass(frozen=True)
class Tile:
    """Rows whose logits are in memory together; those of teacher responses come first."""

    rows: Tensor  # row numbers
    owners: Tensor  # the response of each row
    teacher_rows: int

    def blocks(self, buffer: Tensor) -> Iterator[tuple[int, slice]]:
        """(side, slice of the tile) block by block; side 0 for teacher responses, 1 for student responses."""
        for side, start, stop in ((0, 0, self.teacher_rows), (1, self.teacher_rows, len(self.rows))):
            for block in blocks(buffer[start:stop]):
                yield side, slice(start + block.start, min(start + block.stop, stop))


@dataclass(frozen=True)
class Group:
    """Responses whose alpha is found together. More than one tile only where they do not fit one."""

    members: list[int]  # responses
    tiles: list[Tile]


def groups(lengths: list[int], flags: list[bool], rows: int, *, whole: bool) -> Iterator[Group]:
    """Cut all rows into tiles of at most `rows` rows, evenly; whole responses if `whole`. `flags`: from the student.

    Both kinds of responses share tiles: the products do not care, and larger ones are faster.
    """
    starts = torch.tensor([0, *lengths]).cumsum(0).tolist()
    order = sorted(range(len(lengths)), key=flags.__getitem__)
    packs = _packs(order, lengths, rows) if whole else [order]
    for pack in filter(None, packs):
        index = torch.cat([torch.arange(starts[b], starts[b + 1]) for b in pack])
        owners = torch.tensor(pack).repeat_interleave(torch.tensor([lengths[b] for b in pack]))
        parts = -(-len(index) // rows)
        cut = zip(index.tensor_split(parts), owners.tensor_split(parts), strict=True)
        yield Group(pack, [Tile(part, whose, sum(not flags[b] for b in whose.tolist())) for part, whose in cut])


def _packs(members: list[int], lengths: list[int], rows: int) -> list[list[int]]:
    """Consecutive responses together while they fit one tile; a longer one alone."""
    packs: list[list[int]] = []
    room = 0
    for b in members:
        if lengths[b] > room:
            packs.append([])
            room = rows
        packs[-1].append(b)
        room -= lengths[b]
    return packs


def tile_rows(hidden: Tensor, vocab: int, budget_bytes: int | None, *, models: int, longest: int = 0, whole_bytes: int = 0) -> int:
    """Rows whose logits under `models` models fit the budget, as `fitting` has it."""
    budget = usual_budget(hidden.device.type) if budget_bytes is None else budget_bytes
    return fitting(budget, models * vocab * compute_dtype(hidden).itemsize, longest=longest, whole_bytes=whole_bytes)


def block_rows(tile: Tensor) -> int:
    """Rows of an inner block: what fits the cache on CPU, all elsewhere."""
    return max(1, BLOCK_ENTRIES // tile.shape[1]) if tile.device.type == "cpu" else max(1, tile.shape[0])


def blocks(tile: Tensor) -> Iterator[slice]:
    """Slices of the rows of a tile, block by block."""
    size = block_rows(tile)
    return (slice(start, start + size) for start in range(0, len(tile), size))
