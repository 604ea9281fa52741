"""The adapter: nothing at first, on all of attention and MLP and never on the head, in float32."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from transformers import GPT2Config, GPT2LMHeadModel

from hubdistill.errors import InputError
from hubdistill.models.layers import linear_names
from hubdistill.models.lean_lora import lean
from hubdistill.models.lora import attach_adapter, in_fp32, load_adapter
from hubdistill.specs import LoraSpec
from tests import tiny

LLAMA = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
IDS = torch.tensor([[7, 9, 20, 4, 3], [8, 33, 25, 31, 6]])
SPEC = LoraSpec(rank=4, alpha=8)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


def stir(model, seed: int = 1) -> None:
    """Give the adapter an output, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)


@torch.no_grad()
def test_a_fresh_adapter_changes_nothing(student):
    expected = copy.deepcopy(student)(IDS).logits
    adapted = attach_adapter(student, SPEC, seed=0)
    assert torch.equal(adapted(IDS).logits, expected)
    stir(adapted)
    assert not torch.allclose(adapted(IDS).logits, expected, atol=0.1)


def test_every_linear_layer_of_every_block_is_adapted_and_nothing_else(student):
    shapes = {name: module.weight.shape for name, module in student.named_modules() if isinstance(module, torch.nn.Linear)}
    assert "lm_head" in shapes
    found = weights(attach_adapter(student, SPEC, seed=0))
    expected = {}
    for name, (rows, columns) in shapes.items():
        if name != "lm_head":
            expected[f"base_model.model.{name}.lora_A.default.weight"] = (4, columns)
            expected[f"base_model.model.{name}.lora_B.default.weight"] = (rows, 4)
    assert {name: tuple(value.shape) for name, value in found.items()} == expected
    assert len(expected) == 2 * 7 * 2


def test_the_names_come_from_the_blocks_of_the_decoder(student):
    assert linear_names(student) == sorted(LLAMA)
    student.tower = torch.nn.ModuleDict({"patch": torch.nn.Linear(2, 2)})
    assert linear_names(student) == sorted(LLAMA)


def test_named_modules_only(student):
    found = weights(attach_adapter(student, LoraSpec(rank=2, alpha=2, modules=("q_proj", "down_proj")), seed=0))
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in found} == {"q_proj", "down_proj"}


@pytest.mark.parametrize("wrong", ["lm_head", "c_attn", "self_attn.q_proj"])
def test_an_unknown_module_is_refused_with_the_names_there_are(student, wrong):
    with pytest.raises(InputError, match=f"lora.modules: the student has no linear layer '{wrong}'; name some of these: {', '.join(sorted(LLAMA))}$"):
        attach_adapter(student, LoraSpec(rank=2, alpha=2, modules=("q_proj", wrong)), seed=0)


def test_the_output_is_scaled_by_alpha_over_rank(student):
    layer = attach_adapter(student, LoraSpec(rank=4, alpha=6), seed=0)
    stir(layer)
    target = layer.get_base_model().model.layers[0].self_attn.q_proj
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    a, b = target.lora_A["default"].weight, target.lora_B["default"].weight
    expected = x @ target.base_layer.weight.T + 6 / 4 * (x @ a.T @ b.T)
    assert torch.allclose(target(x), expected, atol=1e-5)


def test_the_seed_decides_and_the_global_generator_is_left_alone():
    torch.manual_seed(11)
    expected = torch.rand(4)
    torch.manual_seed(11)
    first, same, other = (weights(attach_adapter(tiny.make_model(2), SPEC, seed=seed)) for seed in (5, 5, 6))
    assert torch.equal(torch.rand(4), expected)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if "lora_A" in name)


def test_the_adapter_is_float32_on_a_bfloat16_base_and_the_base_stays_frozen():
    base = tiny.make_model(2).to(torch.bfloat16)
    adapted = attach_adapter(base, SPEC, seed=0)
    frozen = [value for value in adapted.parameters() if not value.requires_grad]
    assert {value.dtype for value in weights(adapted).values()} == {torch.float32}
    assert {value.dtype for value in frozen} == {torch.bfloat16}
    assert len(frozen) == len(list(tiny.make_model(2).parameters()))
    adapted(IDS).logits.float().square().mean().backward()
    # B is zero, so only B's gradient is not
    assert all(value.grad.abs().max() > 0 for name, value in adapted.named_parameters() if "lora_B" in name)


