"""The checks of `fused.py` on a CPU. `test_fused.py` runs them in a process of their own, with TRITON_INTERPRET=1."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hubdistill.losses import chunked, fused
from hubdistill.losses.chunked import chunked_divergence
from hubdistill.losses.fused import FUSED
from hubdistill.losses.head import Projector
from hubdistill.losses.rows import EAGER, Block
from tests.losses import fused_rows, plain
from tests.losses.fused_rows import KINDS, STYLES

LENGTHS, FLAGS = [2, 4, 1, 3], [0, 1, 1, 0]
PAIRS = [("skl", "srkl"), ("kl", "rkl"), ("jsd", "nll"), ("tv", "skl")]
CHOICES = [(kinds, "exact") for kinds in PAIRS] + [(("skl", "srkl"), "detached")]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Several blocks a row without a large vocabulary, and Triton wherever it could be used."""
    monkeypatch.setattr(fused, "BLOCK", 256)
    monkeypatch.setattr(chunked, "usable", lambda logits: logits.dtype == torch.float32)


@pytest.mark.parametrize("vocab", [7, 301])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("kind", "detached"), KINDS)
def test_rows_equal_float64(kind, detached, style, vocab):
    fused_rows.check(FUSED, kind, detached, style, vocab=vocab)


@pytest.mark.parametrize(("kind", "detached"), KINDS)
@pytest.mark.parametrize("cap", [20.0, 250.0])
def test_soft_cap(kind, detached, cap):
    fused_rows.check(FUSED, kind, detached, "usual" if cap < 100 else "high", vocab=256, cap=cap)


@pytest.mark.parametrize(("kind", "detached"), KINDS)
def test_rows_equal_torch(kind, detached):
    """The same function on the same rows, what the label passes report included."""
    teacher, student = fused_rows.draw("usual", 301)
    labels, alpha = torch.arange(4)[:, None] * 50, torch.linspace(0.05, 0.9, 4)[:, None]
    mine = fused_rows.found(FUSED, kind, detached, teacher.clone(), student.clone(), labels, alpha, None)
    theirs = fused_rows.found(EAGER, kind, detached, teacher.clone(), student.clone(), labels, alpha, None)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    known = [work.statistics(kind, teacher.clone(), student.clone(), labels) for work in (FUSED, EAGER)]
    for field in ("teacher_logp", "student_logp", "student_log_z"):
        one, other = (getattr(stats, field) for stats in known)
        torch.testing.assert_close(one, other, rtol=1e-6, atol=2e-6)
    assert torch.equal(known[0].agree, known[1].agree)


def test_a_narrow_gradient_is_the_wide_one_rounded():
    teacher, student = fused_rows.draw("usual", 301)
    arguments = (torch.zeros(4, 1, dtype=torch.int64), torch.full((4, 1), 0.1), None)
    wide = fused_rows.found(FUSED, "tv", False, teacher.clone(), student.clone(), *arguments)[1]
    into = torch.empty(4, 301, dtype=torch.bfloat16)
    before = student.clone()
    narrow = fused_rows.found(FUSED, "tv", False, teacher, student, *arguments, into=into)[1]
    assert torch.equal(student, before)
    assert ((narrow - wide).abs() <= 2**-7 * wide.abs()).all()  # the interpreter cuts off, a GPU rounds


