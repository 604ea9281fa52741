"""Choosing the next token: the nucleus against transformers' own, at vocabulary sizes where the whole is never sorted."""

import pytest
import torch
from transformers import TopPLogitsWarper

from hubdistill.pairs.choice import CANDIDATES, SeededChoice, nucleus

CPU = torch.device("cpu")


def scores(spread: float, vocab: int, rows: int = 3) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(1)) * spread


@pytest.mark.parametrize("top_p", [0.3, 0.95, 0.999, 1.0])
@pytest.mark.parametrize(("spread", "vocab"), [(4.0, 500), (4.0, 20_000), (1.0, 20_000), (0.1, 20_000)])
def test_the_nucleus_is_that_of_transformers(spread, vocab, top_p):
    given = scores(spread, vocab)
    kept = TopPLogitsWarper(top_p)(None, given.clone()) > -torch.inf if top_p < 1 else torch.ones_like(given, dtype=torch.bool)
    expected = given.softmax(-1) * kept
    ids, weights = nucleus(given, top_p)
    found = torch.zeros_like(given).scatter_(-1, ids, weights)
    assert (ids.diff(dim=-1) > 0).all()
    # The last id of the nucleus may fall on the other side of the bound by rounding: it alone may differ.
    assert ((found > 0) != (expected > 0)).sum(-1).max() <= 1
    assert (found - expected).abs().max() <= given.softmax(-1).masked_fill(~kept, 1).min() * 1.001 + 1e-7


def test_flat_and_peaked_rows_meet_every_number_of_candidates():
    widths = {nucleus(scores(spread, 20_000), 0.95)[0].shape[-1] for spread in (8.0, 2.0, 0.1)}
    assert widths == {*CANDIDATES, 20_000}


def test_the_extremes_of_the_numbers_choose_the_first_and_the_last_id_with_probability():
    given = torch.full((2, 6), -torch.inf)
    given[:, 2:4] = torch.tensor([0.0, 1.0])
    choice = SeededChoice([0, 1], 1.0, 1, CPU)
    choice.numbers_BT = torch.tensor([[1e-300], [1.0]], dtype=torch.float64)
    assert choice(None, given).argmax(-1).tolist() == [2, 3]


def test_the_numbers_are_used_up_one_a_token_and_differ_by_seed():
    given = scores(1.0, 1000, rows=2)[:1].repeat(2, 1)
    choice = SeededChoice([5, 6], 0.95, 20, CPU)
    chosen = torch.stack([choice(None, given).argmax(-1) for _ in range(20)])
    assert len(set(chosen[:, 0].tolist())) > 10
    assert chosen[:, 0].tolist() != chosen[:, 1].tolist()
    assert torch.equal(torch.stack([SeededChoice([5], 0.95, 1, CPU)(None, given[:1]).argmax(-1)]).flatten(), chosen[0, :1])