def test_saving_and_loading_gives_the_same_adapter(tmp_path, student):
    adapted = attach_adapter(student, SPEC, seed=0)
    stir(adapted)
    expected = adapted(IDS).logits
    adapted.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["task_type"]) == (4, 8, "CAUSAL_LM")
    assert set(config["target_modules"]) == LLAMA
    trainable = load_adapter(tiny.make_model(2), tmp_path, trainable=True)
    fixed = load_adapter(tiny.make_model(2), tmp_path, trainable=False)
    for found in (trainable, fixed):
        assert torch.allclose(found(IDS).logits, expected, atol=1e-6)
    assert weights(trainable).keys() == weights(adapted).keys()
    assert all(torch.equal(value, weights(adapted)[name]) for name, value in weights(trainable).items())
    assert weights(fixed) == {}
    assert not fixed.training


def test_an_adapter_continues_in_float32_on_a_bfloat16_base(tmp_path, student):
    attach_adapter(student, SPEC, seed=0).save_pretrained(tmp_path)
    found = load_adapter(tiny.make_model(2).to(torch.bfloat16), tmp_path, trainable=True)
    assert {value.dtype for value in weights(found).values()} == {torch.float32}


def test_a_student_whose_blocks_are_not_found_is_refused():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=40))
    with pytest.raises(InputError, match=r"student\.model: GPT2LMHeadModel keeps its blocks where hubdistill cannot find them; choose"):
        attach_adapter(model, SPEC, seed=0)


def make_mixed(dtype: torch.dtype):
    """A tiny model of that type under a float32 adapter with an output, and its ids."""
    model = attach_adapter(tiny.make_model(3).to(dtype), LoraSpec(rank=4, alpha=6), seed=0).train()
    stir(model)
    return model


def as_peft(model):
    """The same layers with PEFT's own forward pass."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.lora_variant.clear()
            layer.cast_input_dtype_enabled = True
    return model


def loss_and_gradients(model) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad(set_to_none=True)
    loss = model(IDS).logits.double().logsumexp(-1).square().mean()
    loss.backward()
    return loss.detach(), {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=["float64", "float32", "bfloat16"])
def test_adapter_layers_compute_what_pefts_own_do(family, dtype, close):
    if family == "gpt2":  # its layers are Conv1D, whose output is a view
        base = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32)).to(dtype)
        model = lean(in_fp32(get_peft_model(base, LoraConfig(r=4, lora_alpha=6, target_modules=["c_attn", "c_fc", "c_proj"]))))
        stir(model)
    else:
        model = make_mixed(dtype)
    if dtype == torch.float64:
        model.double()
    loss, found = loss_and_gradients(model.eval())
    assert all(layer.lora_variant for layer in model.modules() if isinstance(layer, LoraLayer))
    peft_loss, expected = loss_and_gradients(as_peft(model))
    torch.testing.assert_close(loss, peft_loss, rtol=close, atol=0)
    assert found.keys() == expected.keys()
    assert len(found) == 2 * sum(isinstance(layer, LoraLayer) for layer in model.modules())
    for name, value in expected.items():
        assert float((found[name] - value).norm()) <= close * float(value.norm()), name


def test_adapter_layers_of_a_bfloat16_model_keep_no_copy_of_their_input():
    def kept(model) -> int:
        sizes = {}

        def see(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = (tensor.dtype, tensor.numel(), tensor.untyped_storage())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
            model(IDS).logits.float().sum()
        inputs = IDS.numel() * 32  # as large as a hidden state, so no weight and no head
        return sum(dtype == torch.float32 and count in (inputs, 2 * inputs) for dtype, count, _ in sizes.values())

    model = make_mixed(torch.bfloat16)
    ours, pefts = kept(model), kept(as_peft(model))
    assert pefts - ours == 14  # each of seven layers in two blocks


def test_under_autocast_the_products_choose_their_type():
    model = make_mixed(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, found = loss_and_gradients(model)
        peft_loss, expected = loss_and_gradients(as_peft(model))
    torch.testing.assert_close(loss, peft_loss, rtol=1e-6, atol=0)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


def test_an_adapter_with_dropout_stays_pefts(student):
    model = lean(get_peft_model(student, LoraConfig(r=2, lora_dropout=0.5, target_modules=["q_proj"])))
    assert not any(layer.lora_variant for layer in model.modules() if isinstance(layer, LoraLayer))


@pytest.mark.parametrize("safe", [False, True])
@torch.no_grad()
def test_an_adapter_that_was_training_merges_as_pefts_does(safe):
    model = make_mixed(torch.float32).eval()
    expected = model(IDS).logits
    model.merge_adapter(safe_merge=safe)
    torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    weight = layer.base_layer.weight.clone()
    model.unmerge_adapter()
    assert not torch.allclose(layer.base_layer.weight, weight)
    merged = model.merge_and_unload(safe_merge=safe)
    torch.testing.assert_close(merged(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(layer, LoraLayer) for layer in merged.modules())
