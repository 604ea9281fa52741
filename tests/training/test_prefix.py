"""Which models read prompts once: by their config, then measured; and training either way ends in the same adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hubdistill.modalities.base import Reading
from hubdistill.modalities.text import TEXT
from hubdistill.modalities.vision import VISION
from hubdistill.models import pair_attention
from hubdistill.models.sharing import Sharing, sharing_of
from hubdistill.models.sources import ModelFacts
from hubdistill.pairs.join import Pair
from hubdistill.training.prefix import who_shares
from tests import tiny, tiny_vlm
from tests.modalities.test_vision import IMAGES, rows_of
from tests.training.helpers import adapter_of, make_pairs, train

READING = Reading(modality=TEXT, pad_id=0)
PAIR = Pair("p", (4, 5, 6, 7, 8, 9), (10, 11, 12, 13), (14, 15, 16))
RECORDED = Path(__file__).parents[1] / "recorded"


def facts(config: dict[str, Any], remote: bool = False) -> ModelFacts:
    return ModelFacts(reference="m", kind="hub", location="m", commit="c", config=config, license={}, trust_remote_code=remote)


@pytest.mark.parametrize("path", sorted(RECORDED.glob("*/*/config.json")), ids=lambda path: path.parent.name)
def test_every_model_of_the_shipped_recipes_reads_prompts_once(path):
    assert sharing_of(facts(json.loads(path.read_text()))) == Sharing(True)


@pytest.mark.parametrize(("config", "why"), [
    ({"model_type": "qwen3_next", "layer_types": ["linear_attention", "full_attention"], "linear_conv_kernel_dim": 4}, "a state"),
    ({"model_type": "jamba", "mamba_d_state": 16}, "a state"),
    ({"model_type": "falcon_h1", "mamba_d_conv": 4}, "a state"),
    ({"model_type": "rwkv"}, "a state"),
    ({"model_type": "lfm2", "layer_types": ["conv", "full_attention"]}, "a state"),
    ({"model_type": "new", "layer_types": ["whirl_attention", "full_attention"]}, "the kind whirl_attention"),
    ({"model_type": "gpt_oss", "layer_types": ["sliding_attention", "full_attention"]}, "sinks"),
    ({"model_type": "gemma3", "vision_config": {}, "text_config": {"model_type": "gemma3_text"}}, "each other both ways"),
])  # fmt: skip
def test_an_architecture_that_cannot_is_named_with_the_reason(config, why):
    found = sharing_of(facts(config))
    assert not found.shared
    assert why in found.reason


def test_code_of_its_own_is_not_trusted_with_it():
    phi = json.loads((RECORDED / "microsoft/Phi-3.5-mini-instruct/config.json").read_text())
    assert sharing_of(facts(phi)).shared
    assert "code of its own" in sharing_of(facts(phi, remote=True)).reason


def asked(model: Any, said: Sharing = Sharing(True)) -> tuple[frozenset[str], list[str]]:
    notes: list[str] = []
    return who_shares({"student": said}, {"student": model}, READING, PAIR, notes.append), notes


def test_a_model_that_reads_pairs_rightly_is_let_do_so():
    assert asked(tiny.make_model(1)) == (frozenset({"student"}), [])
    assert asked(tiny.make_model(1).to(torch.bfloat16)) == (frozenset({"student"}), [])


def test_a_common_beginning_is_tried_too(monkeypatch):
    right = pair_attention.PairTree.positions

    def wrong(tree):
        return right(tree) - tree.common if tree.common else right(tree)

    monkeypatch.setattr(pair_attention.PairTree, "positions", lambda tree: wrong(tree).clamp(min=0))
    found, notes = asked(tiny.make_model(1))
    assert not found
    assert "reads each prompt twice" in notes[0]


def test_what_the_config_says_is_not_tried():
    assert asked(None, Sharing(False, "it has wheels")) == (frozenset(), ["the student reads each prompt twice, once for each response of its pair: it has wheels"])


def test_a_model_that_reads_pairs_otherwise_is_found_by_trying(monkeypatch):
    """As one with an attention that nobody thought of would: here, y_s sees y_t."""
    model = tiny.make_model(1)
    monkeypatch.setattr(pair_attention, "_mask", lambda queries, keys, window, device: torch.ones(queries, keys, dtype=torch.bool))
    shared, notes = asked(model)
    assert shared == frozenset()
    assert "otherwise than two responses apart (hidden states are off by" in notes[0]


def test_state_space_layers_are_found_even_where_their_config_is_not_known():
    import transformers

    config = transformers.Mamba2Config(vocab_size=34, hidden_size=32, num_hidden_layers=2, state_size=8, num_heads=8, head_dim=8, expand=2, n_groups=1)
    model = tiny_vlm.seeded(lambda: transformers.Mamba2ForCausalLM(config), 0)
    shared, notes = asked(model)
    assert shared == frozenset()
    assert "its attention cannot be exchanged" in notes[0]


def test_tokens_of_an_image_that_see_each_other_both_ways_are_found():
    """Gemma-3, whatever the list of names says; its window is short here, so the responses follow the image."""
    model, processor = tiny_vlm.gemma3()
    row = rows_of(processor, ("one",))[0]
    prompt = row.prompt_ids[: row.prompt_ids.index(4) + 1]  # <end_of_image>
    read = Reading(modality=VISION, teacher=processor, student=processor, pad_id=0, open_image=IMAGES.__getitem__)
    notes: list[str] = []
    pair = Pair("p", prompt, (60, 70, 80), (61, 62), prompt, row.images)
    assert who_shares({"student": Sharing(True)}, {"student": model}, read, pair, notes.append) == frozenset()
    assert "off by" in notes[0]


@pytest.mark.parametrize("shared", [(), ("student",), ("teacher",)], ids=["none", "student", "teacher"])
@pytest.mark.parametrize("micro_batch", [1, 4])
def test_training_ends_in_the_same_adapter(tmp_path, shared, micro_batch):
    pairs = make_pairs(tmp_path / "pairs", 10)
    both = adapter_of(train(tmp_path / "a", pairs, micro_batch=micro_batch)[0])
    found = adapter_of(train(tmp_path / "b", pairs, micro_batch=micro_batch, shared=shared)[0])
    assert max((found[name] - both[name]).abs().max().item() for name in both) < 3e-5
    assert not all(torch.equal(found[name], both[name]) for name in both), "nothing was shared"
