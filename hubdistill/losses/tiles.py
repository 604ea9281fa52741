"""How the rows of a loss call are cut: into tiles for the matrix products, and blocks for the cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hubdistill.losses.head import compute_dtype

CPU_BUDGET = 256 * 2**20  # bytes of both logit buffers; 128 MiB each keeps the matrix products efficient
DEVICE_BUDGET = 2**30  # an accelerator needs more rows a tile, or it waits for the head's weights
BLOCK_ENTRIES = 2**20  # of an inner block on CPU: small enough for the cache, large enough for several threads


@dataclass(frozen=True)
class Group:
    """Responses of one kind whose alpha is found together. More than one tile only where they do not fit one."""

    members: list[int]  # responses
    tiles: list[Tensor]  # row numbers
    owners: list[Tensor]  # the response of each row of a tile


def groups(members: list[int], lengths: list[int], rows: int, *, whole: bool) -> Iterator[Group]:
    """Cut the rows of responses `members` into tiles of at most `rows` rows, evenly; whole responses if `whole`."""
    starts = torch.tensor([0, *lengths]).cumsum(0).tolist()
    packs = _packs(members, lengths, rows) if whole else [members]
    for pack in filter(None, packs):
        index = torch.cat([torch.arange(starts[b], starts[b + 1]) for b in pack])
        owners = torch.tensor(pack).repeat_interleave(torch.tensor([lengths[b] for b in pack]))
        parts = -(-len(index) // rows)
        yield Group(pack, list(index.tensor_split(parts)), list(owners.tensor_split(parts)))


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


def tile_rows(hidden: Tensor, vocab: int, budget_bytes: int | None, *, models: int) -> int:
    """Rows whose logits under `models` models fit the budget; at least one."""
    budget = budget_bytes or (CPU_BUDGET if hidden.device.type == "cpu" else DEVICE_BUDGET)
    return max(1, budget // (models * vocab * compute_dtype(hidden).itemsize))


def block_rows(tile: Tensor) -> int:
    """Rows of an inner block: what fits the cache on CPU, all elsewhere."""
    return max(1, BLOCK_ENTRIES // tile.shape[1]) if tile.device.type == "cpu" else max(1, tile.shape[0])


def blocks(tile: Tensor) -> Iterator[slice]:
    """Slices of the rows of a tile, block by block."""
    size = block_rows(tile)
    return (slice(start, start + size) for start in range(0, len(tile), size))
