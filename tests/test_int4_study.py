"""The table of benchmarks/int4_study.py, of numbers that are known."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parents[1] / "benchmarks" / "int4_study.py"
sys.path.insert(0, str(FILE.parent))  # where a script finds its neighbours
SPEC = importlib.util.spec_from_file_location("int4_study", FILE)
study: Any = importlib.util.module_from_spec(SPEC)  # type: ignore[arg-type]
SPEC.loader.exec_module(study)  # type: ignore[union-attr]

KL, TRUTH = "kl, teacher responses", "nll, ground-truth responses"


@pytest.fixture
def options(tmp_path: Path) -> argparse.Namespace:
    """Two seeds; a closes half of the gap on every prompt, b nothing; the prompts differ in their gaps."""
    gaps = {0: {"x": 0.2, "y": 0.4}, 1: {"x": 0.6, "y": 0.8}}
    for seed, gap in gaps.items():
        base = {KL: {"student": gap}, TRUTH: {"student": {key: 2 + value for key, value in gap.items()}, "teacher": dict.fromkeys(gap, 2.0)}}
        (tmp_path / f"seed_{seed}_base.json").write_text(json.dumps({"values": base, "costs": [{"metric": "memory", "unit": "MiB", "subject": "student", "value": 5}], "teacher_tokens": 7}))
        for loss, left in (("a", 0.5), ("b", 1.0)):
            values = {KL: {"distilled": {key: left * value for key, value in gap.items()}}, TRUTH: {"distilled": {key: 2 + left * value for key, value in gap.items()}}}
            (tmp_path / f"seed_{seed}_{loss}.json").write_text(json.dumps({"values": values, "train_seconds": 60, "gib": 1.5}))
    return argparse.Namespace(output=tmp_path, seeds=[0, 1], losses=["a", "b"])


def test_means_shares_and_who_is_better(options):
    lines = study.table(options)
    assert lines[0] == "| measured | full precision | 4 bit | a | b |"
    assert "| kl to full precision on its responses, nats/token | – | 0.500 (0.300, 0.700) | 0.250 (0.150, 0.350) | 0.500 (0.300, 0.700) |" in lines
    assert "| nll of people's responses, nats/token | 2.000 (2.000, 2.000) | 2.500 (2.300, 2.700) | 2.250 (2.150, 2.350) | 2.500 (2.300, 2.700) |" in lines
    assert any(line.startswith("| perplexity of people's responses | 7.39 (7.39, 7.39) | 12.43 (9.97, 14.88) |") for line in lines)
    assert "| share of the kl gap closed, all seeds | – | – | 50% [50%, 50%] | 0% [0%, 0%] |" in lines
    assert "| seed 1 | – | – | 50% [50%, 50%] | 0% [0%, 0%] |" in lines
    assert "| memory, MiB | – | 5.0 (5.0, 5.0) | – |" in lines
    assert any(line.startswith("- kl on its responses, a minus b: -0.2500 [-0.3000, -0.2000]") for line in lines)


def test_what_the_data_set_has_no_responses_for_is_left_empty(options):
    for file in options.output.glob("*.json"):
        found = json.loads(file.read_text())
        del found["values"][TRUTH]
        file.write_text(json.dumps(found))
    lines = study.table(options)
    assert "| share of the nll gap closed, all seeds | – | – | – | – |" in lines
    assert not [line for line in lines if line.startswith("- nll")]


def test_cells_of_other_settings_are_not_mixed_in(tmp_path: Path):
    recipe = tmp_path / "a.yaml"
    recipe.write_text("a: 1")
    for overrides in (["x=1", "y=2"], ["y=2", "x=1"]):
        study.keep_settings(tmp_path / "cells", recipe, overrides)
    with pytest.raises(SystemExit, match=r"holds cells of other settings \(.*settings.json\); give another --output"):
        study.keep_settings(tmp_path / "cells", recipe, ["x=2", "y=2"])
    recipe.write_text("a: 2")
    with pytest.raises(SystemExit):
        study.keep_settings(tmp_path / "cells", recipe, ["x=1", "y=2"])
