"""The fused loss against the plainly written one: values, gradients, every option, any tiling."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hubdistill.losses.chunked import Responses, chunked_divergence, label_logps
from hubdistill.losses.head import Projector
from tests.losses import plain

LENGTHS, FLAGS = [3, 7, 1, 12, 5, 9], [0, 1, 1, 0, 1, 0]
ALL_KINDS = [("skl", "srkl"), ("srkl", "skl"), ("kl", "rkl"), ("jsd", "nll"), ("nll", "kl"), ("rkl", "jsd"), ("tv", "nll")]


def budget(case: plain.Case, rows: int) -> int:
    """Bytes of both buffers for tiles of this many rows."""
    return rows * 2 * case.vocab * (8 if case.weights.dtype == torch.float64 else 4)


def rule(teacher, student, from_student):
    assert not torch.is_grad_enabled()
    assert teacher.dtype == student.dtype == torch.float32
    return 0.02 + 0.1 * torch.sigmoid(2 * (teacher - student)) + 0.05 * from_student


def compare(case: plain.Case, alpha, *, kinds=("skl", "srkl"), mix_grad="exact", rows=None, rtol=1e-11, whole=0):
    """Loss, divergences and every gradient; returns the tokens. `whole`: rows that a tile may have for the sake of a whole response."""
    size = None if rows is None else budget(case, rows)
    loss, tokens = chunked_divergence(
        case.responses, case.student, case.teacher, case.weights, alpha,
        kinds=kinds, mix_grad=mix_grad, vocab=case.vocab, budget_bytes=size, whole_bytes=budget(case, whole),
    )  # fmt: skip
    if callable(alpha):
        with torch.no_grad():
            means = [value.float() for value in plain.mean_logps(case)]
            alpha_B = alpha(means[0], means[1], case.responses.from_student_B).double()
    else:
        alpha_B = torch.full((len(case.responses.lengths_B),), alpha, dtype=torch.float64)
    expected, divergence = plain.loss(case, alpha_B, kinds=kinds, mix_grad=mix_grad)
    atol = 1e-6 if callable(alpha) else rtol  # a rule sees float32 means, whose last bit may differ
    torch.testing.assert_close(loss, expected, rtol=rtol, atol=atol)
    torch.testing.assert_close(tokens.divergence_N, divergence.detach(), rtol=rtol, atol=atol)
    torch.testing.assert_close(tokens.alpha_B, alpha_B, rtol=1e-6, atol=1e-7)
    assert not tokens.divergence_N.requires_grad
    found = torch.autograd.grad(3 * loss, plain.leaves(case))
    for mine, theirs in zip(found, torch.autograd.grad(3 * expected, plain.leaves(case)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=atol)
    return tokens


@pytest.mark.parametrize("mix_grad", ["exact", "detached"])
@pytest.mark.parametrize("kinds", ALL_KINDS, ids="-".join)
@pytest.mark.parametrize("rows", [None, 4], ids=["one tile", "many tiles"])
def test_equals_plain(kinds, mix_grad, rows):
    compare(plain.make_case(LENGTHS, FLAGS), 0.1, kinds=kinds, mix_grad=mix_grad, rows=rows)


HEADS = [
    dict(surplus=(9, 0)),
    dict(surplus=(0, 13), bias=True),
    dict(surplus=(5, 2), scale=0.25, spread=6.0),
    dict(soft_cap=3.0, spread=4.0),
    dict(soft_cap=2.0, scale=0.5, bias=True, surplus=(3, 0)),
]


@pytest.mark.parametrize("head", HEADS, ids=str)
@pytest.mark.parametrize("kinds", ALL_KINDS[::2], ids="-".join)
@pytest.mark.parametrize("trainable", [False, True], ids=["frozen head", "trained head"])
def test_heads(head, kinds, trainable):
    case = plain.make_case(LENGTHS, FLAGS, trainable_head=trainable, **head)
    compare(case, 0.07, kinds=kinds, rows=5)
    assert len(plain.leaves(case)) == 1 + trainable * (1 + bool(head.get("bias")))


@pytest.mark.parametrize("rows", [None, 100, 12, 11, 5, 1], ids=str)
def test_alpha_rule(rows):
    """Whole responses per tile (12 holds the longest), and two passes over those that do not fit (below 12)."""
    compare(plain.make_case(LENGTHS, FLAGS), rule, rows=rows)


@pytest.mark.parametrize(("whole", "alpha", "rows_multiplied"), [(0, rule, 37 + 12 + 9), (11, rule, 37 + 12 + 9), (12, rule, 37), (12, 0.1, 37)])
def test_a_long_response_is_multiplied_with_the_head_once_where_memory_allows(monkeypatch, whole, alpha, rows_multiplied):
    """Of 37 rows, the responses of 12 and 9 do not fit a budget of 8."""
    counted, logits = [], Projector.logits

    def counting(self, hidden, out):
        counted.append(len(hidden))
        return logits(self, hidden, out)

    monkeypatch.setattr(Projector, "logits", counting)
    compare(plain.make_case(LENGTHS, FLAGS), alpha, rows=8, whole=whole)
    assert sum(counted) == 2 * rows_multiplied  # by both models
    assert max(counted) <= (12 if whole == 12 and callable(alpha) else 8)


@pytest.mark.parametrize("rows", [1, 3, 8, 1000])
def test_rule_is_asked_once_per_response(rows):
    asked = []

    def counting(teacher, student, from_student):
        asked.append(len(teacher))
        return rule(teacher, student, from_student)

    case = plain.make_case(LENGTHS, FLAGS)
    chunked_divergence(
        case.responses, case.student, case.teacher, case.weights, counting, budget_bytes=budget(case, rows)
    )
    assert sum(asked) == len(LENGTHS)


def test_random_sweep():
    draw = torch.Generator().manual_seed(1)

    def pick(low, high):
        return int(torch.randint(low, high + 1, (1,), generator=draw))

    for seed in range(60):
        count = pick(1, 7)
        case = plain.make_case(
            [pick(1, 15) for _ in range(count)], [pick(0, 1) for _ in range(count)],
            vocab=pick(2, 90), surplus=(pick(0, 5), pick(0, 5)), seed=seed, spread=pick(1, 8),
            bias=bool(pick(0, 1)), scale=pick(1, 3) / 2, soft_cap=[None, 4.0][pick(0, 1)], trainable_head=bool(pick(0, 1)),
        )  # fmt: skip
        alpha = [0.01, 0.5, 0.99, rule][pick(0, 3)]
        compare(
            case,
            alpha,
            mix_grad=["exact", "detached"][pick(0, 1)],
            rows=pick(1, 40),
            kinds=ALL_KINDS[pick(0, 6)],
            rtol=1e-10,
        )


def test_gradcheck():
    case = plain.make_case([2, 3], [0, 1], vocab=6, bias=True, soft_cap=3.0, trainable_head=True)

    def function(hidden, weight, bias):
        responses = replace(case.responses, student_ND=hidden)
        head = replace(case.student, weight=weight, bias=bias)
        return chunked_divergence(responses, head, case.teacher, case.weights, 0.2, budget_bytes=budget(case, 2))[0]

    assert torch.autograd.gradcheck(function, plain.leaves(case))


def test_only_one_kind_of_response():
    for flag in (0, 1):
        compare(plain.make_case([4, 2], [flag, flag]), rule)


def test_tokens_report_both_models():
    case = plain.make_case(LENGTHS, FLAGS, spread=3.0)
    tokens = compare(case, 0.1, rows=4)
    p = plain.logp(case.responses.teacher_ND, case.teacher, case.vocab)
    q = plain.logp(case.responses.student_ND, case.student, case.vocab).detach()
    labels = case.responses.labels_N[:, None]
    torch.testing.assert_close(tokens.teacher_logp_N, p.gather(-1, labels)[:, 0])
    torch.testing.assert_close(tokens.student_logp_N, q.gather(-1, labels)[:, 0])
    agree = p.argmax(-1) == q.argmax(-1)
    assert torch.equal(tokens.agree_N, agree)
    # the same student again: it agrees with itself everywhere
    twin = replace(case.responses, teacher_ND=case.responses.student_ND.detach())
    _, tokens = chunked_divergence(twin, case.student, case.student, case.weights, 0.1)
    assert tokens.agree_N.all()
    assert tokens.divergence_N.abs().max() < 1e-12


@pytest.mark.parametrize("rows", [None, 3])
def test_label_logps(rows):
    case = plain.make_case(LENGTHS, FLAGS, surplus=(4, 0), bias=True, scale=0.5, soft_cap=5.0)
    size = None if rows is None else budget(case, rows)
    found = label_logps(case.responses.student_ND, case.student, case.responses.labels_N, case.vocab, size)
    expected = plain.logp(case.responses.student_ND, case.student, case.vocab)
    torch.testing.assert_close(found, expected.gather(-1, case.responses.labels_N[:, None])[:, 0].detach())
    assert not found.requires_grad


def test_no_grad_gives_the_same_values_and_no_graph():
    case = plain.make_case(LENGTHS, FLAGS)
    arguments = (case.responses, case.student, case.teacher, case.weights, rule)
    loss, tokens = chunked_divergence(*arguments)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            quiet, again = chunked_divergence(*arguments)
        assert not quiet.requires_grad
        assert torch.equal(quiet, loss)
        assert torch.equal(again.divergence_N, tokens.divergence_N)


def test_deterministic_and_input_left_alone():
    case = plain.make_case(LENGTHS, FLAGS, dtype=torch.float32, trainable_head=True)
    before = [t.detach().clone() for t in (*plain.leaves(case), case.teacher.weight, case.responses.teacher_ND)]
    runs = []
    for _ in range(2):
        loss, _ = chunked_divergence(case.responses, case.student, case.teacher, case.weights, rule, budget_bytes=5000)
        runs.append((loss, *torch.autograd.grad(loss, plain.leaves(case))))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    after = (*plain.leaves(case), case.teacher.weight, case.responses.teacher_ND)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_accumulated_micro_batches_equal_one_batch():
    """Split by responses and sum: the same loss and the same gradients, as the trainer does it."""
    case = plain.make_case(LENGTHS, FLAGS, trainable_head=True)
    whole, _ = chunked_divergence(case.responses, case.student, case.teacher, case.weights, rule)
    expected = torch.autograd.grad(whole, plain.leaves(case))
    total, found = 0.0, [torch.zeros_like(t) for t in plain.leaves(case)]
    for first in range(0, len(LENGTHS), 2):
        start, size = sum(LENGTHS[:first]), sum(LENGTHS[first : first + 2])
        rows, old = slice(start, start + size), case.responses
        part = Responses(
            old.student_ND[rows], old.teacher_ND[rows], old.labels_N[rows],
            LENGTHS[first : first + 2], old.from_student_B[first : first + 2],
        )  # fmt: skip
        loss, _ = chunked_divergence(part, case.student, case.teacher, case.weights[rows], rule)
        total += loss.detach()
        for accumulated, gradient in zip(found, torch.autograd.grad(loss, plain.leaves(case)), strict=True):
            accumulated += gradient
    torch.testing.assert_close(total, whole.detach())
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("kinds", [("skl", "srkl"), ("kl", "rkl"), ("jsd", "nll")], ids="-".join)
@pytest.mark.parametrize(
    ("dtype", "value", "gradient"),
    # Rounding depends on the CPU's matrix products; the arithmetic written out plainly in float32 is off by 5e-5 here.
    [(torch.float32, 3e-6, 5e-5), (torch.bfloat16, 3e-6, 4e-3), (torch.float16, 3e-6, 5e-4)],
    ids=["float32", "bfloat16", "float16"],
)
def test_narrow_types_are_computed_in_float32(dtype, value, gradient, kinds):
    """Against float64 on the same (rounded) inputs, by the worst and by the mean entry; gradients round at the end."""
    case = plain.make_case([40, 40], [0, 1], vocab=3001, spread=4.0, dtype=dtype, bias=True)
    loss, tokens = chunked_divergence(case.responses, case.student, case.teacher, case.weights, 0.1, kinds=kinds)
    assert loss.dtype == tokens.divergence_N.dtype == torch.float32
    exact = plain.as_float64(case)
    expected, divergence = plain.loss(exact, torch.full((2,), 0.1, dtype=torch.float64), kinds=kinds)
    error = (tokens.divergence_N.double() - divergence.detach()).abs() / divergence.detach().abs().clamp_min(1.0)
    assert error.max() < value
    assert error.mean() < value / 3
    mine = torch.autograd.grad(loss, case.responses.student_ND)[0]
    assert mine.dtype == dtype
    theirs = torch.autograd.grad(expected, exact.responses.student_ND)[0]
    assert (mine.double() - theirs).norm() < gradient * theirs.norm()
    assert (mine.double() - theirs).abs().max() < 2 * gradient * theirs.abs().max()


def test_wide_head_is_cast_in_slices(monkeypatch):
    """Many slices of the vocabulary give the same as one."""
    from hubdistill.losses import head

    case = plain.make_case(LENGTHS, FLAGS, dtype=torch.bfloat16, vocab=301, trainable_head=True)

    def run():
        loss, _ = chunked_divergence(case.responses, case.student, case.teacher, case.weights, 0.1)
        return loss, *torch.autograd.grad(loss, plain.leaves(case))

    expected = run()
    monkeypatch.setattr(head, "CAST_BYTES", 40 * 11 * 4)
    for mine, theirs in zip(run(), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=1e-4)


def test_extreme_logits_stay_finite():
    """Probabilities that underflow on one side, on the other, and on both."""
    for spread in (50.0, 500.0, 1e4):
        case = plain.make_case(LENGTHS, FLAGS, spread=spread, dtype=torch.float32)
        for kinds in ALL_KINDS:
            loss, tokens = chunked_divergence(
                case.responses, case.student, case.teacher, case.weights, 0.01, kinds=kinds
            )
            assert tokens.divergence_N.isfinite().all()
            assert torch.autograd.grad(loss, case.responses.student_ND)[0].isfinite().all()
            exact = plain.as_float64(case)
            alpha = torch.full((len(LENGTHS),), 0.01, dtype=torch.float64)
            expected, _ = plain.loss(exact, alpha, kinds=kinds)
            torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-4, atol=1e-4)


def test_works_inside_autocast():
    case = plain.make_case(LENGTHS, FLAGS, dtype=torch.float32)
    arguments = (case.responses, case.student, case.teacher, case.weights, 0.1)
    expected = chunked_divergence(*arguments)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = chunked_divergence(*arguments)[0]
    assert torch.equal(found, expected)


BAD = {
    "lengths add up": dict(lengths_B=[3, 7, 1, 12, 5, 8]),
    "no tokens": dict(lengths_B=[3, 7, 1, 12, 5, 9, 0], from_student_B=torch.zeros(7, dtype=torch.bool)),
    "one flag": dict(from_student_B=torch.zeros(5, dtype=torch.bool)),
    "outside the": dict(labels_N=torch.full((37,), 61)),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_responses_are_refused(message):
    case = plain.make_case(LENGTHS, FLAGS)
    with pytest.raises(ValueError, match=message):
        chunked_divergence(replace(case.responses, **BAD[message]), case.student, case.teacher, case.weights, 0.1)


def test_bad_arguments_are_refused():
    case = plain.make_case(LENGTHS, FLAGS, surplus=(1, 0))
    arguments = (case.responses, case.student, case.teacher, case.weights)
    with pytest.raises(ValueError, match=r"62 ids and the teacher 61; pass vocab"):
        chunked_divergence(*arguments, 0.1)
    for alpha in (0.0, 1.0, -0.1):
        with pytest.raises(ValueError, match="between 0 and 1"):
            chunked_divergence(*arguments, alpha, vocab=61)
    with pytest.raises(ValueError, match=r"unknown divergence.*choose from"):
        chunked_divergence(*arguments, 0.1, vocab=61, kinds=("skl", "akl"))
