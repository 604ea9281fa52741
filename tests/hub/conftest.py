"""Fixtures of the Hub tests: a running server, a small adapter made by hand, and the client in a process of its own."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hubdistill.hub.staging import stage
from tests.command import hub_client
from tests.hub.example_card import FACTS, render_card
from tests.hub_server import HubServer

ROOT = Path(__file__).parents[2]
BASE, COMMIT = "org/tiny-base", "1" * 40
ALICE, READER, BOB = "hf_alice_write", "hf_alice_read", "hf_bob_write"


def safetensors(tensors: dict[str, list[int]], metadata: dict[str, str] | None = None) -> bytes:
    """The bytes of a safetensors file with float32 zeros of these shapes, written from the format's description."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, shape in tensors.items():
        size = 4
        for n in shape:
            size *= n
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(at)


def config(**changes: Any) -> dict[str, Any]:
    """adapter_config.json of a plain LoRA of rank 4, as PEFT writes it, with changes."""
    plain = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "/somewhere/local/tiny",
        "revision": None,
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["v_proj", "q_proj"],
        "init_lora_weights": True,
        "bias": "none",
    }
    return {**plain, **changes}


STORAGES = {"xet": {}, "lfs": {"HF_HUB_DISABLE_XET": "1"}}
WEIGHTS = {
    f"base_model.model.model.layers.0.self_attn.{m}.lora_{s}.weight": [4, 16] if s == "A" else [16, 4]
    for m in ("q_proj", "v_proj")
    for s in "AB"
}


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def run_files(tmp_path: Path) -> dict[str, Path]:
    """The files of a finished run, by their names in the repository."""
    run = tmp_path / "run"
    run.mkdir()
    contents = {
        "adapter_config.json": json.dumps(config()).encode(),
        "adapter_model.safetensors": safetensors(WEIGHTS),
        "hubdistill/recipe.yaml": b"target: {kind: text}\n",
        "hubdistill/run.json": b'{"seed": 0}\n',
        "hubdistill/measurements.json": b"[]\n",
    }
    files = {}
    for name, content in contents.items():
        files[name] = run / name.replace("/", "-")
        files[name].write_bytes(content)
        files[name].chmod(0o600)  # as PEFT leaves them
    return files


@pytest.fixture
def staged(run_files: dict[str, Path], tmp_path: Path) -> Path:
    """A staging folder, ready to push."""
    return stage(run_files, render_card(FACTS), tmp_path / "staged", base=BASE, base_commit=COMMIT)


@pytest.fixture
def client(hub: HubServer, tmp_path: Path) -> Callable[..., tuple[list[dict[str, Any]], str]]:
    """`client(steps, token=..., home=..., **env)`: results of tests.hub.client against `hub`, and all that it printed."""

    def call(steps: list[dict[str, Any]], *, token: str | None = ALICE, home: str = "home", **env: str):
        return hub_client(steps, tmp_path, tmp_path / home, **{"HF_ENDPOINT": hub.url, **({"HF_TOKEN": token} if token else {}), **env})

    return call


class Service:
    """tests.hub.client in a process that stays: `call(step, ...)` gives the results, `said()` all that it logged."""

    def __init__(self, hub: HubServer, home: Path):
        self.hub, self.home = hub, home
        env = {"PATH": os.environ["PATH"], "HOME": str(home), "HF_HOME": str(home / "hf"), "HUBDISTILL_CACHE": str(home / "hubdistill"), "HF_ENDPOINT": hub.url, "HF_TOKEN": ALICE,
               "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}  # fmt: skip
        self._log = (home / "log").open("wb")
        self.process = subprocess.Popen([sys.executable, "-m", "tests.hub.client", "--serve"], env=env, cwd=home, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log)  # fmt: skip

    def call(self, *steps: dict[str, Any]) -> list[dict[str, Any]]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps([{"token": ALICE, **step} for step in steps]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, self.said()[-4000:]
        return json.loads(line)

    def said(self) -> str:
        return (self.home / "log").read_text()

    def close(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()
        self._log.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One Hub and one client for all tests of a file."""
    with HubServer() as server:
        found = Service(server, tmp_path_factory.mktemp("service"))
        yield found
        found.close()


@pytest.fixture(params=["xet", "lfs"])
def storage(request: pytest.FixtureRequest) -> dict[str, str]:
    """The environment for either way of large files."""
    return STORAGES[request.param]
