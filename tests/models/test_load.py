"""Models load whole or not at all, and the head the loss uses gives the logits that the model gives."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hubdistill.errors import HubError, InputError
from hubdistill.models.hardware import pick_device
from hubdistill.models.layout import load_model
from hubdistill.models.load import (
    check_head,
    end_of_turn,
    generation_stops,
    head_of,
    last_hidden,
    load_tokenizer,
    template_hash,
)
from hubdistill.models.lora import attach_adapter
from hubdistill.models.sources import ModelFacts
from hubdistill.specs import LoraSpec
from tests import tiny

CPU = torch.device("cpu")
SHAPE = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3, "pad_token_id": 0,
         "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
# family -> (its own settings, scale of its head, soft cap of its head)
FAMILIES = {
    "llama": ({}, 1.0, None),
    "qwen2": ({"tie_word_embeddings": True}, 1.0, None),
    "gemma2": ({"head_dim": 8, "final_logit_softcapping": 3.0, "sliding_window": 4}, 1.0, 3.0),
    "cohere": ({"logit_scale": 0.25}, 0.25, None),
    "granite": ({"logits_scaling": 8.0}, 0.125, None),
    "phi": ({}, 1.0, None),
}
IDS = torch.tensor([[5, 9, 30, 4, 7, 7, 12], [8, 3, 25, 31, 6, 0, 0]])
MASK = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])


def family(name: str, dtype: torch.dtype = torch.float32):
    """A random model of the family; its head has a bias where the family gives it one."""
    from transformers import AutoConfig

    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **SHAPE, **FAMILIES[name][0])).eval().to(dtype)
        if model.lm_head.bias is not None:
            torch.nn.init.normal_(model.lm_head.bias)
    return model


def logits_of(head, hidden):
    """The formula that Head states, in double precision."""
    logits = hidden.double() @ head.weight.double().T
    logits = head.scale * (logits + (0 if head.bias is None else head.bias.double()))
    return logits if head.soft_cap is None else head.soft_cap * torch.tanh(logits / head.soft_cap)


def facts_of(folder: Path) -> ModelFacts:
    config = json.loads((folder / "config.json").read_text())
    return ModelFacts(reference="./tiny", kind="local", location=str(folder), commit="0" * 40, config=config, license={})


@pytest.fixture
def saved(tmp_path: Path, tokenizer) -> Path:
    return tiny.save(tmp_path / "tiny", tiny.make_model(2), tokenizer)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_head_and_last_hidden_give_the_logits_of_the_model(name):
    model = family(name)
    expected = model(input_ids=IDS, attention_mask=MASK).logits.double()
    head = head_of(model)
    found = logits_of(head, last_hidden(model, input_ids=IDS, attention_mask=MASK))
    assert (found - expected).abs().max() < 1e-4
    assert (head.scale, head.soft_cap) == FAMILIES[name][1:]
    assert (head.bias is not None) == (name == "phi")
    check_head(model, name)


@torch.no_grad()
def test_the_families_put_their_scale_and_cap_to_use():
    for name, what in (("gemma2", "soft_cap"), ("cohere", "scale"), ("granite", "scale"), ("phi", "bias")):
        model = family(name)
        head = head_of(model)
        plain = type(head)(head.weight, None if what == "bias" else head.bias)
        found = logits_of(plain, last_hidden(model, input_ids=IDS))
        assert (found - model(input_ids=IDS).logits).abs().max() > 0.1, name


@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere"])
def test_check_head_bears_the_rounding_of_bfloat16(name):
    check_head(family(name, torch.bfloat16), name)


def test_check_head_refuses_logits_that_are_something_else(student):
    student.register_forward_hook(lambda _module, _args, output: _scaled(output, 1.02))
    with pytest.raises(InputError, match=r"^tiny: its logits are not a linear head .*off by 2\.0%.*; hubdistill cannot distil this architecture, choose another model$"):
        check_head(student, "tiny")


def _scaled(output, by):
    output.logits = output.logits * by
    return output


def test_check_head_refuses_a_model_of_nans(student):
    with torch.no_grad():
        student.model.norm.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="off by nan"):
        check_head(student, "tiny")


def test_a_head_that_is_no_linear_layer_is_refused(student):
    student.lm_head = torch.nn.Sequential(student.lm_head, torch.nn.Tanh())
    with pytest.raises(InputError, match="LlamaForCausalLM has no plain linear output head"):
        head_of(student)


class Wrapper(torch.nn.Module):
    """As DDP does it: the model is `module`, and the wrapper must be what is called."""

    def __init__(self, module):
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, **inputs):
        self.calls += 1
        return self.module(**inputs)


def test_last_hidden_goes_through_an_adapter_and_a_wrapper(student):
    adapted = attach_adapter(student, LoraSpec(rank=4, alpha=8), seed=0)
    plain = last_hidden(adapted, input_ids=IDS.remainder(34))
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(value, std=0.2, generator=torch.Generator().manual_seed(1))
    wrapped = Wrapper(adapted)
    hidden = last_hidden(wrapped, input_ids=IDS.remainder(34), attention_mask=MASK)
    expected = adapted(input_ids=IDS.remainder(34), attention_mask=MASK).logits
    assert wrapped.calls == 1
    assert (logits_of(head_of(student), hidden) - expected).abs().max() < 1e-4
    assert (hidden - plain).abs().max() > 0.1, "the adapter is part of it"
    hidden.sum().backward()
    assert all(value.grad is not None for name, value in adapted.named_parameters() if "lora_B" in name)


def test_last_hidden_leaves_no_hook_behind_even_after_an_error(student):
    before = dict(student.model._forward_hooks)
    last_hidden(student, input_ids=IDS.remainder(34))
    with pytest.raises(ValueError, match="input_ids"):
        last_hidden(student, nonsense=IDS)
    assert dict(student.model._forward_hooks) == before


def test_a_device_is_the_one_that_is_named():
    assert pick_device("cpu") == CPU
    there = torch.accelerator.current_accelerator(check_available=True)
    assert pick_device("auto") == (there or CPU)


def test_a_device_that_is_not_there_is_refused():
    absent = "xpu" if torch.cuda.is_available() else "cuda:1"
    with pytest.raises(InputError, match=f"this machine has no {absent} .*write `auto` or `cpu`"):
        pick_device(absent)


def test_auto_takes_the_accelerator(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert [pick_device(name).type for name in ("auto", "cuda", "cuda:1", "cpu")] == ["cuda", "cuda", "cuda", "cpu"]
    for absent in ("cuda:2", "mps"):
        with pytest.raises(InputError, match=f"no {absent} "):
            pick_device(absent)


@pytest.mark.parametrize(("asked", "found"), [("auto", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_a_bfloat16_checkpoint_loads_in_the_dtype_asked_for_and_in_float32_on_a_cpu(tmp_path, tokenizer, asked, found):
    original = tiny.make_model(2).to(torch.bfloat16)
    model = load_model(facts_of(tiny.save(tmp_path, original, tokenizer)), asked, CPU)
    assert {value.dtype for value in model.parameters()} == {found}
    assert not model.training
    for name, value in original.state_dict().items():
        assert torch.allclose(model.state_dict()[name].float(), value.float(), atol=1e-3), name


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickled_weights_are_not_read(saved, tmp_path):
    (saved / "model.safetensors").unlink()
    (saved / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(InputError, match=r"^\./tiny: transformers cannot load it .*check the model and its revision$"):
        load_model(facts_of(saved), "auto", CPU)
    assert not (tmp_path / "ran").exists()


def break_file(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    config = json.loads((folder / "config.json").read_text())
    name = "model.layers.1.mlp.up_proj.weight"
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "another shape":
        save_file(tensors | {name: torch.zeros(3, 3)}, weights, metadata={"format": "pt"})
    elif how == "a weight is missing":
        save_file({key: value for key, value in tensors.items() if key != name}, weights, metadata={"format": "pt"})
    else:
        changes = {"unknown architecture": {"model_type": "nonsense"}, "impossible config": {"num_attention_heads": 5}}[how]
        (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("truncated", "incomplete metadata"),
        ("another shape", "check the model"),
        ("a weight is missing", r"lack 1 of its weights \(model\.layers\.1\.mlp\.up_proj\.weight\); check that the model is complete"),
        ("unknown architecture", "nonsense"),
        ("impossible config", "attention heads"),
    ],
)
def test_a_broken_model_is_refused(saved, how, says):
    facts = facts_of(saved)
    break_file(saved, how)
    with pytest.raises(InputError, match=rf"(?s)^\./tiny: .*{says}"):
        load_model(facts, "auto", CPU)


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}', None])
def test_a_broken_tokenizer_is_refused(saved, content):
    if content is None:
        (saved / "tokenizer.json").unlink()
    else:
        (saved / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match=r"(?s)^\./tiny: its tokenizer cannot be loaded .*check the model and its revision$"):
        load_tokenizer(facts_of(saved))


def test_a_missing_pad_token_becomes_the_end_of_sequence(tmp_path, tokenizer):
    from transformers import AutoTokenizer

    model = tiny.make_model(2)
    with_pad = load_tokenizer(facts_of(tiny.save(tmp_path / "a", model, tokenizer)))
    assert with_pad.pad_token == "<pad>"
    bare = tiny.make_tokenizer()
    bare.pad_token = None
    folder = tiny.save(tmp_path / "b", model, bare)
    assert AutoTokenizer.from_pretrained(folder).pad_token_id is None
    found = load_tokenizer(facts_of(folder))
    assert (found.pad_token, found.pad_token_id) == ("<|im_end|>", 3)


def test_the_template_hash_tells_templates_apart(tokenizer):
    other, same = tiny.make_tokenizer(extra=("more",)), tiny.make_tokenizer()
    assert template_hash(tokenizer) == template_hash(same) == template_hash(other)
    same.chat_template = tiny.TEMPLATE + " "
    other.chat_template = None
    assert len({template_hash(found) for found in (tokenizer, same, other)}) == 3


def test_the_end_of_a_turn_is_what_the_template_writes(tokenizer):
    assert end_of_turn(tokenizer) == 3
    gemma_like = tiny.make_tokenizer()
    gemma_like.eos_token = "<unk>"
    assert end_of_turn(gemma_like) == 3, "the template ends turns, whatever the end of a text is"
    gemma_like.chat_template = "{% for m in messages %}{{ m['content'] }} . {% endfor %}"
    assert end_of_turn(gemma_like) == gemma_like.eos_token_id
    gemma_like.chat_template = None
    assert end_of_turn(gemma_like) == gemma_like.eos_token_id
    gemma_like.chat_template = "{{ raise_exception('no assistant') }}"
    assert end_of_turn(gemma_like) == gemma_like.eos_token_id


def test_stop_ids_are_those_of_the_generation_config_or_of_the_config(saved):
    facts = facts_of(saved)
    (saved / "generation_config.json").write_text('{"eos_token_id": [3, 9]}')
    assert generation_stops(facts) == [3, 9]
    (saved / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert generation_stops(facts) == [7]
    (saved / "generation_config.json").unlink()
    assert generation_stops(facts) == [3]


def test_a_hub_that_does_not_answer_is_not_a_missing_generation_config(monkeypatch):
    facts = ModelFacts(reference="org/m", kind="hub", location="org/m", commit="0" * 40, config={"eos_token_id": 5}, license={})

    def no_answer(*args, **kwargs):
        raise OSError("We couldn't connect") from ConnectionError("refused")

    monkeypatch.setattr("hubdistill.models.load.cached_file", no_answer)
    with pytest.raises(HubError, match=r"org/m.*check the network"):
        generation_stops(facts)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert generation_stops(facts) == [5]


def test_gemma_keeps_the_soft_cap_of_its_attention(tmp_path, tokenizer):
    model = family("gemma2")
    model.config.attn_logit_softcapping = 0.5
    folder = tiny.save(tmp_path / "gemma", model, tokenizer)
    loaded = load_model(facts_of(folder), "float32", CPU)
    eager, plain = (AutoModelForCausalLM.from_pretrained(folder, attn_implementation=name)(IDS).logits for name in ("eager", "sdpa"))
    assert torch.equal(loaded(IDS).logits, eager)
    assert not torch.allclose(eager, plain, atol=1e-2)