@pytest.mark.parametrize("kind", ["kl", "srkl", "nll"])  # one loop, two, and one without the teacher
def test_rows_of_a_wider_buffer(kind):
    """Rows that do not lie one after the other; what lies between them stays as it is."""
    teacher, student = fused_rows.draw("usual", 301)
    labels, alpha = torch.full((4, 1), 300), torch.full((8, 1), 0.2)[::2]
    expected = fused_rows.found(FUSED, kind, False, teacher.clone(), student.clone(), labels, alpha, None)
    wide = [torch.full((4, width), torch.nan) for width in (350, 333)]
    views = [buffer[:, :301].copy_(rows) for buffer, rows in zip(wide, (teacher, student), strict=True)]
    mine = fused_rows.found(FUSED, kind, False, *views, labels, alpha, None)
    for one, other in zip(mine, expected, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(views[0], teacher)
    assert all(buffer[:, 301:].isnan().all() for buffer in wide)


@pytest.mark.parametrize("kind", ["kl", "srkl", "nll"])  # one loop, two, and one without the teacher
def test_the_value_alone_leaves_the_logits(kind):
    teacher, student = fused_rows.draw("usual", 301)
    labels, alpha = torch.full((4, 1), 7), torch.full((4, 1), 0.2)
    expected, _ = fused_rows.found(FUSED, kind, False, teacher.clone(), student.clone(), labels, alpha, None)
    before = student.clone()
    known = FUSED.statistics(kind, teacher, student, labels)
    value = FUSED.divergence(kind, Block(teacher, student, None, alpha, labels, known, (), None, False))
    assert torch.equal(value[:, 0], expected)
    assert torch.equal(student, before)


def test_agreement_with_ties():
    """Of the student's equal first choices the lowest id counts; any of the teacher's will do."""
    generator = torch.Generator().manual_seed(0)
    teacher, student = (torch.randint(0, 3, (80, 9), generator=generator).float() for _ in range(2))
    teacher, student = (torch.cat([rows, rows.new_full((80, 191), -5)], 1).roll(124, 1) for rows in (teacher, student))
    found = FUSED.statistics("kl", teacher, student, torch.zeros(80, 1, dtype=torch.int64)).agree[:, 0].tolist()
    rows = zip(teacher.tolist(), student.tolist(), strict=True)
    assert found == [p[q.index(max(q))] == max(p) for p, q in rows]
    assert 10 < sum(found) < 70


def rule(teacher, student, from_student):
    return 0.02 + 0.1 * torch.sigmoid(2 * (teacher - student)) + 0.05 * from_student


def run(case, alpha, kinds, mix_grad="exact", rows=None):
    budget = None if rows is None else rows * 2 * case.vocab * 4
    loss, tokens = chunked_divergence(
        case.responses, case.student, case.teacher, case.weights, alpha,
        kinds=kinds, mix_grad=mix_grad, vocab=case.vocab, budget_bytes=budget,
    )  # fmt: skip
    return loss, tokens, torch.autograd.grad(loss, plain.leaves(case))


@pytest.mark.parametrize("alpha", [0.1, rule], ids=["constant", "rule"])
@pytest.mark.parametrize("rows", [None, 3], ids=["one tile", "many tiles"])
@pytest.mark.parametrize(("kinds", "mix_grad"), CHOICES)
def test_the_whole_loss(kinds, mix_grad, rows, alpha, monkeypatch):
    """Against float64, and against torch's row functions, for a head with bias, scale and soft cap that trains."""
    case = plain.make_case(
        LENGTHS, FLAGS, vocab=201, surplus=(4, 0), dtype=torch.float32, spread=4.0, bias=True, scale=0.5, soft_cap=5.0,
        trainable_head=True,
    )  # fmt: skip
    assert chunked.row_functions(case.weights) is FUSED
    loss, tokens, gradients = run(case, alpha, kinds, mix_grad, rows)
    exact = plain.as_float64(case)
    expected, divergence = plain.loss(exact, tokens.alpha_B.double(), kinds=kinds, mix_grad=mix_grad)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(tokens.divergence_N.double(), divergence.detach(), rtol=1e-5, atol=2e-6)
    for mine, theirs in zip(gradients, torch.autograd.grad(expected, plain.leaves(exact)), strict=True):
        assert (mine.double() - theirs).norm() < 2e-5 * theirs.norm()
    monkeypatch.setattr(chunked, "usable", lambda logits: False)
    eager, same, others = run(case, alpha, kinds, mix_grad, rows)
    torch.testing.assert_close(loss, eager, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(tokens.alpha_B, same.alpha_B, rtol=1e-5, atol=0)
    assert torch.equal(tokens.agree_N, same.agree_N)
    for mine, theirs in zip(gradients, others, strict=True):
        assert (mine - theirs).norm() < 2e-5 * theirs.norm()


def test_an_alpha_rule_costs_no_product(monkeypatch):
    products = []
    logits = Projector.logits
    monkeypatch.setattr(Projector, "logits", lambda *arguments: products.append(1) or logits(*arguments))
    case = plain.make_case(LENGTHS, FLAGS, dtype=torch.float32)
    counts = []
    for alpha in (0.1, rule):
        run(case, alpha, ("skl", "srkl"))
        counts.append(len(products))
        products.clear()
    assert counts == [2, 2]


def test_without_gradient_and_in_float64():
    case = plain.make_case(LENGTHS, FLAGS, dtype=torch.float32)
    loss, tokens, _ = run(case, rule, ("skl", "srkl"))
    with torch.no_grad():
        quiet, again = chunked_divergence(case.responses, case.student, case.teacher, case.weights, rule)
    assert torch.equal(quiet, loss.detach())
    assert torch.equal(again.divergence_N, tokens.divergence_N)
    assert chunked.row_functions(case.weights.double()) is EAGER


def test_a_student_equal_to_its_teacher():
    case = plain.make_case(LENGTHS, FLAGS, dtype=torch.float32, spread=3.0)
    twin = replace(case.responses, teacher_ND=case.responses.student_ND.detach())
    _, tokens = chunked_divergence(twin, case.student, case.student, case.weights, 0.1)
    assert tokens.agree_N.all()
    assert tokens.divergence_N.abs().max() < 2e-7
