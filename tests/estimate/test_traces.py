"""The traces against real models: what autograd really saves is counted by its own hooks, with PEFT, masks and sdpa."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from hubdistill.estimate.calls import Call
from hubdistill.estimate.traces import trace
from hubdistill.models.lean_lora import lean
from hubdistill.models.load import last_hidden
from hubdistill.models.lora import in_fp32
from hubdistill.models.pair_attention import PairTree, Span, pair_attention

SIZES = {"vocab_size": 64, "hidden_size": 128, "intermediate_size": 320, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 5, "head_dim": 32}
FAMILIES = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM), "gemma2": (Gemma2Config, Gemma2ForCausalLM)}
ROWS, LENGTH = 3, 96


def made(family: str, dtype: torch.dtype = torch.float32):
    config, model = FAMILIES[family]
    eager = {"attn_implementation": "eager"} if family == "gemma2" else {}
    return model(config(**SIZES, tie_word_embeddings=True, **eager)).to(dtype)


def call(model, **changes) -> Call:
    return Call(settings=model.config.to_json_string(use_diff=False), dtype=str(model.dtype).removeprefix("torch."), rows=ROWS, length=LENGTH,
                eager=model.config._attn_implementation == "eager", **changes)  # fmt: skip


def inputs() -> dict[str, torch.Tensor]:
    mask = torch.ones(ROWS, LENGTH, dtype=torch.long)
    mask[0, -7:] = 0  # rows of several lengths, so that there is a mask
    return {"input_ids": torch.randint(0, 64, (ROWS, LENGTH)), "attention_mask": mask}


def saved_by_autograd(model, **arguments) -> int:
    """Bytes of the storages that backward needs, parameters aside."""
    own = {value.untyped_storage().data_ptr() for value in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = last_hidden(model, **arguments or inputs())
    assert hidden.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_forward_pass_keeps_is_what_autograd_saves(family, dtype):
    model = made(family, dtype)
    found = trace(call(model, rank=8))
    adapted = lean(in_fp32(get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]))))
    expected = saved_by_autograd(adapted.train())
    assert found.kept == pytest.approx(expected, rel=0.06)
    assert found.kept <= found.forward
    assert found.kept <= found.backward


@pytest.mark.parametrize("family", FAMILIES)
def test_pairs_in_one_row_keep_what_autograd_saves(family):
    model = made(family)
    pairs, response = 2, 40
    found = trace(replace(call(model, rank=8), rows=pairs, response=response))
    tree = PairTree(pairs * (Span(LENGTH - response, response, response),))
    adapted = lean(in_fp32(get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])))).train()
    ids = torch.randint(0, 64, (1, pairs * (LENGTH + response)))
    with pair_attention(adapted):
        expected = saved_by_autograd(adapted, input_ids=ids, position_ids=tree.positions(), pair_tree=tree)
    assert found.kept == pytest.approx(expected, rel=0.06)
    assert found.kept < trace(replace(call(model, rank=8), rows=2 * pairs)).kept


def test_named_modules_alone_are_adapted():
    model = made("llama")
    found = trace(call(model, rank=8, modules=("q_proj",)))
    adapted = lean(in_fp32(get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj"]))))
    assert found.kept == pytest.approx(saved_by_autograd(adapted.train()), rel=0.06)
    assert found.kept < trace(call(model, rank=8)).kept


def test_the_cache_of_prompts_is_counted():
    model = made("llama")
    with torch.no_grad():
        cache = model(**inputs(), use_cache=True).past_key_values
    expected = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    found = trace(call(model, cache=True))
    hidden = ROWS * LENGTH * SIZES["hidden_size"] * 4
    assert expected <= found.kept <= expected + 2 * hidden


def test_depth_is_read_off_a_line_that_is_one():
    """Five layers are extrapolated from fewer; so many that nothing is extrapolated give the same line."""
    by_depth = {}
    for depth in (2, 3, 9):
        config, model = FAMILIES["llama"]
        by_depth[depth] = trace(call(model(config(**SIZES | {"num_hidden_layers": depth})), rank=8)).kept
    assert by_depth[9] == by_depth[3] + 6 * (by_depth[3] - by_depth[2])
    assert trace(call(made("llama"), rank=8)).kept == by_depth[3] + 2 * (by_depth[3] - by_depth[2])


def test_checkpointing_keeps_a_part_and_twice_the_rows_twice_as_much():
    model = made("llama")
    whole, parts = trace(call(model, rank=8)), trace(call(model, rank=8, checkpointing=True))
    assert parts.kept < whole.kept / 5
    assert parts.kept < parts.backward < whole.backward
    assert trace(replace(call(model, rank=8), rows=2 * ROWS)).kept == pytest.approx(2 * whole.kept, rel=0.02)
