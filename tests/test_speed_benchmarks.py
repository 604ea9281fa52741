"""The scripts of docs/benchmarks.md that measure the loss and the training step, on models of a few thousand weights."""

from __future__ import annotations

import argparse
import importlib
import signal
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from tests import tiny

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """Imports one by name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.fixture
def case(script, tmp_path):
    """A pair for two random models with an adapter of the rank that tells LoRA's products, 16."""
    LlamaConfig(vocab_size=96, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2).save_pretrained(tmp_path)
    return script("train_step_variants").make_case("text", (20, 7), 2, "cpu", "float32", tmp_path)


def test_a_step_has_one_gradient_however_it_is_done(script, case):
    step, distance = script("train_step_variants").step, script("train_step").distance
    found = {name: {key: value.clone() for key, value in step(case, name).items()} for name in ("official", "everywhere", "shared", "unshared")}
    assert len(found["official"]) == 2 * 7 * 2  # A and B of seven layers in each of two blocks
    for name in ("everywhere", "shared", "unshared"):
        assert distance(found[name], found["official"]) < 1e-4


def test_ligers_loss_is_the_jsd(script):
    pytest.importorskip("liger_kernel")
    variants = script("loss_variants")
    inputs = variants.make_inputs(24, 50, 16, torch.float32, response=6)
    rows, heads = inputs.responses, (inputs.student, inputs.teacher)
    theirs, ours = variants.liger_loss(rows, *heads, compiled=False), variants.our_jsd(rows, *heads)
    assert ours.item() > 0.01
    torch.testing.assert_close(theirs, ours)
    torch.testing.assert_close(*(torch.autograd.grad(loss, rows.student_ND)[0] for loss in (theirs, ours)))


def test_a_profile_tells_products_apart(script, case):
    profile = script("step_profile")
    operations = profile.profiled(case, "shared")
    groups = {one.group for one in operations}
    assert groups >= {"products: MLP", "products: LoRA", "products: attention projections", "attention", "loss: products with the vocabulary", "loss: all else"}
    least, whole = profile.floor(operations)
    parts = sum(one.seconds for one in operations if one.group.startswith("products") or one.group in ("attention", "loss: products with the vocabulary"))
    assert least == pytest.approx(parts)
    assert 0 < least < whole
    lines = profile.table(operations)
    assert len([line for line in lines if line.startswith("| `")]) == 10
    assert lines[-1].startswith("| *all* |")


def test_parts_of_a_round_do_not_overlap(script, tmp_path):
    rounds, handler = script("round_profile"), signal.getsignal(signal.SIGINT)
    try:
        clock, steps, _ = rounds.first_round(str(tiny.write_recipe(tmp_path)), [], tmp_path / "run")
    finally:
        signal.signal(signal.SIGINT, handler)  # the console takes it
    assert steps == len((tmp_path / "run" / "round_1" / "metrics.jsonl").read_text().splitlines()) > 0
    assert set(clock.seconds) >= {*rounds.MODELS_AND_LOSS, "data", "optimiser", "metrics and logging", rounds.TRAINER}
    assert min(clock.seconds.values()) >= 0
    lines = rounds.table({rounds.TRAINER: 1.0, "student, backward": 3.0}, 2)
    assert lines[2:] == ["| student, backward | 1500.0 ms | 75.0% |", "| the trainer's own | 500.0 ms | 25.0% |", "| *outside models and loss* | 500.0 ms | 25.0% |", "| *all, 2 steps* | 2000.0 ms | |"]


def test_a_point_is_measured_and_one_beyond_the_limit_is_left_out(script, capsys):
    growth = script("growth")
    options = argparse.Namespace(points=[8, 16], limit_gib=0.0, timeout=100, repeats=1, threads=1)
    found = growth.measured("tokens", "ours", options)
    assert list(found) == [8]
    assert found[8]["seconds"] > 0
    assert found[8]["mib"] > 0
    assert "16 left out" in capsys.readouterr().err


def test_exponents_and_plots_of_numbers_that_are_known(script, tmp_path):
    growth = script("growth")
    assert growth.exponent({x: 3.0 * x**1.5 for x in (1, 2, 4, 8)}) == pytest.approx(1.5)
    assert growth.exponent({1: 9.0, 10: 9.0, 100: 5.0, 1000: 5.0, 10000: 5.0}) == pytest.approx(0)  # the larger half
    assert growth.exponent({4: 1.0}) is None
    points = {"ours": {str(x): {"seconds": x / 1000, "mib": 250.0} for x in (256, 512, 2048)}, "plain": {"256": {"seconds": 1.0, "mib": 900.0}}}
    assert growth.table({"tokens": points})[2].endswith("| 2,048 | 2.05 s | 250 MiB | x^1.00 | x^0.00 |")
    growth.draw(tmp_path, {"tokens": points})
    plot = (tmp_path / "growth_tokens_time.svg").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"growth_tokens_time.svg", "growth_tokens_memory.svg"}
    assert all(text in plot for text in ("2k", "response tokens N", "CPU time, s", "hubdistill, skl + srkl", "full logits"))


def test_names_at_the_ends_of_curves_do_not_overlap(script):
    plot = script("growth_plot")
    assert plot.apart({"a": 50.0, "b": 48.0, "c": 100.0}) == {"b": 48.0, "a": 62.0, "c": 100.0}
    assert plot.decades(0.4, 30) == [0.5, 1, 2, 5, 10, 20]
    assert plot.decades(0.02, 3000) == [0.1, 1, 10, 100, 1000]
