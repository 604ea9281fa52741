"""What only an accelerator can show; `make gpu-check` runs these, and each is skipped where there is none."""

from __future__ import annotations

import json

import pytest
import torch

from hubdistill.losses.chunked import Head, Responses, chunked_divergence
from hubdistill.losses.divergences import skl, srkl
from tests import tiny
from tests.command import hubdistill

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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_whole_run(tmp_path, dtype):
    tiny.write_recipe(tmp_path)
    done = hubdistill("run", "tiny.yaml", "train.device=cuda", f"teacher.dtype={dtype}", f"student.dtype={dtype}", folder=tmp_path)
    assert done.code == 0, done.err
    rows = json.loads((tmp_path / "runs" / "tiny" / "measurements.json").read_text())
    assert {row["subject"] for row in rows} == {"teacher", "student", "warm-up", "distilled"}
