"""Two processes on gloo give what one process gives on the same pairs: the same responses, losses and adapters."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests import tiny
from tests.command import ROOT, hubdistill

pytestmark = pytest.mark.slow
WARMUP = {"kind": "sft", "epochs": 1.5}
BOTH = "train.distributed.processes=2"


def recipe(folder: Path, **changes) -> Path:
    """10 pairs in steps of 4 and micro-batches of 2: in the last step one of two processes has nobody."""
    folder.mkdir(exist_ok=True)
    sampling = {"max_tokens": 8, "batch_size": 4, "temperature": 4}  # few responses are empty
    blocks = {"sampling": sampling, "prompts": {"dataset": "prompts.jsonl", "response_column": "answer", "heldout": 2, "max_tokens": 64}, "warmup": WARMUP, "evaluate": [{"kind": "divergence"}]}
    return tiny.write_recipe(folder, **{**blocks, **changes})


def int4(folder: Path) -> Path:
    """A model wide enough for the blocks of 64 that bitsandbytes quantises in."""
    recipe(folder, target={"kind": "int4", "gap": "ignore"}, student={"model": "./teacher"})
    return tiny.save(folder / "teacher", tiny.make_model(1, layers=3, hidden=64), tiny.make_tokenizer())


def run(folder: Path, name: str, *overrides: str) -> Path:
    done = hubdistill("run", "tiny.yaml", *overrides, "--output", name, folder=folder)
    assert done.code == 0, done.err
    return folder / name


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in row]


def compare(one: Path, other: Path, loss: float, weight: float) -> None:
    """Losses of steps relatively, weights of adapters absolutely; the largest is 0.02 or so."""
    for file in ("round_1/teacher.parquet", "round_1/student.parquet", "round_2/student.parquet"):
        assert (one / file).read_bytes() == (other / file).read_bytes(), file
    ours, theirs = losses(one), losses(other)
    assert len(ours) == len(theirs) > 6
    apart = max(abs(a - b) / abs(a) for a, b in zip(ours, theirs, strict=True))
    print(f"\n{other.name}: losses apart by {apart:.1e}", end="")
    assert apart < loss
    for folder in ("warmup", "round_1", "round_2"):
        mine, its = (load_file(path / folder / "adapter" / "adapter_model.safetensors") for path in (one, other))
        assert mine.keys() == its.keys()
        apart = max(float((mine[name] - its[name]).abs().max()) for name in mine)
        print(f", {folder} by {apart:.1e}", end="")
        assert apart < weight
        assert max(float(value.abs().max()) for value in mine.values()) > 50 * weight, "the weights are too small to compare"


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    recipe(folder)
    run(folder, "one")
    return folder


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_equal_one(text, strategy):
    run(text, strategy, BOTH, f"train.distributed.strategy={strategy}")
    compare(text / "one", text / strategy, 1e-6, 2e-5)
    plan = json.loads((text / strategy / "plan.json").read_text())
    pairs = json.loads((text / "one" / "stages" / "round_1-train.json").read_text())["result"]["pairs"]
    assert -(-pairs // 2) % 2 == 1, "no process has nobody"
    assert (plan["processes"], plan["micro_batches_per_step"]) == (2, 1)
    measured = [{(row["metric"], row["subject"]): row["value"] for row in json.loads((text / name / "measurements.json").read_text())} for name in ("one", strategy)]
    assert measured[0] == pytest.approx(measured[1], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("overrides", [(), (BOTH,)], ids=["one process", "two processes"])
def test_a_teacher_that_has_read_all_before_equals_one_that_is_loaded(text, overrides):
    name = f"cached{len(overrides)}"
    run(text, name, "teacher.placement=cached", *overrides)
    compare(text / "one", text / name, 1e-5, 2e-5)  # a loaded teacher reads both responses of a pair in one row, this one each alone: other roundings
    assert (text / name / "round_1" / "teacher.states" / "manifest.json").is_file()
    assert not list((text / name).glob("round_*/student.states"))


def test_int4_in_two_processes_equals_one(tmp_path):
    int4(tmp_path)
    run(tmp_path, "one")
    for name, more in (("ddp", (BOTH,)), ("fsdp2", (BOTH, "train.distributed.strategy=fsdp2")), ("cached", ("teacher.placement=cached",))):
        run(tmp_path, name, *more)
        compare(tmp_path / "one", tmp_path / name, 2e-5, 3e-4)


def started(folder: Path, name: str, *arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    command = [sys.executable, *launcher, "-m", "hubdistill", "run", "tiny.yaml", "--output", name, *arguments]
    home = {"HOME": str(folder / "home"), "HF_HOME": str(folder / "home" / "hf"), "HUBDISTILL_CACHE": str(folder / "home" / "hubdistill")}
    return subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **home})


def test_two_processes_go_on_where_they_were_killed(text):
    """The launcher is killed in the middle of a round; the others end with it, and the same command goes on."""
    settings = (BOTH, "train.distributed.strategy=fsdp2", "train.save_every=1")
    process = started(text, "killed", *settings)
    until = time.monotonic() + 200
    while not list((text / "killed").glob("round_1/checkpoints/checkpoint-*/curriculum.json")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(2)
    assert not (text / "killed" / "stages" / "round_1-train.json").is_file(), "it ended before it was killed"
    run(text, "killed", *settings)
    compare(text / "one", text / "killed", 1e-6, 2e-5)


def test_torchrun_starts_it_as_well(text):
    process = started(text, "torchrun", launcher=("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"))
    assert process.wait(timeout=300) == 0, process.stderr.read()
    compare(text / "one", text / "torchrun", 1e-6, 2e-5)


def test_one_mistake_is_told_once_with_its_exit_code(text):
    """All processes meet it; and one that only the second meets is told as well."""
    (text / "bad.jsonl").write_text('{"prompt": 3}\n' * 8)
    done = hubdistill("run", "tiny.yaml", BOTH, "prompts.dataset=bad.jsonl", "warmup.responses=teacher", "prompts.response_column=null", "--output", "bad", folder=text)
    assert done.code == 2
    assert done.err.count("bad.jsonl:row 1 ") == 1
    assert "Traceback" not in done.err
