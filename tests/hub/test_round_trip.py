"""A real adapter and its pruned base go to the Hub and come back into an empty cache: logits are equal, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hubdistill.errors import InputError, MissingError
from hubdistill.hub.base_publish import BaseFacts, base_files, push_base, render_base_card
from hubdistill.hub.card import License
from hubdistill.hub.staging import stage
from tests.hub.conftest import ALICE, ROOT
from tests.hub.example_card import FACTS, render_card
from tests.hub.test_publish import push, tree

CARD = render_base_card(
    BaseFacts(
        repo="org/tiny-base", source="org/big", source_commit=None, how="two layers kept", license=License(id="mit")
    )
)

# Runs in a process of its own: the snippet of `usage`, as a user would paste it, then the logits.
USER = """
import json, sys
from hubdistill.hub.pull import pull, usage
got = pull("org/tiny-adapter", expect_base="org/tiny-base")
code = usage(got).split("# merged")[0]
exec(code.replace(', device_map="auto"', ""))
import torch
with torch.no_grad():
    logits = model(torch.arange(24).reshape(2, 12) % 60).logits
merged = model.merge_and_unload(safe_merge=True)
with torch.no_grad():
    after = merged(torch.arange(24).reshape(2, 12) % 60).logits
torch.save(logits, sys.argv[1])
print(json.dumps({"diff": (logits - after).abs().max().item(), "base": got.base_revision}))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tiny random Llama and a rank-4 adapter on it, both saved; and the adapter's logits."""
    torch = pytest.importorskip("torch")
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    base = LlamaForCausalLM(shape)
    base.save_pretrained(folder / "base")
    words = Tokenizer(models.WordLevel({str(n): n for n in range(64)}, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="0").save_pretrained(folder / "base")
    model = get_peft_model(
        base, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    )
    for name, weights in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.5)
    model.save_pretrained(folder / "adapter")
    model.eval()
    with torch.no_grad():
        logits = model(torch.arange(24).reshape(2, 12) % 60).logits
        with model.disable_adapter():
            assert not torch.equal(logits, model(torch.arange(24).reshape(2, 12) % 60).logits)
    return folder, logits


# Files of both storages come back whole in test_publish.py and test_pull.py.
@pytest.mark.parametrize("storage", ["xet", pytest.param("lfs", marks=pytest.mark.slow)], indirect=True)
def test_round_trip(hub, client, made, tmp_path, storage):
    import torch

    folder, logits = made
    steps = [{"call": "push_base", "kwargs": {"folder": str(folder / "base"), "repo": "org/tiny-base", "card": CARD}}]
    (base,), _ = client(steps, **storage)
    assert base["ok"]["visibility"] == "private"
    adapter = {name: folder / "adapter" / name for name in ("adapter_config.json", "adapter_model.safetensors")}
    card = render_card(replace(FACTS, repo="org/tiny-adapter", base=replace(FACTS.base, commit=base["ok"]["commit"])))
    staged = stage(adapter, card, tmp_path / "staged", base="org/tiny-base", base_commit=base["ok"]["commit"])
    (done,), _ = client([push("org/tiny-adapter", staged)], **storage)
    assert "ok" in done, done
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path / "fresh"),
        "HF_HOME": str(tmp_path / "fresh" / "hf"),
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": ALICE,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        **storage,
    }
    run = subprocess.run(
        [sys.executable, "-c", USER, str(tmp_path / "logits.pt")], env=env, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits)
    said = json.loads(run.stdout.splitlines()[-1])
    assert said["base"] == base["ok"]["commit"]
    assert said["diff"] < 1e-4
    assert ALICE not in run.stdout + run.stderr


def test_base_repository_holds_the_model_only(hub, client, made, tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    for path in (made[0] / "base").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "_name_or_path": "/home/somebody/model"}))
    (folder / "training_args.bin").write_bytes(b"pickle")
    (folder / "train_info.json").write_text(json.dumps({"token": "hf_" + "a" * 34}))
    (done, again), log = client(
        [{"call": "push_base", "kwargs": {"folder": str(folder), "repo": "org/b", "card": CARD, "private": False}}] * 2
    )
    assert done["ok"]["commit"] == again["ok"]["commit"]
    assert set(tree(hub, "org/b")) == {
        ".gitattributes",
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert b"somebody" not in tree(hub, "org/b")["config.json"].data
    assert not hub.state.repos[("model", "org/b")].private
    assert ALICE not in log


def model_folder(folder: Path, **files: bytes) -> Path:
    from tests.hub.conftest import safetensors

    for name, content in {"config.json": b"{}", "model.safetensors": safetensors({"a": [2, 2]}), **files}.items():
        (folder / name).write_bytes(content)
    return folder


def test_base_folders_that_are_refused(tmp_path):
    cases = {
        "code": ({"config.json": b'{"auto_map": {"AutoModel": "evil.py"}}'}, "auto_map"),
        "vocab": ({"tokenizer_config.json": b'{"vocab_file": "/etc/passwd"}'}, "points outside the folder"),
        "secret": (
            {"chat_template.jinja": b"{{ x }}\nhf_" + b"a" * 34},
            r"chat_template\.jinja:2: looks like a secret",
        ),
        "damaged": ({"model.safetensors": b"PK\x03\x04" + bytes(90)}, "damaged"),
    }
    for name, (files, words) in cases.items():
        (tmp_path / name).mkdir()
        with pytest.raises(InputError, match=words):
            push_base(model_folder(tmp_path / name, **files), "org/b", card=CARD)
    linked = tmp_path / "linked"
    linked.mkdir()
    (model_folder(linked) / "tokenizer.json").symlink_to("/etc/hostname")
    with pytest.raises(InputError, match="symlink"):
        base_files(linked)
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text("{}")
    (pickled / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(MissingError, match="only pickled weights"):
        base_files(pickled)
