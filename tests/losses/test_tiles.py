"""How rows are cut: each row once, within the budget, and whole responses wherever they fit."""

from __future__ import annotations

import pytest
import torch

from hubdistill.losses.tiles import groups


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("rows", [1, 4, 9, 50])
def test_cut(rows, whole):
    draw = torch.Generator().manual_seed(rows)
    for _ in range(20):
        lengths = torch.randint(1, 20, (8,), generator=draw).tolist()
        flags = [bool(flag) for flag in torch.randint(0, 2, (8,), generator=draw)]
        owner = [b for b, length in enumerate(lengths) for _ in range(length)]
        found = list(groups(lengths, flags, rows, whole=whole))
        tiles = [tile for group in found for tile in group.tiles]
        assert sorted(row for tile in tiles for row in tile.rows.tolist()) == list(range(sum(lengths)))
        assert sorted(b for group in found for b in group.members) == list(range(8))
        for tile in tiles:
            assert 1 <= len(tile.rows) <= rows
            assert tile.owners.tolist() == [owner[row] for row in tile.rows.tolist()]
            sides = [flags[b] for b in tile.owners.tolist()]
            assert sides == [False] * tile.teacher_rows + [True] * (len(sides) - tile.teacher_rows)
        if whole:  # two passes, and so two more products, only for what cannot be helped
            split = [group for group in found if len(group.tiles) > 1]
            assert [group.members for group in split] == [[b] for b in map(_only, split)]
            assert sorted(map(_only, split)) == [b for b in range(8) if lengths[b] > rows]


def _only(group):
    return group.members[0]


def test_blocks_stay_within_one_kind():
    (group,) = groups([5, 6], [True, False], 50, whole=True)
    buffer = torch.empty(50, 2**19)  # two rows fill an inner block
    blocks = [(side, block.start, block.stop) for side, block in group.tiles[0].blocks(buffer)]
    assert blocks == [(0, 0, 2), (0, 2, 4), (0, 4, 6), (1, 6, 8), (1, 8, 10), (1, 10, 11)]
