"""The readable divergences against their definitions, against TRL, and at their limits."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from hubdistill.losses import divergences as d


def distributions(seed: int = 0, vocab: int = 17, rows: int = 9, spread: float = 2.0):
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, rows, vocab, generator=draw, dtype=torch.float64) * spread
    return logits[0].log_softmax(-1), logits[1].log_softmax(-1)


def by_definition(kind: str, p: list[float], q: list[float], a: float) -> float:
    """The table of docs/method.md with Python floats, term by term."""

    def kl(x, y):
        return math.fsum(u * math.log(u / v) for u, v in zip(x, y, strict=True))

    def mix(w):
        return [w * u + (1 - w) * v for u, v in zip(p, q, strict=True)]

    return {
        "kl": lambda: kl(p, q),
        "rkl": lambda: kl(q, p),
        "skl": lambda: kl(p, mix(a)),
        "srkl": lambda: kl(q, mix(1 - a)),
        "jsd": lambda: a * kl(p, mix(a)) + (1 - a) * kl(q, mix(a)),
        "tv": lambda: math.fsum(abs(u - v) for u, v in zip(p, q, strict=True)) / 2,
    }[kind]()


def value(kind: str, p, q, a):
    return getattr(d, kind)(p, q) if kind in ("kl", "rkl", "tv") else getattr(d, kind)(p, q, a)


@pytest.mark.parametrize("kind", ["kl", "rkl", "skl", "srkl", "jsd", "tv"])
@pytest.mark.parametrize("a", [0.01, 0.1, 0.5, 0.9])
def test_definition(kind, a):
    p, q = distributions()
    expected = [by_definition(kind, x.tolist(), y.tolist(), a) for x, y in zip(p.exp(), q.exp(), strict=True)]
    torch.testing.assert_close(
        value(kind, p, q, a), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("b", [0.1, 0.5, 0.9])
def test_trl_agrees(b):
    from trl.experimental.gkd import GKDTrainer

    p, q = distributions()

    def trl(beta):
        return GKDTrainer.generalized_jsd_loss(q[None], p[None], beta=beta, reduction="sum")

    torch.testing.assert_close(d.jsd(p, q, b).sum(), trl(b))
    torch.testing.assert_close(d.kl(p, q).sum(), trl(0))
    torch.testing.assert_close(d.rkl(p, q).sum(), trl(1))
    # jsd(b) = b skl(b) + (1-b) KL(q, m), and srkl(a) = KL(q, m) at b = 1 - a: TRL reaches both through its jsd
    torch.testing.assert_close((b * d.skl(p, q, b) + (1 - b) * d.srkl(p, q, 1 - b)).sum(), trl(b))


def test_alpha_broadcasts_over_any_leading_shape():
    p, q = distributions(rows=6)
    alpha = torch.tensor([0.05, 0.2], dtype=torch.float64)
    for kind in ("skl", "srkl", "jsd"):
        found = value(kind, p.view(2, 3, -1), q.view(2, 3, -1), alpha[:, None])
        expected = torch.cat([value(kind, p[:3], q[:3], 0.05), value(kind, p[3:], q[3:], 0.2)]).view(2, 3)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("skewed", "limit"), [("skl", "kl"), ("srkl", "rkl")])
def test_alpha_to_zero_is_plain_kl_and_rkl(skewed, limit):
    """The difference vanishes, in proportion to alpha."""
    p, q = distributions()
    wrong = [(value(skewed, p, q, a) - value(limit, p, q, None)).abs().max() for a in (1e-5, 1e-7, 1e-9)]
    assert wrong[2] < 1e-5
    for coarse, fine in itertools.pairwise(wrong):
        assert 80 < coarse / fine < 120


@pytest.mark.parametrize("seed", range(10))
def test_bounds_hold_even_for_disjoint_distributions(seed):
    p, q = distributions(seed, spread=10.0 * (seed + 1))
    for a in (0.01, 0.1, 0.7):
        for kind in ("skl", "srkl"):
            found = value(kind, p, q, a)
            assert found.min() >= -1e-12
            assert found.max() <= -math.log(a) + 1e-12
    assert value("skl", p, p, 0.1).abs().max() < 1e-12


@pytest.mark.parametrize("a", [0.1, 0.4])
def test_closed_form_gradients(a):
    """docs/method.md's gradients with respect to the student's logits, against autograd."""
    p, _ = distributions(1)
    z = torch.randn(p.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    q = z.log_softmax(-1)

    def gradient(loss):
        return torch.autograd.grad(loss.sum(), z, retain_graph=True)[0]

    def mean(values):
        return (q.exp() * values).sum(-1, keepdim=True)

    r = (p - torch.log(a * p.exp() + (1 - a) * q.exp())).exp()
    torch.testing.assert_close(gradient(d.skl(p, q, a)), -(1 - a) * q.exp() * (r - mean(r)))
    log_s = q - torch.log((1 - a) * p.exp() + a * q.exp())
    first = q.exp() * (log_s - d.srkl(p, q, a)[:, None])
    torch.testing.assert_close(gradient(d.srkl(p, q, a, "detached")), first)
    s = log_s.exp()
    torch.testing.assert_close(gradient(d.srkl(p, q, a, "exact")), first - a * q.exp() * (s - mean(s)))


def test_near_the_teacher_detaching_is_a_factor():
    """Near p = q the two gradients of srkl differ by 1/(1-a) alone."""
    p, other = distributions(3)
    z = (p + 1e-5 * other).requires_grad_()
    found = [torch.autograd.grad(d.srkl(p, z.log_softmax(-1), 0.2, how).sum(), z)[0] for how in ("exact", "detached")]
    torch.testing.assert_close(found[0], (1 - 0.2) * found[1], rtol=1e-3, atol=1e-9)


def test_no_overflow_where_probabilities_underflow():
    p, q = distributions(spread=2000.0)
    for kind in ("kl", "rkl", "skl", "srkl", "jsd"):
        z = q.clone().requires_grad_()
        found = value(kind, p, z.log_softmax(-1), 0.1)
        assert found.isfinite().all()
        assert torch.autograd.grad(found.sum(), z)[0].isfinite().all()
