"""Adapters that are damaged or hostile are refused from their files alone."""

from __future__ import annotations

import json
import random
import struct
from typing import Any

import pytest

from hubdistill.errors import InputError, MissingError
from hubdistill.hub.adapter_check import check_adapter, refuse_names
from tests.hub.conftest import BASE, COMMIT, WEIGHTS, config, safetensors


def lay_out(folder, weights: bytes | None = None, **changes):
    own = config(base_model_name_or_path=BASE, revision=COMMIT, **changes)
    (folder / "adapter_config.json").write_text(json.dumps(own))
    (folder / "adapter_model.safetensors").write_bytes(safetensors(WEIGHTS) if weights is None else weights)
    return folder


def test_a_plain_adapter_passes(tmp_path):
    facts = check_adapter(lay_out(tmp_path))
    assert (facts.base, facts.base_revision, facts.rank, facts.alpha) == (BASE, COMMIT, 4, 8.0)
    assert facts.modules == ("q_proj", "v_proj")
    assert check_adapter(lay_out(tmp_path, target_modules=".*_proj")).modules == (".*_proj",)
    mixed = {**WEIGHTS, "base_model.model.x.lora_A.weight": [2, 16], "base_model.model.x.lora_B.weight": [16, 2]}
    assert check_adapter(lay_out(tmp_path, safetensors(mixed), rank_pattern={"x": 2})).rank == 4


BAD_CONFIGS: dict[str, list[Any]] = {
    "peft_type": ["IA3", None, "lora"],
    "r": [0, -1, True, 4.0, "4", 10**9, None],
    "lora_alpha": ["8", float("inf"), True],
    "target_modules": [None, [], {}, [1], "", ["a" * 3000]],
    "init_lora_weights": ["pissa", "loftq", "olora", {"a": 1}, None],
    "base_model_name_or_path": [None, "/etc", "../x", "a/b/c", 7, "pypi:x"],
    "revision": ["../x", 3, "", "a b"],
    "auto_mapping": [{"parent_library": "os", "base_model_class": "system"}],
    "megatron_config": [{"a": 1}],
    "layer_replication": [[[0, 4]]],
    "modules_to_save": [["lm_head"]],
    "rank_pattern": [{"x": 0}, [4], {"x": "4"}],
    "alpha_pattern": [{"x": None}],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in BAD_CONFIGS.items() for value in values])
def test_bad_configurations_name_their_key(tmp_path, key, value):
    lay_out(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config(base_model_name_or_path=BASE), key: value}))
    with pytest.raises(
        InputError, match=rf"adapter_config\.json: {'base_model_name_or_path' if key == 'base' else key}:"
    ):
        check_adapter(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b'"x"'])
def test_configurations_that_are_no_json_object(tmp_path, content):
    lay_out(tmp_path)
    (tmp_path / "adapter_config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"adapter_config\.json"):
        check_adapter(tmp_path)


def header(content: object) -> bytes:
    raw = json.dumps(content).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(4096)


KEY = "base_model.model.x.lora_A.weight"
BAD_WEIGHTS = {
    "empty": b"",
    "short": b"\x00" * 9,
    "huge-header": struct.pack("<Q", 2**63) + b"{}" * 20,
    "header-past-the-end": struct.pack("<Q", 10_000) + b"{}" * 20,
    "no-json": struct.pack("<Q", 8) + b"notjson!" + bytes(10),
    "list": header([1]),
    "deep": struct.pack("<Q", 100_000) + b"[" * 100_000,
    "no-tensors": header({}),
    "zip": b"PK\x03\x04" + bytes(100),
    "pickle": b"\x80\x04\x95" + bytes(100),
    "not-lora": safetensors({"model.embed_tokens.weight": [4, 4]}),
    "path-as-key": safetensors({"../../x.lora_A.weight": [4, 4]}),
    "wrong-rank": safetensors({KEY: [8, 4]}),
    "past-the-end": header({KEY: {"dtype": "F32", "shape": [4, 4096], "data_offsets": [0, 65536]}}),
    "size-mismatch": header({KEY: {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 63]}}),
    "negative": header({KEY: {"dtype": "F32", "shape": [4, -4], "data_offsets": [0, -64]}}),
    "dtype": header({KEY: {"dtype": "OBJECT", "shape": [4, 4], "data_offsets": [0, 64]}}),
    "no-entry": header({KEY: None}),
    "scalar": header({KEY: {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}),
}


@pytest.mark.parametrize("kind", BAD_WEIGHTS)
def test_bad_weights(tmp_path, kind):
    with pytest.raises(InputError, match=r"adapter_model\.safetensors"):
        check_adapter(lay_out(tmp_path, BAD_WEIGHTS[kind]))


def test_bytes_flipped_at_random_never_crash(tmp_path):
    """Whatever a damaged download holds, the outcome is facts or an InputError."""
    good, chance = safetensors(WEIGHTS), random.Random(0)
    length = 8 + int.from_bytes(good[:8], "little")
    refused = 0
    for _ in range(300):
        bad = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            bad[chance.randrange(length)] = chance.randrange(256)
        try:
            check_adapter(lay_out(tmp_path, bytes(bad)))
        except InputError:
            refused += 1
    assert refused > 200


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/etc/passwd", "C:\\x", "\\\\host\\share", "a\\..\\b", "..", "x\0y"]
)
def test_names_that_leave_the_folder(name):
    with pytest.raises(InputError, match="outside the folder"):
        refuse_names(["adapter_model.safetensors", name], "org/x")


def test_pickles_and_missing_weights():
    with pytest.raises(InputError, match="run code"):
        refuse_names(["adapter_config.json", "adapter_model.bin"], "org/x")
    with pytest.raises(MissingError, match="no adapter_model"):
        refuse_names(["README.md"], "org/x")
    refuse_names(["adapter_model.safetensors", "adapter_model.bin", "a..b.txt"], "org/x")  # the pickle is not fetched
