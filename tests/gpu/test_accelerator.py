"""What only an accelerator can show; `make gpu-check` runs these, and each is skipped where there is none."""

from __future__ import annotations

import json

import pytest
import torch

from hubdistill.losses import chunked
from hubdistill.losses.chunked import Head, Responses, chunked_divergence
from hubdistill.losses.divergences import skl, srkl
from hubdistill.losses.rows import EAGER
from tests import tiny
from tests.command import hubdistill
from tests.losses import fused_rows, plain

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TOKENS, VOCAB, WIDTH = 96, 5000, 64


def inputs(dtype):
    generator = torch.Generator().manual_seed(0)
    numbers = lambda *shape: torch.randn(*shape, generator=generator).to("cuda", dtype)  # noqa: E731
    heads = [Head(numbers(VOCAB, WIDTH) * 0.3) for _ in range(2)]
    hidden = [numbers(TOKENS, WIDTH), numbers(TOKENS, WIDTH)]
    labels = torch.randint(0, VOCAB, (TOKENS,), generator=generator).cuda()
    flags = torch.tensor([False, True, False, True]).cuda()
    return Responses(hidden[0].requires_grad_(), hidden[1], labels, [24] * 4, flags), heads


def in_float64(responses, heads):
    student = responses.student_ND.detach().double().requires_grad_()
    log_q = (student @ heads[0].weight.double().t()).log_softmax(-1)
    log_p = (responses.teacher_ND.double() @ heads[1].weight.double().t()).log_softmax(-1)
    own = responses.from_student_B.repeat_interleave(24)
    loss = torch.where(own, srkl(log_p, log_q, 0.1), skl(log_p, log_q, 0.1)).mean()
    return loss, torch.autograd.grad(loss, student)[0]


@pytest.mark.parametrize(("dtype", "loss_error", "gradient_error"), [(torch.float32, 1e-5, 1e-3), (torch.bfloat16, 1e-4, 2e-2)])
def test_the_loss_equals_float64(dtype, loss_error, gradient_error):
    responses, heads = inputs(dtype)
    expected, expected_gradient = in_float64(responses, heads)
    loss, _ = chunked_divergence(responses, heads[0], heads[1], torch.full((TOKENS,), 1 / TOKENS, device="cuda"), 0.1)
    gradient = torch.autograd.grad(loss, responses.student_ND)[0].double()
    assert abs(loss.item() - expected.item()) < loss_error * expected.item()
    assert (gradient - expected_gradient).norm() < gradient_error * expected_gradient.norm()


@pytest.fixture
def fused():
    """Triton's row functions; where they do not work the loss goes on without them, and a test must not."""
    pytest.importorskip("triton")
    functions = chunked.row_functions(torch.zeros(1, 16, device="cuda"))
    assert functions is not EAGER
    return functions


@pytest.mark.parametrize("vocab", [7, 4096, 50257, 151936])
@pytest.mark.parametrize("style", fused_rows.STYLES)
@pytest.mark.parametrize(("kind", "detached"), fused_rows.KINDS)
def test_triton_rows_equal_float64(fused, kind, detached, style, vocab, record_property):
    """The exponential of a GPU is less exact than the interpreter's."""
    errors = fused_rows.check(fused, kind, detached, style, vocab=vocab, device="cuda", slack=4)
    record_property("errors", errors)


@pytest.mark.parametrize(("kind", "detached"), fused_rows.KINDS)
def test_triton_rows_under_a_soft_cap(fused, kind, detached):
    fused_rows.check(fused, kind, detached, "usual", vocab=50257, device="cuda", cap=20.0, slack=4)


@pytest.mark.parametrize(("kind", "detached"), fused_rows.KINDS)
def test_a_narrow_gradient_is_the_wide_one_rounded(fused, kind, detached):
    teacher, student = fused_rows.draw("usual", 5000, "cuda")
    labels, alpha = torch.zeros(len(student), 1, dtype=torch.int64, device="cuda"), torch.full((len(student), 1), 0.1, device="cuda")
    arguments = (fused, kind, detached, teacher)
    into = torch.empty_like(student, dtype=torch.bfloat16)
    narrow = fused_rows.found(*arguments, student, labels, alpha, None, into=into)[1]
    wide = fused_rows.found(*arguments, student, labels, alpha, None)[1]  # last, for it overwrites the logits
    assert (narrow - wide).norm() < 2**-8 * wide.norm()


def rule(teacher, student, from_student):
    return 0.02 + 0.1 * torch.sigmoid(2 * (teacher - student)) + 0.05 * from_student


@pytest.mark.parametrize("alpha", [0.1, rule], ids=["constant", "rule"])
@pytest.mark.parametrize("rows", [None, 9], ids=["one tile", "many tiles"])
@pytest.mark.parametrize("kinds", [("skl", "srkl"), ("kl", "rkl"), ("jsd", "nll"), ("tv", "skl")], ids="-".join)
@pytest.mark.parametrize(
    ("dtype", "trainable", "error"), [(torch.float32, True, 1e-3), (torch.bfloat16, False, 2e-2), (torch.bfloat16, True, 2e-2)]
)
def test_triton_and_torch_equal_float64(fused, monkeypatch, dtype, trainable, error, kinds, rows, alpha):
    """Bias, scale and soft cap; responses longer than a tile; a frozen bfloat16 head takes its gradient in bfloat16."""
    case = plain.make_case(
        [3, 14, 1, 20], [0, 1, 1, 0], vocab=5000, surplus=(8, 0), dtype=dtype, spread=4.0, bias=True, scale=0.5, soft_cap=8.0,
        trainable_head=trainable,
    )  # fmt: skip
    case = plain.on_device(case, "cuda")
    budget = None if rows is None else rows * 2 * case.vocab * 4
    exact = plain.as_float64(case)
    for usable in (chunked.usable, lambda logits: False):
        monkeypatch.setattr(chunked, "usable", usable)
        loss, tokens = chunked_divergence(
            case.responses, case.student, case.teacher, case.weights, alpha, kinds=kinds, vocab=case.vocab, budget_bytes=budget
        )
        expected, divergence = plain.loss(exact, tokens.alpha_B.double(), kinds=kinds)
        assert (loss - expected).abs() < 0.1 * error * expected
        assert (tokens.divergence_N - divergence).abs().max() < 0.1 * error
        gradients = torch.autograd.grad(loss, plain.leaves(case))
        for mine, theirs in zip(gradients, torch.autograd.grad(expected, plain.leaves(exact)), strict=True):
            assert (mine.double() - theirs).norm() < error * theirs.norm()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_whole_run(tmp_path, dtype):
    tiny.write_recipe(tmp_path)
    done = hubdistill("run", "tiny.yaml", "train.device=cuda", f"teacher.dtype={dtype}", f"student.dtype={dtype}", folder=tmp_path)
    assert done.code == 0, done.err
    rows = json.loads((tmp_path / "runs" / "tiny" / "measurements.json").read_text())
    assert {row["subject"] for row in rows} == {"teacher", "student", "warm-up", "distilled"}
